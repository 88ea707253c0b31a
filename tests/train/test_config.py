from pathlib import Path
from typing import Any

import pytest

from cid._errors import ConfigError
from cid.train import config as c
from cid.train.config import Config, read_toml, resolve, settings, to_toml
from cid.train.data import READERS
from cid.train.methods import METHODS
from cid.train.run.schedule import OPTIMIZERS, SCHEDULES


def round_trip(config: Config, folder: Path) -> Config:
    path = folder / "config.toml"
    path.write_text(to_toml(config))
    return resolve({}, read_toml(path))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data.name": "cifar10", "data.dir": "somewhere", "optim.epochs": 2},
        {"data.name": "a folder", "data.limit": 5, "method.beta": 3, "run.seeds": (7,), "method.methods": ("kd",)},
        {"run.checkpoint_every": 4, "models.teacher_checkpoint": "x", "data.flip": True, "optim.lr": 1e-5},
    ],
)
def test_the_resolved_file_alone_repeats_the_run(tmp_path: Path, given: dict[str, Any]) -> None:
    config = resolve(given)
    assert round_trip(config, tmp_path) == config


def test_layers() -> None:
    file = {"data.name": "cifar10", "optim.epochs": 3, "optim.lr": 1}
    config = resolve({"optim.epochs": 24}, file)
    assert config.data.pad == 4  # the preset of the file's data
    assert config.optim.lr == 1.0  # the file
    assert config.optim.epochs == 24  # the command line
    assert config.optim.teacher_epochs == 24


def test_beta_and_gamma_say_where_they_come_from() -> None:
    pair = {"models.teacher": "wrn-40-2", "models.student": "wrn-16-2", "data.name": "cifar100"}
    method = resolve(pair).method
    assert (method.beta, method.gamma) == (65.0, 1.0)
    assert "paper" in method.weights_from
    assert "generic" in resolve({"data.name": "cifar10"}).method.weights_from
    given = resolve({**pair, "method.beta": 1.0, "method.gamma": 2.0}).method
    assert (given.beta, given.gamma, given.weights_from) == (1.0, 2.0, "given")
    half = resolve({**pair, "method.beta": 1.0}).method
    assert (half.beta, half.gamma) == (1.0, 1.0)
    assert half.weights_from == "one given, the other the paper's for wrn-40-2 to wrn-16-2"
    assert "digits" in resolve({}).method.weights_from
    assert resolve({}, {"method.beta": 1.0}).method.weights_from == "given"


def test_beta_over_a_resolved_file_is_given(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(resolve({"data.name": "cifar10"})))
    method = resolve({"method.beta": 2.0}, read_toml(path)).method
    assert (method.beta, method.gamma, method.weights_from) == (2.0, 1.0, "given")


@pytest.mark.parametrize(("epochs", "warmup"), [(240, 20), (12, 1), (2, 1), (1, 0)])
def test_the_warm_up_scales(epochs: int, warmup: int) -> None:
    config = resolve({"data.name": "cifar10", "optim.epochs": epochs})
    assert config.method.warmup_epochs == warmup


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optim.batch_size": 1}, r"--batch-size: got 1, accepted: a number of at least 2"),
        ({"optim.lr": 0.0}, r"--lr: got 0.0, accepted: a number above 0"),
        ({"optim.lr": float("nan")}, r"--lr: got nan"),
        ({"method.beta": float("inf")}, r"--beta: got inf"),
        ({"method.context_momentum": 1.0}, r"--context-momentum: got 1.0, accepted: a number from 0 to below 1"),
        ({"optim.optimizer": "adam"}, r"--optimizer: got 'adam', accepted: sgd or adamw"),
        ({"method.methods": ("kd", "kd")}, r"--methods: got kd kd, accepted: one or more, each once, of: labels or kd"),
        ({"method.methods": ("fitnet",)}, r"--methods: got fitnet"),
        ({"run.seeds": ()}, r"--seeds: "),
        ({"run.precision": "8"}, r"--precision: got '8'"),
        (
            {"optim.epochs": 4, "method.warmup_epochs": 4},
            r"--warmup-epochs: got 4, accepted: less than --epochs, here 4",
        ),
    ],
)
def test_bad_values_are_refused_by_flag(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlr = 'fast'", r"optim.lr: got 'fast', accepted: a number"),
        ("[optim]\nepochs = 1.5", r"optim.epochs: got 1.5, accepted: a whole number"),
        ("[optim]\nepochs = true", r"optim.epochs: got True, accepted: a whole number"),
        ("[optim]\nrate = 1", r"'optim.rate', accepted: data.name"),
        ("lr = 1", r"'lr', accepted"),
        ("[run]\nseeds = 'all'", r"run.seeds: got 'all', accepted: a whole number"),
        ("[[", r"is no TOML"),
    ],
)
def test_bad_files_are_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        resolve({}, read_toml(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config: cannot read .*nowhere\.toml"):
        read_toml(tmp_path / "nowhere.toml")


def test_words_of_the_options_are_those_of_the_registries() -> None:
    rules = {setting.key: setting.rule for setting in settings() if setting.rule}
    assert tuple(METHODS) == c.METHODS
    assert rules["optim.optimizer"].words.split(" or ") == list(OPTIMIZERS)
    assert rules["optim.schedule"].words.split(" or ") == list(SCHEDULES)
    assert set(c.PRESETS) == set(READERS)


def test_every_preset_resolves() -> None:
    for name in c.PRESETS:
        config = resolve({"data.name": name})
        assert config.method.beta is not None
        assert config.method.gamma is not None


def test_flags_are_unique() -> None:
    flags = [setting.flag for setting in settings() if setting.flag]
    assert len(flags) == len(set(flags))
