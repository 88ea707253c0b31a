"""Builds what is published, checks it, and tests a wheel where nothing else of this project is.

Needs uv alone: the tools, with their versions, are those of requirements-tools.txt. `make wheel`, `make sdist` and
`make wheel-test` run this, and so does .github/workflows/wheels.yml on every platform.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
# PyTorch's own wheels for Linux need this glibc. Zig links against its symbols, however new the machine's own is.
COMPATIBILITY = ("--zig", "--compatibility", "manylinux_2_28") if sys.platform == "linux" else ()

TEST_PACKAGES = ("hypothesis", "pytest", "pytest-xdist")
LEFT_OUT = {
    "test_architecture.py": "reads the source tree",
    "test_docs.py": "reads the source tree",
    "backends/native/test_disassembly.py": "reads the symbols, which zig's linker strips; `make test` reads them",
}
SMOKE = """
import sys, torch, cid
from cid import _native
assert cid.__file__.startswith(sys.prefix), cid.__file__
assert _native.build_info()["profile"] == "release"
logits = torch.randn(8, 10, requires_grad=True)
cid.functional.kd_loss(logits, torch.randn(8, 10), backend="native").backward()
assert logits.grad.norm() > 0
print("cid", cid.__version__, _native.build_info()["simd"], "under Python", sys.version.split()[0], flush=True)
"""


def build() -> None:
    """Builds the wheel into dist/ and checks it."""
    empty(DIST, "*.whl")
    tool("maturin", "build", "--release", "--locked", "--out", DIST, *COMPATIBILITY)
    wheel = only(DIST.glob("*.whl"))
    check_content(wheel)
    tool("twine", "check", "--strict", wheel)
    tool("abi3audit", "--strict", wheel)
    if sys.platform == "linux":
        tool("auditwheel", "show", wheel)


def sdist() -> None:
    """Builds the source distribution into dist/, and from it alone a wheel into dist/from-sdist/."""
    empty(DIST, "*.tar.gz")
    tool("maturin", "sdist", "--out", DIST)
    source = only(DIST.glob("*.tar.gz"))
    tool("twine", "check", "--strict", source)
    empty(DIST / "from-sdist", "*.whl")
    # As pip does it: unpacked elsewhere, with the build requirements that it names itself.
    run("uv", "build", "--wheel", "--out-dir", DIST / "from-sdist", source)
    check_content(only((DIST / "from-sdist").glob("*.whl")))


def test(wheel: Path, python: str, arguments: Iterable[str]) -> None:
    """Tests the wheel in an empty environment, in a folder that has the tests and no source."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = ",".join(tomllib.load(file)["project"]["optional-dependencies"])
    with TemporaryDirectory() as name:
        folder = Path(name)
        run("uv", "venv", "--quiet", "--python", python, folder / "venv")
        programs = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        pinned = ("--constraint", ROOT / "requirements-dev.txt")
        install = ("uv", "pip", "install", "--quiet", "--python", folder / "venv", *pinned)

        run(*install, wheel)
        run(programs / "python", "-c", SMOKE, cwd=folder)
        run(programs / "cid", "--help", cwd=folder)

        run(*install, f"{wheel}[{extras}]", *TEST_PACKAGES)
        for beside in ("benches", "examples", "tests"):
            shutil.copytree(ROOT / beside, folder / beside, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)  # pytest's settings
        for left_out, reason in LEFT_OUT.items():
            print(f"left out: tests/{left_out}: {reason}", flush=True)
            (folder / "tests" / left_out).unlink()
        run(programs / "python", "-m", "pytest", "tests", "--pyargs", "cid", *arguments, cwd=folder)


def check_content(wheel: Path) -> None:
    """The wheel holds the package as it is committed, the library, the licence, and nothing else."""
    command = ["git", "ls-files", "python/cid"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    committed = {name.removeprefix("python/") for name in listed.splitlines()}
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    library = {name for name in names if name.startswith("cid/_native.") and name.endswith((".so", ".pyd"))}
    if stray := names - info - library - committed:
        sys.exit(f"{wheel.name}: not committed: {sorted(stray)}")
    if missing := committed - names:
        sys.exit(f"{wheel.name}: missing: {sorted(missing)}")
    if len(library) != 1 or not any(name.endswith("licenses/LICENSE") for name in info):
        sys.exit(f"{wheel.name}: one library and a licence are needed: {sorted(library | info)}")
    if "-cp311-abi3-" not in wheel.name:
        sys.exit(f"{wheel.name}: is not for every Python from 3.11 on")


def tool(*command: str | Path) -> None:
    """Runs one of the tools of requirements-tools.txt."""
    run("uv", "run", "--quiet", "--no-project", "--with-requirements", "requirements-tools.txt", "--", *command)


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Runs a command without what this environment would have it import; ends where it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CID_", "PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: failed with {done.returncode}")


def empty(folder: Path, pattern: str) -> None:
    """Removes what an earlier build left."""
    for old in folder.glob(pattern):
        old.unlink()


def only(files: Iterable[Path]) -> Path:
    """The one file that there must be."""
    found = [*files]
    if len(found) != 1:
        sys.exit(f"one file is needed, found {[f.name for f in found]}: build it first")
    return found[0]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help=build.__doc__)
    commands.add_parser("sdist", help=sdist.__doc__)
    testing = commands.add_parser("test", help=test.__doc__)
    testing.add_argument("--wheel", type=Path, help="default: the one in dist/")
    testing.add_argument("--python", default="3.11", help="version or path of the interpreter (default: %(default)s)")
    testing.add_argument("arguments", nargs="*", help="for pytest, after --")
    options = parser.parse_args()
    match options.command:
        case "build":
            build()
        case "sdist":
            sdist()
        case "test":
            test((options.wheel or only(DIST.glob("*.whl"))).resolve(), options.python, options.arguments)


if __name__ == "__main__":
    main()
