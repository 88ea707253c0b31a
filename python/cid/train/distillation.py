"""A whole run from Python, as the command `cid distill` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

from cid._errors import ConfigError
from cid.train.config import Config, read_toml, resolve, values_by_key
from cid.train.folder import Result, RunFolder
from cid.train.results import table
from cid.train.run.inputs import Inputs
from cid.train.run.launch import launched
from cid.train.run.progress import Silent, make_observer
from cid.train.run.runner import distill as train
from cid.train.ship.predict import load_student


@dataclass(frozen=True)
class RunResult:
    """What a run has made; `print` shows its table.

    Attributes:
        folder: of the run.
        networks: the result of each, the teacher first, then students by method and seed.
    """

    folder: Path
    networks: tuple[Result, ...]

    def __str__(self) -> str:
        return table.table(self.networks)

    def student(self, method: str, seed: int | None = None) -> nn.Module:
        """A student of this method, ready to predict: that of a seed, or of the first; see `load_student`.

        Raises:
            CheckpointError: there is none.
        """
        saved = RunFolder(self.folder).students(method, seed)[0]
        return load_student(self.folder / saved.name)

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of each epoch of each network, as `metrics.jsonl` has them."""
        return RunFolder(self.folder).metrics()


def distill(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> RunResult:
    """Trains a teacher, and students by several methods, and scores them: `cid distill` as a function.

    Args:
        config: what is set other than by default: a mapping of keys, `{"optim.epochs": 60}`, or of sections,
            `{"optim": {"epochs": 60}}`; the path of a TOML file of such sections; or a whole `Config`. Keys are those
            of a run's `config.toml`.
        out: the new folder of the run; `runs/TIME-DATA` by default.
        resume: the folder of an interrupted run that is to go on as it was set up, without `config` and `out`.
        progress: whether to show how far it is, as the command does.

    In a script that torchrun starts, all processes call it, and share the run; the first shows and writes.

    Raises:
        ConfigError: a setting is unknown or not accepted, or the folder is not new.
        InterruptedRunError: a signal asked to stop; `resume` goes on from there.
        RunError: something else is wrong; see `cid._errors`.

    Example:
        >>> import tempfile
        >>> settings = {
        ...     "data": {"limit": 80, "limit_test": 40},
        ...     "models": {"teacher": "cnn-3", "student": "cnn-2"},
        ...     "optim.epochs": 2,
        ...     "method.methods": ["kd", "cid"],
        ...     "run": {"seeds": [0], "device": "cpu"},
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = distill(settings, out=folder, progress=False)
        ...     student = result.student("cid")
        >>> [network.name for network in result.networks]
        ['teacher', 'kd-seed0', 'cid-seed0']
    """
    inputs, folder = open_run(config, out, resume)
    with make_observer() if progress and inputs.ranks.first else Silent() as observer:
        return RunResult(folder.path, tuple(train(inputs, folder, observer)))


def open_run(
    config: Config | Mapping[str, Any] | str | Path | None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
) -> tuple[Inputs, RunFolder]:
    """What a run needs from outside, and its folder: a new one, or that of the run that goes on.

    Raises:
        RunError: as `distill`; then there is no folder.
    """
    if resume is not None:
        if config is not None or out is not None:
            raise ConfigError("resume: given, accepted: without config and out, as the run was set up")
        folder = RunFolder(Path(resume))
        return Inputs.load(folder.config()), folder
    settings = resolved(config)
    path = _default_folder(settings.data.name) if out is None else Path(out)
    if launched() is None:
        if settings.run.devices > 1:
            raise ConfigError(
                f"run.devices: got {settings.run.devices}, accepted: 1 in one process; start several by torchrun"
            )
        RunFolder.check_new(path, f" (or go on with --resume {path})")
    inputs = Inputs.load(settings).with_networks_seen()  # which must not fail when the folder is there
    return inputs, RunFolder(inputs.ranks.of_first(lambda: RunFolder.create(path, inputs.config).path))


def resolved(config: Config | Mapping[str, Any] | str | Path | None) -> Config:
    """The settings that `distill` is given, with the defaults of the data set, checked.

    Raises:
        ConfigError: one is unknown or not accepted.
    """
    if isinstance(config, str | Path):
        return resolve({}, read_toml(Path(config)))
    if isinstance(config, Config):
        sections = asdict(config)
        config = {
            section: {name: value for name, value in own.items() if value is not None}
            for section, own in sections.items()
        }
    return resolve({}, values_by_key(config or {}, "config"))


def _default_folder(data: str) -> Path:
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{Path(data.rpartition(':')[2]).name}"
