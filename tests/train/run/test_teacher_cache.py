"""`cid cache`, and students that learn from what it kept."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cid import cli
from cid.cache import TeacherCache
from cid.train.config import resolve
from cid.train.data import Batches
from cid.train.methods import Ingredients, Training
from cid.train.models import build_model
from cid.train.run.inputs import Inputs
from tests import bounds, draws

# The teacher: three convolutions of up to 8 channels and the layer, asked in other batches than in training.
ROUNDING = bounds.logits(torch.ones(()), layers=4, terms=9 * 8)
COMMON = shlex.split("--limit 150 --device cpu --threads 1 --batch-size 32")
RUN = shlex.split(
    "--limit-test 60 --student cnn-2 --epochs 4 --teacher-epochs 2 --optimizer adamw --lr 0.01 --checkpoint-every 1"
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a trained teacher."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    arguments = [*COMMON, *RUN, "--teacher", "cnn-4", "--seeds", "0", "--methods", "labels"]
    assert cli.main(["distill", *arguments, "--out", str(folder)]) == 0
    return ["--teacher", "cnn-4", "--teacher-checkpoint", str(folder / "teacher/teacher.safetensors")]


def make(folder: Path, teacher: list[str], *options: str) -> Path:
    assert cli.main(["cache", *COMMON, *teacher, "--out", str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, teacher: list[str]) -> Path:
    return make(tmp_path_factory.mktemp("cache") / "exact", teacher, "--views", "3", "--dtype", "float32")


def distill(folder: Path, *options: str) -> int:
    return cli.main(["distill", *COMMON, *RUN, "--seeds", "0", "--out", str(folder), *options])


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("loss", "kd", "val_loss")} for line in lines]


def test_the_losses_are_those_of_the_running_teacher(cache: Path, teacher: list[str], tmp_path: Path) -> None:
    # The steps of SGD are as close as its gradients are; Adam's are not where a gradient is close to 0.
    options = [*teacher, "--optimizer", "sgd", "--lr", "1e-4", "--methods", "kd", "cid"]
    assert distill(tmp_path / "cached", *options, "--teacher-cache", str(cache)) == 0
    assert distill(tmp_path / "running", *options, "--views", "3") == 0
    cached, running = losses(tmp_path / "cached"), losses(tmp_path / "running")
    assert len(cached) == len(running) == 2 * 4
    for one, other in zip(cached, running, strict=True):
        assert one == pytest.approx(other, rel=2 * 16 * ROUNDING)  # that of the loss, over the steps of four epochs
    assert "views = 3" in (tmp_path / "cached/config.toml").read_text()
    assert json.loads((tmp_path / "cached/teacher/result.json").read_text())["test_accuracy"] > 0


@pytest.mark.parametrize("method", ["kd", "cid"])
@pytest.mark.parametrize(
    ("options", "tolerance"),
    # A loss is of second degree in what the teacher yields, in float16 where it is not told to be in float32.
    [([], 2**-10), (["--dtype", "float32"], 2 * ROUNDING), (["--top-k", "5"], 2e-2)],
)
def test_the_loss_of_one_batch(
    tmp_path: Path, teacher: list[str], method: str, options: list[str], tolerance: float
) -> None:
    path = make(tmp_path / "cache", teacher, "--views", "2", *options)
    config = resolve({"data.limit": 150, "models.teacher": "cnn-4", "models.teacher_checkpoint": teacher[-1]})
    inputs = Inputs.load(config)
    network = inputs.teacher().network.eval()
    found = []
    for kept in (None, TeacherCache(path)):
        batches = Batches(
            inputs.data.train,
            inputs.data.preprocessing,
            batch_size=32,
            pad=config.data.pad,
            flip=False,
            seed=9,
            views=2,
            cache=kept,
        )
        draws.seed(5)
        student = build_model("cnn-3", inputs.spec)
        dim = None if kept is None else kept.layout.feature_dim
        given = Ingredients(student, network if kept is None else None, inputs.spec, inputs.data.train.labels, dim)
        training = Training(config.method.options(method), given)
        found.append([training(batches.batch(batches.plan(epoch), 1)).loss for epoch in (0, 1)])
    torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=0.0)


def test_a_run_that_keeps_what_its_teacher_says(
    cache: Path, teacher: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, kept = tmp_path / "given", tmp_path / "kept"
    assert distill(given, *teacher, "--teacher-cache", str(cache), "--methods", "kd") == 0
    assert distill(kept, *teacher, "--views", "3", "--cache-teacher", "--methods", "kd", "at") == 0
    one, other = ((run / "kd-seed0/student.safetensors").read_bytes() for run in (given, kept))
    assert one == other
    assert TeacherCache(kept / "teacher-cache").layout == TeacherCache(cache).layout
    # What is there is not asked for again, but for one image, whose features tell their size.
    (kept / "kd-seed0/result.json").unlink()
    asked, in_view = [], Batches.in_view

    def noted(self: Batches, view: int, samples: range) -> Iterator[Tensor]:
        asked.append((view, len(samples)))
        return in_view(self, view, samples)

    monkeypatch.setattr(Batches, "in_view", noted)
    assert cli.main(["distill", "--resume", str(kept)]) == 0
    assert asked == [(0, 1)]


def test_an_interrupted_run_goes_on_to_the_same_bits(
    cache: Path, teacher: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*teacher, "--teacher-cache", str(cache), "--methods", "cid"]
    draw, left = TeacherCache.__getitem__, 10

    def interrupted(self: TeacherCache, key: Any) -> tuple[Tensor, Tensor]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return draw(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "__getitem__", interrupted)
        assert distill(tmp_path / "run", *options) == 130
    assert cli.main(["distill", "--resume", str(tmp_path / "run")]) == 0
    assert distill(tmp_path / "whole", *options) == 0
    name = "cid-seed0/student.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = tmp_path / "again"
    assert cli.main(["distill", "--config", str(tmp_path / "run/config.toml"), "--out", str(again)]) == 0
    assert (again / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


STALE: dict[str, tuple[list[str], str]] = {
    "data": (["--limit", "149"], "training images and labels: the cache has "),
    "split": (["--split-seed", "1"], "training images and labels: the cache has "),
    "crop": (["--pad", "1"], "pad: the cache has 2, here 1"),
    "flip": (["--flip"], "flip: the cache has False, here True"),
    "view seed": (["--view-seed", "4"], "view seed: the cache has 0, here 4"),
}


@pytest.mark.parametrize("kind", STALE)
def test_a_stale_cache_is_refused(
    cache: Path, teacher: list[str], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = STALE[kind]
    assert distill(tmp_path / "run", *teacher, "--teacher-cache", str(cache), *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cid: error: --teacher-cache: {cache}: was made from something else: {message}")
    assert line.count("the cache has") == 1
    assert not (tmp_path / "run").exists()
    arguments = [*COMMON, *teacher, "--views", "3", "--dtype", "float32", "--out", str(cache), *options]
    before = (cache / "manifest.json").read_bytes()
    assert cli.main(["cache", *arguments]) == 1
    assert f"cid: error: --out: {cache}: was made from something else: {message}" in capsys.readouterr().err
    assert (cache / "manifest.json").read_bytes() == before


def test_another_teacher_is_refused(
    cache: Path, teacher: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*RUN, "--teacher", "cnn-4", "--seeds", "1", "--methods", "labels", "--out", str(tmp_path / "other")]
    assert cli.main(["distill", *COMMON, *arguments]) == 0
    other = str(tmp_path / "other/teacher/teacher.safetensors")
    capsys.readouterr()
    options = ["--teacher", "cnn-4", "--teacher-checkpoint", other, "--teacher-cache", str(cache)]
    assert distill(tmp_path / "run", *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "was made from something else: teacher weights: the cache has " in line
    assert line.count("the cache has") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "options", "code", "message"),
    [
        ("distill", ["--teacher-cache", "CACHE", "--views", "2"], 1, "--views: got 2, but CACHE has 3"),
        ("distill", ["--teacher-cache", "nowhere"], 1, "--teacher-cache: nowhere: is no teacher cache"),
        ("cache", [], 2, "--views: not given, accepted: how many augmented views"),
        ("cache", ["--views", "0"], 2, "--views: got 0, accepted: a number of at least 1"),
        ("cache", ["--views", "2", "--pad", "0"], 2, "--views: got 2, accepted: 1 where nothing is random"),
        ("cache", ["--views", "2", "--top-k", "10"], 2, "--top-k: got 10, accepted: from 1 to 9"),
        ("cache", ["--views", "2", "--teacher", "cnn-5"], 1, "--teacher-checkpoint: "),
    ],
)
def test_bad_values_are_one_line(
    cache: Path,
    teacher: list[str],
    tmp_path: Path,
    command: str,
    options: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [str(cache) if option == "CACHE" else option for option in options]
    assert cli.main([command, *COMMON, *teacher, *options, "--out", str(tmp_path / "out")]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cid: error: {message.replace('CACHE', str(cache))}")
    assert not (tmp_path / "out").exists()


def test_the_teachers_weights_must_be_given(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(tmp_path / "run", "--teacher-cache", str(cache)) == 2
    assert "--teacher-cache: needs the weights that it was made with" in capsys.readouterr().err
    assert cli.main(["cache", "--views", "2", "--out", str(tmp_path / "cache")]) == 2
    assert "--teacher-checkpoint: not given" in capsys.readouterr().err


def test_without_augmentation_there_is_one_view(
    teacher: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "cache", teacher, "--pad", "0")
    output = capsys.readouterr().out
    assert output.startswith(f"shard 1 of 1\n{tmp_path / 'cache'}: 120 samples in 1 view, 36 bytes each, 0.0 MB\n")


KILLED = """
import os, signal, sys
from pathlib import Path
from cid import cli

replace, left = Path.replace, 8

def until_killed(self, target):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = until_killed
cli.main(sys.argv[1:])
"""


def test_a_killed_cache_goes_on(teacher: list[str], tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = ["--views", "6"]
    child = [sys.executable, "-c", KILLED, "cache", *COMMON, *teacher, *options, "--out", str(killed)]
    assert subprocess.run(child, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert len(list(killed.glob(".*.tmp"))) == 1  # written, not yet renamed
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("*.npy")}
    assert len(kept) == 3
    make(killed, teacher, *options)
    make(whole, teacher, *options)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
