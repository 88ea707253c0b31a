"""`--precision auto`: measured once, written down, and no part of what is drawn."""

import dataclasses
from pathlib import Path

import pytest
import torch

from cid import cli
from cid._errors import ConfigError
from cid.train.config import Config, resolve
from cid.train.folder import RunFolder
from cid.train.models import InputSpec
from cid.train.run import precision
from cid.train.run.precision import FULL, HALF, measured_precision
from cid.train.study.plan import read_study

SPEC = InputSpec(1, (8, 8), 3)


def small() -> Config:
    return resolve({"models.teacher": "cnn-2", "models.student": "cnn-2", "optim.batch_size": 4})


def take(monkeypatch: pytest.MonkeyPatch, full: float, half: float) -> list[object]:
    """Steps take so long, and which there were."""
    asked: list[object] = []
    monkeypatch.setattr(precision, "_step", lambda student, teacher, inputs, dtype: asked.append(dtype))
    monkeypatch.setattr(precision, "_seconds", lambda step, device: step() or (full if asked[-1] is None else half))
    return asked


@pytest.mark.parametrize(("full", "half", "expected"), [(1.0, 0.5, HALF), (1.0, 0.95, FULL), (1.0, 2.0, FULL)])
def test_what_is_faster_by_a_tenth(monkeypatch: pytest.MonkeyPatch, full: float, half: float, expected: str) -> None:
    asked = take(monkeypatch, full, half)
    assert measured_precision(small(), SPEC, torch.device("cpu")) == expected
    assert asked == [None, torch.bfloat16] * (precision.ROUNDS + 1)


def test_a_device_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(student: object, teacher: object, inputs: object, dtype: torch.dtype | None) -> None:
        if dtype is not None:
            raise RuntimeError("not here")

    monkeypatch.setattr(precision, "_step", refuse)
    assert measured_precision(small(), SPEC, torch.device("cpu")) == FULL


def test_a_real_measurement() -> None:
    assert measured_precision(small(), SPEC, torch.device("cpu")) in (FULL, HALF)


def test_a_teacher_whose_outputs_are_cached_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(precision, "_step", lambda student, teacher, inputs, dtype: asked.append(teacher))
    config = small()
    cached = dataclasses.replace(config, models=dataclasses.replace(config.models, teacher_cache="folder"))
    measured_precision(cached, SPEC, torch.device("cpu"))
    assert set(asked) == {None}


@pytest.mark.parametrize(("half", "expected"), [(0.5, HALF), (2.0, FULL)])
def test_the_run_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], half: float, expected: str
) -> None:
    take(monkeypatch, 1.0, half)
    run = tmp_path / "run"
    tiny = "--limit 60 --limit-test 20 --teacher cnn-2 --student cnn-2 --epochs 1 --seeds 0 --methods kd --device cpu"
    assert cli.main(["distill", *tiny.split(), "--precision", "auto", "--out", str(run)]) == 0
    assert f"Precision: {expected} (measured)" in capsys.readouterr().out
    assert RunFolder(run).config().run.precision == expected


def test_a_study_is_the_same_on_every_machine(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('[settings]\nrun = { precision = "auto" }\n')
    with pytest.raises(ConfigError, match="precision: got 'auto', accepted: one that is the same on every machine"):
        read_study(file, {})
