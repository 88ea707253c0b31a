"""What to measure: terms, sizes and presets, known without importing PyTorch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cid._errors import ConfigError

Size = tuple[int, ...]

DTYPES = ("float32", "float64", "bfloat16", "float16")
TIERS = ("avx512", "avx2", "baseline", "fallback")
DEVICES = {"cpu": "native", "cuda": "triton"}
"""Each with the backend that is measured there."""
AGAINST = ("eager", "compile", "liger", "all", "none")
PRESET_NAMES = ("goals", "sweep", "small")
INPUT_SETS = 3
"""Sets of inputs that the rounds rotate through."""


@dataclass(frozen=True)
class Kind:
    """The sizes that a term takes.

    Attributes:
        axes: what its numbers mean; a last one in brackets may be left out.
        defaults: the sizes measured where a term is named without one.
    """

    axes: str
    defaults: tuple[Size, ...] = ((64, 100), (4096, 1000))

    @property
    def ranks(self) -> tuple[int, ...]:
        """How many numbers a size may have."""
        most = len(re.findall(r"\bx\b", self.axes)) + 1
        return (most - 1, most) if self.axes.endswith("]") else (most,)


KINDS = {
    "kd": Kind("rows x classes"),
    "kd-reverse": Kind("rows x classes"),
    "kd-js": Kind("rows x classes"),
    "sample": Kind("rows x features", ((64, 100), (4096, 1000), (4096, 2048))),
    "class": Kind("rows x features [x classes]", ((64, 100), (4096, 1000), (4096, 512, 100))),
    "cross-entropy": Kind("rows x classes"),
    "context-weights": Kind("rows x classes"),
    "accumulate": Kind("rows x features [x classes]", ((64, 100), (4096, 1000), (4096, 512, 1000))),
    "marginal": Kind("rows x classes [x features]"),
    "cid": Kind("rows x student x teacher x classes", ((64, 128, 128, 100), (4096, 128, 256, 1000))),
}
TERM_NAMES = tuple(KINDS)


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes:
        term: one of `TERM_NAMES`.
        size: with all its numbers, see `complete`.
        dtype: of the float inputs, one of `DTYPES`.
        threads: of PyTorch's pool.
        device: one of `DEVICES`.
    """

    term: str
    size: Size
    dtype: str
    threads: int
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """As JSON and the tables hold it."""
        return {**asdict(self), "size": text(self.size)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Case:
        """Reads what `to_json` gave."""
        return cls(**{**row, "size": parse(row["size"])})


def text(size: Size) -> str:
    """A size as it is written on the command line."""
    return "x".join(map(str, size))


def parse(written: str) -> Size:
    """Reads `4096x1000`, or with names `B64-Ds128-Dt128-C100`.

    Raises:
        ValueError: it is no such thing.
    """
    match = re.fullmatch(r"B(\d+)-Ds(\d+)-Dt(\d+)-C(\d+)", written)
    numbers = match.groups() if match else written.split("x")
    if not all(re.fullmatch(r"[1-9]\d*", number) for number in numbers) or not 2 <= len(numbers) <= 4:
        raise ValueError(f"got {written!r}, accepted: ROWSxCOLUMNS such as 4096x1000, with three or four numbers for "
                         "the terms that take them, or B64-Ds128-Dt128-C100; each number at least 1")  # fmt: skip
    return tuple(map(int, numbers))


def complete(term: str, size: Size) -> Size:
    """A size with the number that may be left out: the classes of class and accumulate, the features of marginal."""
    if len(size) == KINDS[term].ranks[-1]:
        return size
    return (*size, 128 if term == "marginal" else min(size[1], 1000))


def chosen(
    terms: Sequence[str], sizes: Sequence[Size], preset: str | None, device: str = "cpu"
) -> list[tuple[str, Size]]:
    """Terms and their sizes, as the options of `cid bench` ask.

    Args:
        terms: named ones; all, if empty.
        sizes: each serves the terms that take as many numbers.
        preset: one of `PRESET_NAMES`, or `"accuracy"`.
        device: one of `DEVICES`, which have goals of their own.

    Raises:
        ConfigError: a size serves none of the terms, a named term is left without one, or a preset is given too.
    """
    if sizes and preset:
        raise ConfigError(f"--preset: got {preset} together with --size, accepted: one of the two")
    if sizes:
        pairs = [(term, size) for term in terms or TERM_NAMES for size in sizes if len(size) in KINDS[term].ranks]
        accepted = "; ".join(f"{term}: {KINDS[term].axes}" for term in terms or TERM_NAMES)
        for size in sizes:
            if all(size != used for _, used in pairs):
                raise ConfigError(f"--size: got {text(size)}, accepted: {accepted}")
        for term in terms:
            if all(term != used for used, _ in pairs):
                raise ConfigError(f"--size: got none for {term}, accepted: {accepted}")
    elif preset or not terms:
        preset = preset or "goals"
        rows = _gpu_goals() if (preset, device) == ("goals", "cuda") else _ROWS[preset]()
        pairs = [(term, size) for term, size in rows if not terms or term in terms]
    else:
        pairs = [(term, size) for term in terms for size in KINDS[term].defaults]
    return list(dict.fromkeys((term, complete(term, size)) for term, size in pairs))


def _each_term(size: Size, whole: Iterable[Size] = ()) -> Iterator[tuple[str, Size]]:
    for term in TERM_NAMES:
        if term != "cid":
            yield term, size
    for numbers in whole:
        yield "cid", numbers


def _goals() -> Iterator[tuple[str, Size]]:
    yield from _each_term((64, 100), [(64, 128, 128, 100), (4096, 128, 256, 1000), (256, 512, 2048, 1000)])
    yield from (("kd", size) for size in ((256, 1000), (4096, 1000), (512, 128256)))
    yield "sample", (4096, 2048)
    yield "class", (4096, 512, 100)
    yield "accumulate", (4096, 512, 1000)


def _gpu_goals() -> Iterator[tuple[str, Size]]:
    """What only memory bounds, on many rows and on long ones; what has products; and the whole criterion."""
    for size in ((16384, 1000), (4096, 128256)):
        yield from ((term, size) for term in ("kd", "kd-reverse", "kd-js", "cross-entropy", "context-weights"))
    yield "sample", (16384, 2048)
    yield "accumulate", (16384, 512, 1000)
    yield "class", (16384, 512, 1000)
    yield "marginal", (16384, 1000, 512)
    yield "cid", (4096, 512, 2048, 1000)
    yield "cid", (64, 128, 128, 100)


def _small() -> Iterator[tuple[str, Size]]:
    yield from _each_term((6, 5), [(6, 4, 3, 5)])


def _sweep() -> Iterator[tuple[str, Size]]:
    """A coarse grid, without what takes over 1.6 GB of inputs or eager PyTorch over about 3 s a call."""
    grid: list[tuple[str, Size]] = []
    for rows in (1, 32, 512, 8192):
        for classes in (2, 100, 4000, 128256):
            logits = ("kd", "kd-reverse", "kd-js", "cross-entropy", "context-weights", "marginal")
            grid += [(term, (rows, classes)) for term in logits]
        for features in (16, 256, 4096):
            grid += [("sample", (rows, features)), ("accumulate", (rows, features, 1000))]
            # Eager PyTorch makes rows x rows matrices of it: about ten passes, and three products.
            if rows**2 * (3e-8 + features * 1.2e-10) < 3:
                grid.append(("class", (rows, features, 100)))
        grid += [("cid", (rows, *rest)) for rest in ((16, 16, 2), (128, 256, 100), (512, 2048, 1000), (64, 768, 32000))]
    for term, size in sorted(grid, key=lambda pair: TERM_NAMES.index(pair[0])):
        columns = size[1] + size[2] + 2 * size[3] if term == "cid" else 2 * size[1]
        if 4 * INPUT_SETS * size[0] * columns <= 1.6e9:
            yield term, size


def _accuracy() -> Iterator[tuple[str, Size]]:
    yield from _each_term((64, 100), [(64, 32, 48, 10)])


_ROWS = {"goals": _goals, "sweep": _sweep, "small": _small, "accuracy": _accuracy}
