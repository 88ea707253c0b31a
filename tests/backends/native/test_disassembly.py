"""The compiled kernels' own instructions: that each kept the vector code that it was written for.

A function or closure that is not inlined into a tier's function loses the tier's CPU features: vectors then travel
through memory, and their arithmetic runs 10 to 30 times slower, with the right results. No other test sees that.

Written for the code of rustc 1.89 to 1.95. No version is pinned: users build with theirs, and a compiler that loses the
vectors is what this is to find. So nothing is asked of how many functions or loops there are; a failure names the
compiler.
"""

import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pytest

from cid import _native
from tests.cases import KERNELS

if sys.platform != "linux" or platform.machine() != "x86_64":
    pytest.skip("reads the instructions and symbols of x86-64 Linux alone", allow_module_level=True)
if _native.build_info()["profile"] != "release":
    pytest.skip("a debug build inlines nothing", allow_module_level=True)

import capstone
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

# On AVX-512, what goes with float32 of half a vector, or with another type, is of 256 bits.
REGISTERS = {"avx2": ("ymm",), "avx512": ("zmm", "ymm")}
tiers = pytest.mark.parametrize("tier", REGISTERS)

NEVER_RETURNS = re.compile(r"panic|slice_index_fail|unwrap_failed|expect_failed|handle_alloc_error|_Unwind_Resume")
MEMORY = re.compile(r"^(memset|memcpy|memmove|memcmp|bcmp)$")
ONCE_A_ROW = re.compile(r"^(exp|exp2|expm1|log|log2|log1p)$")

# Of scalars without minimum and maximum: a number that becomes an integer is clamped by them.
PACKED = re.compile(r"v(add|sub|mul|div|sqrt|min|max|fn?m(add|sub)\d+)p[sd]$")
SCALAR = re.compile(r"v(add|sub|mul|div|sqrt|fn?m(add|sub)\d+)s[sd]$")
# `exp` shifts an integer to where the exponent's bits are: the shift, its distance, the polynomial's steps.
EXP = {"f32": ("vpslld", "0x17", "ps", 6), "f64": ("vpsllq", "0x34", "pd", 11)}
ENDS = {"jmp", "notrack jmp", "ret", "ud2", "int3"}


class Instruction(NamedTuple):
    address: int
    end: int
    mnemonic: str
    operands: str

    @property
    def jumps(self) -> bool:
        return self.mnemonic.removeprefix("notrack ").startswith("j")

    @property
    def target(self) -> int:
        """Where a direct jump or call goes, -1 for an indirect one."""
        return int(self.operands, 16) if self.operands.startswith("0x") else -1

    def __str__(self) -> str:
        return f"{self.address:#x}: {self.mnemonic} {self.operands}"


Body = list[Instruction]


@dataclass
class Function:
    name: str
    body: Body
    callees: dict[int, str]
    """What is called, by the address of the call: its name, or the register that holds its address."""

    def __str__(self) -> str:
        return f"{self.name} ({self.body[0].address:#x})"

    @cached_property
    def loops(self) -> list[Body]:
        """The innermost loops, without what leaves them."""
        inside = {i.address for i in self.body}
        starts = {i.target for i in self.body if i.jumps} & inside
        blocks: dict[int, Body] = {}
        after: dict[int, set[int]] = {}
        current, ended, falls = -1, True, False
        for i in self.body:
            if ended or i.address in starts:
                if falls:
                    after[current].add(i.address)
                current = i.address
                blocks[current], after[current] = [], set()
            blocks[current].append(i)
            falls = i.mnemonic not in ENDS and not NEVER_RETURNS.search(self.callees.get(i.address, ""))
            ended = i.jumps or not falls
            if i.jumps and i.target in inside:
                after[current].add(i.target)
        # What nothing else leads to is where tables of jumps do.
        unreached = set(blocks).difference(*after.values())
        for start, block in blocks.items():
            if block[-1].jumps and block[-1].target < 0:
                after[start] |= unreached
        return [[i for start in sorted(loop) for i in blocks[start]] for loop in _innermost(set(blocks), after)]


def _innermost(blocks: set[int], after: dict[int, set[int]]) -> Iterator[set[int]]:
    """The cycles that hold no other: of each, what is left a cycle without the block that it is entered by."""
    for cycle in _cycles(blocks, after):
        entries = {to for start in blocks - cycle for to in after[start] & cycle}
        nested = list(_innermost(cycle - {min(entries or cycle)}, after))
        yield from nested or [cycle]


def _cycles(blocks: set[int], after: dict[int, set[int]]) -> list[set[int]]:
    """The strongly connected components of more than a lone block (Kosaraju's algorithm)."""
    before: dict[int, set[int]] = {block: set() for block in blocks}
    order, seen = list[int](), set[int]()
    for root in sorted(blocks):
        stack = [(root, False)]
        while stack:
            block, done = stack.pop()
            if done:
                order.append(block)
            elif block not in seen:
                seen.add(block)
                stack += [(block, True), *((to, False) for to in after[block] & blocks)]
    for block in blocks:
        for to in after[block] & blocks:
            before[to].add(block)
    cycles = []
    for root in reversed(order):
        cycle, waiting = set[int](), [root]
        while waiting:
            block = waiting.pop()
            if block in seen:
                seen.remove(block)
                cycle.add(block)
                waiting += before[block]
        if len(cycle) > 1 or root in after[root]:
            cycles.append(cycle)
    return [cycle for cycle in cycles if cycle]


class Library:
    """The functions of a shared library, by their symbols."""

    def __init__(self, path: str | Path) -> None:
        with Path(path).open("rb") as file:
            elf = ELFFile(file)
            symbols = elf.get_section_by_name(".symtab")
            if not isinstance(symbols, SymbolTableSection):
                raise ValueError(f"{path}: stripped of its symbols, its functions can't be told apart")
            functions = {
                s["st_value"]: (s.name, s["st_size"])
                for s in symbols.iter_symbols()
                if s["st_info"]["type"] == "STT_FUNC" and s["st_size"]
            }
            names = {address: name for address, (name, _) in functions.items()}
            slots: dict[int, str] = {}  # of pointers that the loader fills in
            dynamic, text = elf.get_section_by_name(".dynsym"), elf.get_section_by_name(".text")
            assert isinstance(dynamic, SymbolTableSection)
            assert text is not None
            for section in elf.iter_sections():
                for r in section.iter_relocations() if isinstance(section, RelocationSection) else ():
                    slots[r["r_offset"]] = dynamic.get_symbol(r["r_info_sym"]).name or names.get(r["r_addend"], "?")
            code, base = text.data(), text["sh_addr"]
            comment = elf.get_section_by_name(".comment")
            self.compiler = " ".join(comment.data().decode().split("\0")) if comment else "an unknown compiler"
        decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self.functions = []
        for address, (name, size) in sorted(functions.items()):
            found = decoder.disasm_lite(code[address - base :][:size], address)
            if body := [Instruction(at, at + n, mnemonic, operands) for at, n, mnemonic, operands in found]:
                self.functions.append(Function(name, body, _callees(body, names, slots)))

    def of(self, tier: str) -> list[Function]:
        """The functions that run on a tier. Their names tell that, though not the kernel."""
        return [f for f in self.functions if _tier(f) == tier]


def _tier(function: Function) -> str | None:
    found = re.search(r"vectorize_(avx2|avx512)", function.name)
    return found[1] if found else None


def _callees(body: Body, names: dict[int, str], slots: dict[int, str]) -> dict[int, str]:
    callees = {}
    inside = range(body[0].address, body[-1].end)
    for i in body:
        if i.mnemonic == "call" or (i.mnemonic == "jmp" and i.target >= 0 and i.target not in inside):
            slot = re.fullmatch(r"qword ptr \[rip ([+-]) (0x[0-9a-f]+)\]", i.operands)
            name = slots.get(i.end + int(slot[1] + slot[2], 16)) if slot else names.get(i.target)
            callees[i.address] = name or i.operands
    return callees


def misplaced_calls(library: Library, tier: str) -> list[str]:
    """Calls of what should have been inlined."""
    wrong = []
    for function in library.of(tier):
        for at, name in function.callees.items():
            # By register only what the loader has found is called, time and again: memcpy and its like.
            by_register = re.fullmatch(r"r\w\w?", name)
            known = NEVER_RETURNS.search(name) or MEMORY.search(name) or ONCE_A_ROW.search(name)
            if not (known or by_register or f"vectorize_{tier}" in name):
                wrong.append(f"{function} calls {name} at {at:#x}")
    return wrong


def lost_loops(library: Library, tier: str) -> list[str]:
    """Innermost loops that compute, but not as they should; functions without one that does."""
    wrong = []
    for function in library.of(tier):
        wide, narrow = 0, 0
        for loop in function.loops:
            packed = [i for i in loop if PACKED.match(i.mnemonic)]
            if not packed:
                continue
            if any(register in i.operands for i in packed for register in REGISTERS[tier]):
                wide += 1
                wrong += [f"{function} computes with scalars: {i}" for i in loop if SCALAR.match(i.mnemonic)]
            else:
                narrow += 1  # what is left of a row, vectorised by the compiler
            called = [function.callees[i.address] for i in loop if i.address in function.callees]
            wrong += [f"{function} calls {name} in a loop" for name in called if not MEMORY.search(name)]
        if wide <= narrow:
            wrong.append(f"{function} has {wide} loops of {'/'.join(REGISTERS[tier])} and {narrow} of narrower vectors")
    return wrong


def exponentials(library: Library, tier: str, number: str) -> int:
    """The functions that compute `exp` of whole vectors, by steps that are fused."""
    shift, distance, kind, steps = EXP[number]
    fused = re.compile(rf"vfn?m(add|sub)\d+{kind}$")
    widest = REGISTERS[tier][0]

    def has_it(loop: Body) -> bool:
        shifts = any(i.mnemonic == shift and widest in i.operands and i.operands.endswith(distance) for i in loop)
        return shifts and sum(bool(fused.match(i.mnemonic)) and widest in i.operands for i in loop) > steps

    return sum(any(has_it(loop) for loop in function.loops) for function in library.of(tier))


def strays(library: Library) -> list[str]:
    """Functions with wide vectors that are no tier's: an operation that was compiled by itself."""
    return [
        str(function)
        for function in library.functions
        if _tier(function) is None and any("ymm" in i.operands or "zmm" in i.operands for i in function.body)
    ]


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(_native.__file__)


@tiers
def test_the_kernels_are_there(library: Library, tier: str) -> None:
    """What the other tests look through is not nothing: each kernel has a function and a loop, and some have `exp`."""
    functions = library.of(tier)
    kernels = len(KERNELS)
    assert len(functions) >= kernels, library.compiler
    assert sum(len(function.loops) for function in functions) >= kernels, library.compiler
    for number in EXP:
        assert exponentials(library, tier, number), library.compiler


@tiers
def test_everything_is_inlined(library: Library, tier: str) -> None:
    assert misplaced_calls(library, tier) == [], library.compiler


@tiers
def test_loops_compute_with_whole_vectors(library: Library, tier: str) -> None:
    assert lost_loops(library, tier) == [], library.compiler


def test_wide_vectors_are_the_tiers_alone(library: Library) -> None:
    assert strays(library) == [], library.compiler
