"""Runs from Python."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import cid.train
from cid import cli
from cid._errors import CheckpointError, ConfigError, InterruptedRunError
from cid.train import RunResult, distill
from cid.train.config import resolve, to_toml
from cid.train.distillation import resolved
from cid.train.folder import RunFolder
from cid.train.run.loop import Trainer

SETTINGS: dict[str, Any] = {
    "data": {"limit": 80, "limit_test": 40},
    "models": {"teacher": "cnn-3", "student": "cnn-2"},
    "optim": {"epochs": 2, "teacher_epochs": 1},
    "method.methods": ["kd", "cid"],
    "run": {"seeds": [3, 1], "device": "cpu"},
}
COMMAND = shlex.split(
    "--limit 80 --limit-test 40 --teacher cnn-3 --student cnn-2 --epochs 2 --teacher-epochs 1 --methods kd cid "
    "--seeds 3 1 --device cpu"
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return distill(SETTINGS, out=tmp_path_factory.mktemp("run"), progress=False)


def test_it_is_the_run_of_the_command(result: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert cli.main(["distill", *COMMAND, "--out", str(run)]) == 0
    assert (run / "config.toml").read_bytes() == (result.folder / "config.toml").read_bytes()
    for network in result.networks[1:]:
        name = f"{network.name}/student.safetensors"
        assert (run / name).read_bytes() == (result.folder / name).read_bytes()
    assert str(result).splitlines()[2].startswith("teacher ")
    assert [network.name for network in result.networks] == [
        "teacher", "kd-seed1", "kd-seed3", "cid-seed1", "cid-seed3",
    ]  # fmt: skip
    assert len(result.metrics()) == 1 + 4 * 2


def test_students_are_at_hand(result: RunResult) -> None:
    x = torch.rand(4, 1, 12, 12)
    own = cid.train.load_student(result.folder / "cid-seed1")(x)
    assert torch.equal(result.student("cid", 1)(x), own)
    assert torch.equal(result.student("cid")(x), cid.train.load_student(result.folder / "cid-seed3")(x))
    with pytest.raises(CheckpointError, match="has no saved student of this method and seed"):
        result.student("cid", 2)


def test_settings_come_in_every_form(tmp_path: Path) -> None:
    flat = {"optim.epochs": 7, "run.seeds": [5], "method.beta": 2.0}
    expected = resolve({}, flat)
    (tmp_path / "x.toml").write_text(to_toml(expected))
    nested = {"optim": {"epochs": 7}, "run": {"seeds": [5]}, "method": {"beta": 2.0}}
    for given in (flat, nested, expected, tmp_path / "x.toml", str(tmp_path / "x.toml")):
        assert resolved(given) == expected
    assert resolved(None) == resolve({})


def test_it_says_nothing_or_what_the_command_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {**SETTINGS, "method.methods": ["labels"], "run.seeds": [0], "run": {"device": "cpu"}}
    distill(small, out=tmp_path / "silent", progress=False)
    assert capsys.readouterr() == ("", "")
    distill(small, out=tmp_path / "told")
    teacher, student = capsys.readouterr().out.splitlines()
    assert teacher.startswith("teacher: cnn-3, ")
    assert student.startswith("labels-seed0: cnn-2, ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"optim": {"epoch": 2}}, r"config has 'optim\.epoch', accepted: data\.name, "),
        ({"epochs": 2}, "config has 'epochs', accepted: "),
        ({"optim.epochs": "2"}, r"optim\.epochs: got '2', accepted: a whole number"),
        ({"optim.epochs": 0}, r"optim\.epochs: got 0, accepted: a number of at least 1"),
        ("none.toml", r"--config: cannot read none\.toml: "),
    ],
)
def test_what_is_not_accepted_makes_no_folder(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    small = {**SETTINGS, "method.methods": ["kd"], "run": {"seeds": [0], "device": "cpu"}}

    def interrupted(self: Trainer) -> None:
        raise InterruptedRunError(self._job.name, 2)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", interrupted)
        with pytest.raises(InterruptedRunError, match="teacher"):
            distill(small, out=out, progress=False)
    with pytest.raises(ConfigError, match="resume: given, accepted: without config and out"):
        distill(small, resume=out)
    with pytest.raises(ConfigError, match="accepted: a new folder"):
        distill(small, out=out)
    found = distill(resume=out, progress=False)
    assert [network.name for network in found.networks] == ["teacher", "kd-seed0"]
    assert RunFolder(out).is_done("kd-seed0")
