"""Whole runs by the command line, in this process, on a tiny budget."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from cid import cli
from cid._errors import CheckpointError
from cid.train import files, load_student
from cid.train.config import read_toml, resolve
from cid.train.data import load_dataset
from tests import draws
from tests.disk import fill_up
from tests.train import fakes

BATCH = 32
METHODS = ("labels", "kd", "cid")
TINY = shlex.split(
    f"--limit 150 --limit-test 60 --teacher cnn-4 --student cnn-2 --epochs 3 --teacher-epochs 2 --batch-size {BATCH} "
    f"--optimizer adamw --lr 0.01 --seeds 0 1 --split-seed {draws.SHIFT} --device cpu "
    f"--methods {' '.join(METHODS)}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert cli.main(["distill", *TINY, "--out", str(folder)]) == 0
    return folder


def test_a_run_leaves_everything(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        "config.toml",
        "data.json",
        "metrics.jsonl",
        "table.txt",
        "table.json",
        "curves.png",
        "teacher",
        *(f"{method}-seed{seed}" for method in METHODS for seed in (0, 1)),
    }
    assert {path.name for path in (run / "cid-seed0").iterdir()} == {
        "checkpoint.safetensors",
        "student.safetensors",
        "student.json",
        "result.json",
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["name"], line["epoch"]) for line in lines] == [
        *(("teacher", epoch) for epoch in range(2)),
        *((f"{method}-seed{seed}", epoch) for seed in (0, 1) for method in METHODS for epoch in range(3)),
    ]
    table = json.loads((run / "table.json").read_text())
    assert [row["method"] for row in table["methods"]] == ["teacher", *METHODS, "cid, no head"]
    assert [row["networks"] for row in table["methods"]] == [1, 2, 2, 2, 2]
    assert len(table["differences"]) == 6


def test_students_of_a_seed_start_from_the_same_weights(run: Path, tmp_path: Path) -> None:
    # With a learning rate of nearly nothing they end there, too.
    arguments = [*TINY, "--lr", "1e-30", "--weight-decay", "0", "--epochs", "2", "--seeds", "3"]
    assert cli.main(["distill", *arguments, "--out", str(tmp_path / "x")]) == 0
    weights = [
        next(value for key, value in load_student(tmp_path / "x" / f"{method}-seed3").named_parameters())
        for method in METHODS
    ]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_loaded_students_predict_what_was_scored(run: Path) -> None:
    config = resolve({}, read_toml(run / "config.toml"))
    test = load_dataset(config.data).test
    for method in METHODS:
        student = load_student(run / f"{method}-seed1")
        assert not student.training
        # In batches as it was scored: in others a close decision may be rounded to fall the other way.
        logits = torch.cat([student(images.float() / 16) for images in test.images.split(BATCH)])
        accuracy = (logits.argmax(1) == test.labels).float().mean()
        result = json.loads((run / f"{method}-seed1/result.json").read_text())
        assert float(accuracy) == pytest.approx(result["test_accuracy"], abs=1e-6)
    description = json.loads((run / "cid-seed1/student.json").read_text())
    assert description["intervention"]["temperature"] == 2.0
    assert description["preprocessing"]["scale"] == 16.0


def test_loading_names_what_is_wrong(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"student\.safetensors: is no readable safetensors file"):
        load_student(tmp_path)
    for name in ("student.json", "student.safetensors"):
        (tmp_path / name).write_bytes((run / "labels-seed0" / name).read_bytes())
    description = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps({**description, "model": "cnn-3"}))
    with pytest.raises(CheckpointError, match="does not fit cnn-3"):
        load_student(tmp_path)
    (tmp_path / "student.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_student(tmp_path)
    (tmp_path / "student.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no description"):
        load_student(tmp_path)


def test_eval(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert cli.main(["eval", str(run), "--method", "cid", "--seed", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads((run / "cid-seed1/result.json").read_text())
    assert line == f"cid-seed1: accuracy {result['test_accuracy']:.2%} (test)"
    assert cli.main(["eval", str(run), "--seed", "9"]) == 1
    assert "has no saved student" in capsys.readouterr().err


def test_the_resolved_file_repeats_the_run(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert cli.main(["distill", "--config", str(run / "config.toml"), "--out", str(again)]) == 0
    for method in METHODS:
        name = f"{method}-seed1/student.safetensors"
        assert (run / name).read_bytes() == (again / name).read_bytes()


def test_resuming_a_finished_run_trains_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("cid.train.run.runner.Trainer", None)
    assert cli.main(["distill", "--resume", str(run)]) == 0
    assert "cid - kd" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_teacher_of_another_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(run / "teacher/teacher.safetensors")
    arguments = [*TINY, "--seeds", "0", "--methods", "kd", "--teacher-checkpoint", teacher]
    assert cli.main(["distill", *arguments, "--out", str(tmp_path / "x")]) == 0
    one, other = (json.loads((folder / "teacher/result.json").read_text()) for folder in (run, tmp_path / "x"))
    assert one["test_accuracy"] == other["test_accuracy"]
    assert (run / "kd-seed0/student.safetensors").read_bytes() == (
        tmp_path / "x/kd-seed0/student.safetensors"
    ).read_bytes()
    assert cli.main(["distill", *arguments, "--teacher", "cnn-5", "--out", str(tmp_path / "y")]) == 1
    assert "is a cnn-4, but --teacher is cnn-5" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_a_teacher_of_more_classes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(run / "teacher/teacher.safetensors")
    few = [*TINY, "--seeds", "0", "--methods", "kd", "--teacher-checkpoint", teacher, "--classes", "8", "9"]
    assert cli.main(["distill", *few, "--out", str(tmp_path / "x")]) == 0
    assert "of its 10 classes 2 are the data's, by name" in capsys.readouterr().out
    ten, two = (
        files.read_tensors(folder / "teacher/teacher.safetensors")[0]["11.weight"] for folder in (run, tmp_path / "x")
    )
    assert torch.equal(two, ten[8:])
    more = [*TINY, "--teacher-checkpoint", str(tmp_path / "x/teacher/teacher.safetensors"), "--classes", "7", "8"]
    assert cli.main(["distill", *more, "--out", str(tmp_path / "y")]) == 1
    assert "knows the classes 8, 9, and not 7, which the data has, too" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_an_existing_folder_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["distill", *TINY, "--out", str(run)]) == 2
    assert f"--resume {run}" in capsys.readouterr().err


def test_resume_takes_no_other_option(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["distill", "--resume", str(run), "--lr", "1"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main(["distill", "--resume", str(tmp_path)]) == 2
    assert "config.toml" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["distill", *TINY, "--out", str(tmp_path / "file" / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line


def test_a_full_disk_is_one_line_and_the_run_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = [*TINY, "--seeds", "0", "--methods", "labels", "cid"]
    with monkeypatch.context() as patch:
        fill_up(patch, files=12)
        assert cli.main(["distill", *arguments, "--out", str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    assert not list(out.rglob("*.tmp"))
    for path in out.rglob("*.safetensors"):
        files.read_tensors(path)
    assert cli.main(["distill", "--resume", str(out)]) == 0


def test_nan_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "--optimizer", "sgd", "--lr", "1e30", "--schedule", "constant", "--out", str(tmp_path / "run")]
    assert cli.main(["distill", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cid: error: teacher: ")
    assert "there is no checkpoint yet" in line


@pytest.mark.parametrize(
    ("data", "write"),
    [
        ("cifar10", fakes.cifar10_binary),
        ("corrupted-cifar10", fakes.cifar10_binary),
        ("mnist", lambda base: fakes.mnist(base, gzipped=True)),
        ("colored-mnist", lambda base: fakes.mnist(base, gzipped=True)),
    ],
)
def test_other_data(tmp_path: Path, data: str, write: object) -> None:
    write(tmp_path)  # type: ignore[operator]
    arguments = (
        f"--data {data} --data-dir {tmp_path} --teacher wrn-10-1 --student resnet8 --epochs 2 --batch-size 16 --lr 0.01"
    )
    arguments += f" --validation 0.2 --seeds 0 --device cpu --out {tmp_path / 'run'}"
    assert cli.main(["distill", *arguments.split()]) == 0


def test_an_image_folder(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path / "pets")
    arguments = f"--data {tmp_path / 'pets'} --validation 0.3 --teacher cnn-3 --student cnn-2 --epochs 2 --lr 0.01"
    assert cli.main(["distill", *arguments.split(), "--seeds", "0", "--out", str(tmp_path / "run")]) == 0
    config = resolve({}, read_toml(tmp_path / "run/config.toml"))
    assert config.data.name == str(tmp_path / "pets")
    described = json.loads((tmp_path / "run/cid-seed0/student.json").read_text())
    assert described["classes"] == sorted(path.name for path in (tmp_path / "pets/train").iterdir())


def test_an_image_folder_with_val_and_unreadable_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder says what served as test data and what was left out, and goes on with the same images alone."""
    data, out = tmp_path / "pets", tmp_path / "run"
    fakes.image_folder(data, {"train": 6, "val": 2})
    (data / "train/cat/broken.png").write_bytes(b"no image")
    arguments = f"--data {data} --teacher cnn-3 --student cnn-2 --epochs 2 --lr 0.01 --seeds 0 --out {out}".split()
    assert cli.main(["distill", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 1 image that cannot be read: train/cat/broken.png (" in line
    assert not out.exists()
    assert cli.main(["distill", *arguments, "--skip-unreadable"]) == 0
    assert capsys.readouterr().out.startswith(
        "Images: 11 to train on (from train), 1 to choose the epoch by (from train), 4 to test on (from val), "
        "1 unreadable and left out (see data.json)\n"
    )
    kept = json.loads((out / "data.json").read_text())
    assert kept["test"] == {"images": 4, "from": "val"}
    assert kept["classes"] == ["cat", "dog"]
    assert kept["unreadable"]["count"] == 1
    assert list(kept["unreadable"]["images"]) == ["train/cat/broken.png"]
    assert cli.main(["eval", str(out)]) == 0
    assert cli.main(["distill", "--resume", str(out)]) == 0
    data.rename(tmp_path / "moved")
    assert cli.main(["eval", str(out), "--data-dir", str(tmp_path / "moved")]) == 0
    for split in ("train", "val"):
        (tmp_path / "moved" / split / "dog").rename(tmp_path / "moved" / split / "fox")
    capsys.readouterr()
    assert cli.main(["eval", str(out), "--data-dir", str(tmp_path / "moved")]) == 2
    assert "was trained for 2 classes of 3 x 10 x 8 images, and the data here is not that" in capsys.readouterr().err
    (tmp_path / "moved").rename(data)
    assert cli.main(["distill", "--resume", str(out)]) == 2
    assert "data.json: is not of the images that are there now" in capsys.readouterr().err


def test_other_images_than_the_run_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "pets", tmp_path / "run"
    fakes.image_folder(data, {"train": 6, "test": 2})
    arguments = f"--data {data} --teacher cnn-3 --student cnn-2 --epochs 2 --lr 0.01 --seeds 0 --out {out}".split()
    assert cli.main(["distill", *arguments]) == 0
    (data / "train/cat/0.png").unlink()
    assert cli.main(["distill", "--resume", str(out)]) == 2
    assert "data.json: is not of the images that are there now" in capsys.readouterr().err


def test_missing_data_makes_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert cli.main(["distill", "--data", "cifar10", "--data-dir", str(tmp_path), "--out", str(out)]) == 2
    assert "cs.toronto.edu" in capsys.readouterr().err
    assert not out.exists()


def test_a_biased_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = [*TINY, "--data", "coloured-digits", "--label-noise", "0.1", "--seeds", "0", "--methods", "kd", "cid"]
    assert cli.main(["distill", *arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "60 to test on, unbiased (from test)" in printed
    assert "cid - kd, unbiased: " in printed
    result = json.loads((out / "cid-seed0/result.json").read_text())
    for scores in (result, result["without_head"]):
        assert scores["tests"].keys() == scores["groups"].keys() == {"unbiased"}
    assert cli.main(["eval", str(out), "--method", "cid"]) == 0
    unbiased, worst = result["tests"]["unbiased"], min(result["groups"]["unbiased"].values())
    assert f"{unbiased:.2%} (unbiased), {worst:.2%} (worst group of unbiased)\n" in capsys.readouterr().out
    assert cli.main(["distill", "--resume", str(out)]) == 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_weights_that_choose_themselves_are_in_the_metrics(tmp_path: Path, precision: str) -> None:
    arguments = [*TINY, "--seeds", "0", "--methods", "cid", "cid-no-head", "--beta", "auto", "--gamma", "auto"]
    out = tmp_path / "run"
    assert cli.main(["distill", *arguments, "--precision", precision, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {name: [(line["beta"], line["gamma"]) for line in lines if line["name"] == name] for name in STUDENTS}
    for own in found.values():
        # An epoch has five batches, so the second chooses too, and the third does not.
        assert own[0] != own[1] == own[2]
        assert all(weight > 0 for weight in own[2])
    assert 'beta = "auto"' in (out / "config.toml").read_text()


STUDENTS = ("cid-seed0", "cid-no-head-seed0")
