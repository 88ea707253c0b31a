from pathlib import Path
from typing import Any

import pytest

from cid._errors import ConfigError
from cid.train.config import Config, read_toml, resolve, settings, to_toml
from cid.train.data import READERS
from cid.train.methods import registry
from cid.train.presets import DATA_PRESETS
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
        {"method.beta": "auto", "method.gamma": 2},
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optim.batch_size": 1}, r"--batch-size: got 1, accepted: a number of at least 2"),
        ({"optim.lr": 0.0}, r"--lr: got 0.0, accepted: a number above 0"),
        ({"optim.lr": float("nan")}, r"--lr: got nan"),
        ({"method.beta": float("inf")}, r"--beta: got inf, accepted: a number of at least 0, or auto"),
        ({"method.beta": "own"}, r"--beta: got 'own', accepted: a number, or auto"),
        ({"method.context_momentum": 1.0}, r"--context-momentum: got 1.0, accepted: a number from 0 to below 1"),
        ({"optim.optimizer": "adam"}, r"--optimizer: got 'adam', accepted: sgd or adamw"),
        ({"method.methods": ("kd", "kd")}, r"--methods: got kd kd, accepted: one or more, each once, of: labels or kd"),
        ({"method.methods": ("magic",)}, r"--methods: got magic"),
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
    assert rules["method.methods"].words.rpartition(": ")[2].split(" or ") == list(registry())
    assert rules["optim.optimizer"].words.split(" or ") == list(OPTIMIZERS)
    assert rules["optim.schedule"].words.split(" or ") == list(SCHEDULES)
    assert set(DATA_PRESETS) == set(READERS)


def test_every_preset_resolves() -> None:
    for name in DATA_PRESETS:
        config = resolve({"data.name": name})
        assert config.method.beta is not None
        assert config.method.gamma is not None


def test_the_keys_and_their_order_are_those_of_the_files_there_are() -> None:
    names = ["methods", "alpha", "beta", "gamma", "weights_from", "temperature", "warmup_epochs", "context_momentum"]
    keys = [f"method.{name}" for name in names]
    assert [setting.key for setting in settings() if setting.key in keys] == keys


def test_flags_are_unique() -> None:
    flags = [setting.flag for setting in settings() if setting.flag]
    assert len(flags) == len(set(flags))
