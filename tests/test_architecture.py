"""The house: which room may know which, and that none grows beyond what is read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "cid"

# From the ground up: a room imports from itself and from those before it, within functions and for types, too.
ROOMS = (
    "_errors", "_files", "_checks", "_native",
    "backends.options", "backends.kernels", "backends.backend", "backends.autocast", "backends.targets",
    "backends.composed", "backends.reference", "backends.fused", "backends.native", "backends.triton", "backends.ops",
    "backends", "functional", "propensity",
    "_mirror", "_across", "context", "head", "losses", "capture", "student", "teacher", "balance", "distiller", "cache",
    "integrations", "train.settings", "train.sections", "train.files", "train.states", "train.ranks", "train.data",
    "train.models", "train.sharding",
    "train.methods", "train.presets", "train.config", "train.options", "train.networks",
    "train.teachers", "train.folder", "train.scoring", "train.results", "train.run", "train.transfer",
    "train.finetune", "train.evaluation", "train.ship", "train.distillation", "bench", "train.study", "cli",
    "__main__",
)  # fmt: skip
LONGEST = 400


def room(module: str) -> str | None:
    """The room of a module of the package; None of the front doors, which know all that they show."""
    name = module.removeprefix("cid").removeprefix(".")
    return next((one for one in ROOMS if name == one or name.startswith(f"{one}.")), None)


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, each by its own name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.partition(".")[0] == "cid")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "cid":
            assert node.level == 0
            folder = PACKAGE.parent.joinpath(*node.module.split("."))
            for one in node.names:
                inside = node.module != "cid" and (
                    (folder / one.name).is_dir() or (folder / f"{one.name}.py").is_file()
                )
                yield f"{node.module}.{one.name}" if inside else node.module


FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@pytest.mark.parametrize("module", [name for name in FILES if name not in ("cid", "cid.train")])
def test_no_room_knows_one_above_it(module: str) -> None:
    own = room(module)
    assert own is not None, "a new room: give it a place among ROOMS"
    for other in imports(FILES[module]):
        assert other != "cid", "the package's root is for its users: name the module itself"
        place = room(other)
        assert place is not None, other
        assert ROOMS.index(place) <= ROOMS.index(own), f"{module} imports {other}, which is above it"


def test_no_file_is_too_long() -> None:
    folders = ("python", "tests", "benches", "tools", "docs", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py*") if path.suffix in (".py", ".pyi")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
