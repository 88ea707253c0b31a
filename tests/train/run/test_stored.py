"""Runs over images that are read as they are needed, by the command line."""

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cid import cli
from cid.train.run import loop
from tests.train import fakes
from tests.train.run.test_kill import started, wait_for

TINY = shlex.split(
    "--memory 0 --teacher cnn-2 --student cnn-2 --epochs 2 --teacher-epochs 1 --batch-size 8 --seeds 0 --device cpu "
    "--threads 1"
)


def weights(run: Path, *names: str) -> list[bytes]:
    return [next((run / name).glob("*.safetensors")).read_bytes() for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("images") / "set"
    fakes.image_folder(base, {"train": 30, "val": 5, "test": 4})
    return base


def test_a_streamed_run_ends_as_one_in_memory_and_is_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["distill", "--data", str(folder), *TINY, "--methods", "kd", "kd-ipw", "--ipw-folds", "2"]
    assert cli.main([*arguments, "--workers", "1", "--out", str(tmp_path / "stored")]) == 0
    assert "read as needed" in capsys.readouterr().out
    assert cli.main([*arguments, "--memory", "1", "--out", str(tmp_path / "kept")]) == 0
    assert "read as needed" not in capsys.readouterr().out
    names = ("kd-seed0", "kd-ipw-seed0")
    for one, other in zip(weights(tmp_path / "stored", *names), weights(tmp_path / "kept", *names), strict=True):
        assert one == other
    run = str(tmp_path / "stored")
    assert cli.main(["eval", run]) == 0
    assert cli.main(["report", run]) == 0
    assert cli.main(["transfer", run, "--to", str(folder), "--method", "kd"]) == 0
    cache = ["--teacher", "cnn-2", "--teacher-checkpoint", f"{run}/teacher/teacher.safetensors", "--views", "2"]
    data = ["--data", str(folder), "--memory", "0", "--workers", "0"]
    assert cli.main(["cache", *data, *cache, "--device", "cpu", "--out", str(tmp_path / "cache")]) == 0
    more = ["--workers", "0", "--methods", "kd", *cache, "--teacher-cache", str(tmp_path / "cache")]
    assert cli.main([*arguments, *more, "--out", str(tmp_path / "cached")]) == 0
    Image.fromarray(np.zeros((10, 8, 3), np.uint8)).save(folder / "train/dog/0.png", compress_level=0)
    assert cli.main([*arguments, *more, "--out", str(tmp_path / "other")]) == 1
    assert "training files" in capsys.readouterr().err


def test_augmented_and_mixed_it_goes_on_in_the_middle_of_an_epoch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        *("distill", "--data", str(folder), *TINY, "--methods", "labels", "kd", "cid", "--crop", "9", "--workers", "0"),
        *("--randaugment", "1", "9", "--mixup", "0.4", "--cutmix", "1", "--beta", "auto"),
    ]
    assert cli.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    seen = 0

    def stopped(self: loop.Trainer, losses: object) -> None:
        nonlocal seen
        seen += 1
        self._stop.signal_number = signal.SIGINT if seen in (3, 20, 37) else None
        before(self, losses)  # type: ignore[arg-type]

    before = loop.Trainer._save_if_due
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_save_if_due", stopped)
        code = cli.main([*arguments, "--out", str(tmp_path / "parts")])
        resumed = 0
        while code == 130:
            resumed += 1
            code = cli.main(["distill", "--resume", str(tmp_path / "parts")])
    assert (code, resumed) == (0, 3)
    names = ("teacher", "labels-seed0", "kd-seed0", "cid-seed0")
    assert weights(tmp_path / "parts", *names) == weights(tmp_path / "whole", *names)


def test_an_unreadable_image_ends_the_run_or_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.image_folder(tmp_path / "set", {"train": 12, "test": 2})
    (tmp_path / "set/train/dog/5.png").write_bytes(b"no image")
    arguments = ["distill", "--data", str(tmp_path / "set"), *TINY, "--methods", "labels", "--workers", "0"]
    assert cli.main([*arguments, "--out", str(tmp_path / "a")]) == 2
    assert "cid: error: --data: train/dog/5.png: cannot be read: " in capsys.readouterr().err
    assert cli.main([*arguments, "--skip-unreadable", "--out", str(tmp_path / "b")]) == 0
    assert list(json.loads((tmp_path / "b/unreadable.json").read_text())) == ["train/dog/5.png"]


def lives(process: int) -> bool:
    """Whether a process is there, and more than its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(process: int) -> list[int]:
    """The processes that another one started, and those that these did."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if parent == process:
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are counted in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Neither where all of a group are told to stop, nor where the run is killed by itself."""
    run = tmp_path / "run"
    arguments = ["--data", str(folder), *TINY, "--epochs", "500", "--methods", "labels", "--workers", "1"]
    with started(*arguments, "--checkpoint-every", "1", "--out", str(run)) as process:
        wait_for(run / "labels-seed0/checkpoint.safetensors", process)
        others = children(process.pid)
        assert len(others) >= 2
        for each in [*others, process.pid] if number == signal.SIGTERM else [process.pid]:
            os.kill(each, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number), errors
    if number == signal.SIGTERM:
        assert errors.strip() == f"cid: interrupted; go on with: cid distill --resume {run}"
    deadline = time.monotonic() + 30
    while left := [each for each in others if lives(each)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
