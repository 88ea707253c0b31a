"""The script of a day with a GPU: each stage within its time, none in the way of the next, results as they come."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benches" / "gpu_day.sh"
# Windows has a program of that name, which waits.
WITHOUT = sys.platform == "win32" or shutil.which("timeout") is None
pytestmark = pytest.mark.skipif(WITHOUT, reason="needs a shell with coreutils")

# In place of Python: goes by the module that it is to run.
STAND_IN = """#!/bin/sh
echo "ran: $*"
case "$*" in
    *"$FAILS"*) exit 3 ;;
    *"$HANGS"*) sleep 100 & sleep 100 ;;
esac
while [ $# -gt 0 ]; do [ "$1" = --out ] && echo result > "$2"; shift; done
exit 0
"""


def day(
    tmp_path: Path, *arguments: str, fails: str = "-", hangs: str = "-", seconds: int = 54
) -> subprocess.CompletedProcess[str]:
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.replace('*"$FAILS"*', f'*" {fails} "*').replace('*"$HANGS"*', f'*" {hangs} "*'))
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "cid.whl").touch()
    env = os.environ | {"PYTHON": str(stand_in), "OUT": str(tmp_path / "out"), "DAY_SECONDS": str(seconds)}
    command = [str(SCRIPT), *arguments, str(tmp_path / "wheels")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)


def outcomes(said: str) -> dict[str, str]:
    """The table at the end."""
    rows = said.rpartition("== the whole day")[2].splitlines()[1:]
    return {row.split()[0]: row.split(" s  ")[1] for row in rows if " s  " in row}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_all_is_well(tmp_path: Path, device: str) -> None:
    done = day(tmp_path, "--device", device)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(outcomes(done.stdout).values()) == {"ok"}
    kept = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"log.txt", "goals.json", "tiles.json", "step.json"} <= kept
    assert len(kept) <= 8
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "pip install --quiet --no-index --no-deps" in log
    assert "cid.whl" in log


def test_a_stage_that_fails_or_hangs_is_in_nobodys_way(tmp_path: Path) -> None:
    began = time.monotonic()
    done = day(tmp_path, fails="pytest", hangs="benches.tiles", seconds=27)
    assert time.monotonic() - began < 27
    assert done.returncode == 1
    assert outcomes(done.stdout) == {
        "install": "ok", "tests": "failed with 3", "whole": "ok", "goals": "ok", "tiles": "cut off after 6 s",
        "step": "ok", "counters": "ok",
    }  # fmt: skip
    assert (tmp_path / "out" / "step.json").read_text() == "result\n"


def test_where_results_find_no_room_they_are_kept_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "out").touch()  # no folder, and none can be made
    done = day(tmp_path)
    assert done.returncode == 1
    assert set(outcomes(done.stdout).values()) == {"ok"}
    elsewhere = Path(done.stdout.rpartition("the rest is in ")[2].strip())
    assert (elsewhere / "step.json").read_text() == "result\n"
    shutil.rmtree(elsewhere)


def test_without_wheels_or_with_another_device_it_says_what_it_takes(tmp_path: Path) -> None:
    for arguments in (["--device", "tpu", str(tmp_path)], [str(tmp_path)], []):
        done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "usage: benches/gpu_day.sh [--device cuda|cpu] WHEELS" in done.stderr
