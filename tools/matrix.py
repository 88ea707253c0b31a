"""The test suite under other processors' instructions, threads, draws and the oldest PyTorch: `make test-matrix`.

One line a run: its name, how it ended, how long it took. What each printed is in `target/test-matrix/`.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "target" / "test-matrix"
# These follow from PyTorch's version, or are its own.
OF_PYTORCH = re.compile(r"(torch|torchvision|triton|numpy|setuptools|nvidia-\S+|cuda-\S+)==")
OF_ITS_TIME = ("numpy<2.4", "setuptools<82")  # for Triton's interpreter, and for PyTorch's compiler
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# Few runs that have each value of each variable: a failure is looked for with one at a time.
RUNS: dict[str, dict[str, str]] = {
    "plain": {},
    "default": {"ATEN_CPU_CAPABILITY": "default", "CID_TEST_SEED": "1", "CID_TEST_THREADS": "1"},
    "avx2": {**AVX2, "CID_SIMD": "avx2", "CID_TEST_SEED": "2", "CID_TEST_THREADS": "2"},
    "oldest": {},
    "2.11": {},
}
PYTORCH = ("oldest", "2.11")


def with_pytorch(version: str) -> Path:
    """The interpreter of an environment with another PyTorch, made where there is none."""
    if version == "oldest":
        declared = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        assert declared is not None
        version = declared[1]
    wanted, folder = f"torch=={version}.*", ROOT / "target" / f"torch-{version}"
    python, made = folder / "bin" / "python", folder / "made-of.txt"
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not OF_PYTORCH.match(line)]
    requirements = "\n".join([*kept, wanted, "torchvision", *OF_ITS_TIME, ""])
    if not made.is_file() or made.read_text(encoding="utf-8") != requirements:
        subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        install = ["uv", "pip", "install", "--quiet", "--python", str(python), "--requirements", "-"]
        subprocess.run(install, input=requirements, text=True, check=True)
        made.write_text(requirements, encoding="utf-8")
    # The kernels are of any PyTorch: a wheel of this tree, as users install it, but editable.
    environment = {**os.environ, "VIRTUAL_ENV": str(folder), "PYO3_PYTHON": str(python)}
    subprocess.run(["maturin", "develop", "--quiet", "--release", "--uv", "--locked"], env=environment, check=True)
    return python


def run(name: str, variables: dict[str, str], arguments: list[str]) -> bool:
    """Runs the suite; whether it passed."""
    python = with_pytorch(name) if name in PYTORCH else Path(sys.executable)
    log, start = LOGS / f"{name}.txt", time.monotonic()
    suite = ["-m", "pytest", "-n", "auto", "--maxprocesses", "8", "--dist", "worksteal", *arguments]
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [str(python), *suite], cwd=ROOT, env=os.environ | variables, stdout=file, stderr=file, check=False
        )
    counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", log.read_text(encoding="utf-8").rpartition("\n=")[2])
    outcome = "passed" if done.returncode == 0 else f"FAILED, see {log.relative_to(ROOT)}"
    print(f"{name:10} {time.monotonic() - start:6.0f} s  {', '.join(counts) or 'no tests'}: {outcome}", flush=True)
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Runs those that are named, else all; what follows `--` is for pytest."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    names, rest = arguments[:at] or list(RUNS), arguments[at + 1 :]
    if unknown := set(names) - set(RUNS):
        print(f"matrix.py: got {', '.join(sorted(unknown))}, accepted: {', '.join(RUNS)}", file=sys.stderr)
        return 2
    LOGS.mkdir(parents=True, exist_ok=True)
    passed = [run(name, RUNS[name], rest) for name in names]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
