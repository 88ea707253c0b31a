"""A run that is interrupted, then killed, then goes on, ends in the bits of one that was left alone."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cid import cli
from cid.train.methods import DEFAULT_METHODS

SETTINGS = shlex.split(
    "--limit 300 --limit-test 60 --teacher cnn-3 --student cnn-2 --teacher-epochs 3 --epochs 12 --batch-size 16 "
    "--seeds 0 --device cpu --checkpoint-every 1"
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the child processes: sums over threads depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which does not outlive the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cid.cli", "distill", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=Path.cwd()
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Waits until a file is there."""
    deadline = time.monotonic() + 120
    while not path.is_file():
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode} before {path.name}: {process.communicate()}")
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL, and no SIGINT for one process alone")
@pytest.mark.usefixtures("one_thread")
def test_interrupted_killed_and_resumed_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"

    with started(*SETTINGS, "--out", str(run)) as process:
        wait_for(run / "labels-seed0" / "checkpoint.safetensors", process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip() == f"cid: interrupted; go on with: cid distill --resume {run}"
    assert "Traceback" not in output
    assert not (run / "labels-seed0" / "result.json").exists()

    with started("--resume", str(run)) as process:
        wait_for(run / "cid-seed0" / "checkpoint.safetensors", process)
        process.send_signal(signal.SIGKILL)  # at once, with eleven epochs to go
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (run / "kd-seed0" / "result.json").exists()
    assert not (run / "cid-seed0" / "result.json").exists()

    assert cli.main(["distill", "--resume", str(run)]) == 0
    assert cli.main(["distill", *SETTINGS, "--out", str(whole)]) == 0
    for name in ("teacher/teacher", *(f"{method}-seed0/student" for method in DEFAULT_METHODS)):
        assert (run / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes(), name
    # The losses and accuracies of every epoch, each once.
    one, other = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (run, whole)
    )
    assert one == other
