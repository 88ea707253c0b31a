"""Where people look at runs: CSV, TensorBoard, Weights & Biases and MLflow, by Fabric's and Lightning's loggers.

Each network has a log of its own at each of them, so that the curves of several lie over each other in one chart. The
run's `metrics.jsonl` stays what is true: a log is told what is there, and goes on where a resumed network does.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cid._errors import ConfigError
from cid.train.config import Config
from cid.train.files import read_json, write_json
from cid.train.folder import TEACHER, Result, RunFolder

# The packages of each, as imported.
NEEDED = {
    "csv": (),
    "tensorboard": ("tensorboard",),
    "wandb": ("lightning", "wandb"),
    "mlflow": ("lightning", "mlflow"),
}


def check_installed(loggers: Collection[str]) -> None:
    """Looks for what the loggers need, without importing it, which takes seconds.

    Raises:
        ModuleNotFoundError: names the package that is missing.
    """
    for package in dict.fromkeys(name for logger in loggers for name in NEEDED[logger]):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


@dataclass(frozen=True)
class Subject:
    """What a log is of.

    Attributes:
        folder: of the run.
        name: of the network.
        method: how it is trained.
        settings: of the network, by key.
        epoch: the first that is to come.
    """

    folder: RunFolder
    name: str
    method: str
    settings: Mapping[str, Any]
    epoch: int

    @property
    def logs(self) -> Path:
        """Where files go."""
        return self.folder.path / "logs"

    def identity(self, logger: str, new: Callable[[], str]) -> str:
        """What a logger calls this log: the same when the network goes on, `new` at first."""
        file = self.logs / f"{self.name}.json"
        known: dict[str, str] = read_json(file) if file.is_file() else {}
        if logger not in known:
            self.logs.mkdir(exist_ok=True)
            known[logger] = new()
            write_json(file, known)
        return known[logger]


class Log:
    """One network's log at one logger; subclasses open it, and say what is special there.

    Args:
        subject: what it is of.
        logger: a `Logger` of Fabric's, or of Lightning's copy of it.
    """

    def __init__(self, subject: Subject, logger: Any) -> None:
        self.subject = subject
        self.logger = logger

    def settings(self) -> None:
        """Writes the network's settings."""
        self.logger.log_hyperparams(dict(self.subject.settings))

    def epoch(self, metrics: Mapping[str, float], number: int) -> None:
        """Writes the metrics of an epoch."""
        self.logger.log_metrics(dict(metrics), number)
        self.logger.save()

    def result(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Writes what became of the network, by the weights of this epoch."""
        self.logger.log_metrics(dict(metrics), epoch)

    def close(self, status: str) -> None:
        """Ends it: "success" or "failed"; it may be opened again."""
        self.logger.finalize(status)


class CSVLog(Log):
    """A table for each network, `logs/csv/NETWORK/metrics.csv`; `config.toml` has the settings."""

    def __init__(self, subject: Subject) -> None:
        from lightning_fabric.loggers.csv_logs import CSVLogger

        folder = subject.logs / "csv"
        # It begins a table anew: told again what was, rather than to lose it.
        (folder / subject.name / "metrics.csv").unlink(missing_ok=True)
        super().__init__(subject, CSVLogger(folder, name="", version=subject.name, flush_logs_every_n_steps=1))
        if subject.epoch > 0:
            for line in subject.folder.metrics():
                if line["name"] == subject.name:
                    self.epoch(numbers(line), line["epoch"])

    def settings(self) -> None:
        """Writes nothing: a table has no place for it."""


class TensorBoardLog(Log):
    """A folder for each network, `logs/tensorboard/NETWORK`, which is what TensorBoard calls a run."""

    def __init__(self, subject: Subject) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        logger = TensorBoardLogger(
            subject.logs / "tensorboard",
            name="",
            version=subject.name,
            default_hp_metric=False,
            purge_step=subject.epoch or None,  # an epoch that was told and is done again counts once
        )
        super().__init__(subject, logger)

    def settings(self) -> None:
        """Writes nothing yet: TensorBoard's table of settings has the results beside them."""

    def result(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Writes settings and results."""
        self.logger.log_hyperparams(dict(self.subject.settings), dict(metrics), epoch)


class WandbLog(Log):
    """A run for each network, in a group for the run's folder; `WANDB_PROJECT`, `WANDB_MODE` and the like hold."""

    def __init__(self, subject: Subject) -> None:
        from lightning.pytorch.loggers import WandbLogger

        subject.logs.mkdir(exist_ok=True)
        run = subject.folder.path.resolve().name
        logger = WandbLogger(
            project=os.environ.get("WANDB_PROJECT", "cid"),
            name=f"{run}/{subject.name}",
            group=run,
            job_type=subject.method,
            save_dir=subject.logs,
            id=subject.identity("wandb", lambda: uuid.uuid4().hex),
        )
        super().__init__(subject, logger)

    def close(self, status: str) -> None:
        """Ends it, so that the next network begins another."""
        self.logger.experiment.finish(exit_code=int(status != "success"))


class MLflowLog(Log):
    """A run for each network, at `MLFLOW_TRACKING_URI`, else in files in `logs/mlflow`."""

    def __init__(self, subject: Subject) -> None:
        from lightning.pytorch.loggers import MLFlowLogger

        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            # A database would need two packages more; MLflow has files still, for those who say that they mean them.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = (subject.logs / "mlflow").resolve().as_uri()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cid")
        run = subject.folder.path.resolve().name

        def new() -> str:
            begun = MLFlowLogger(experiment, f"{run}/{subject.name}", address, {"run": run, "method": subject.method})
            assert begun.run_id is not None
            return begun.run_id

        super().__init__(
            subject, MLFlowLogger(experiment, tracking_uri=address, run_id=subject.identity("mlflow", new))
        )

    def settings(self) -> None:
        """Writes them once: a run keeps those that it began with, also where it goes on elsewhere."""
        if not self.logger.experiment.get_run(self.logger.run_id).data.params:
            super().settings()


OPEN: dict[str, Callable[[Subject], Log]] = {
    "csv": CSVLog,
    "tensorboard": TensorBoardLog,
    "wandb": WandbLog,
    "mlflow": MLflowLog,
}


class RunLog:
    """The logs of a run, of one network after another.

    A logger that cannot be used from the start ends the run, before anything is trained; one that fails later is left
    out from then on: the run is worth more.

    Args:
        loggers: which.
        folder: of the run.
        config: its settings.
        say: takes a line for the user.
    """

    def __init__(self, loggers: Collection[str], folder: RunFolder, config: Config, say: Callable[[str], None]) -> None:
        self._loggers = list(loggers)
        self._proven: set[str] = set()
        self._folder = folder
        self._config = config
        self._say = say
        self._subject: Subject | None = None
        self._open: dict[str, Log] = {}

    def begin(self, name: str, method: str, seed: int, epoch: int) -> None:
        """Opens the logs of a network, where the next epoch is this one.

        Raises:
            ConfigError: a logger cannot be used.
        """
        self.close()
        self._subject = subject = Subject(
            self._folder, name, method, settings_of_network(self._config, method, seed), epoch
        )

        def opened(logger: str) -> None:
            self._open[logger] = OPEN[logger](subject)
            self._open[logger].settings()
            self._proven.add(logger)

        self._each(opened)

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Tells an epoch's metrics."""
        self._each(lambda logger: self._open[logger].epoch(numbers(metrics), metrics["epoch"]))

    def end(self, method: str, result: Result) -> None:
        """Tells what became of a network, and closes its logs."""
        if self._subject is None or self._subject.name != result.name:
            self.begin(result.name, method, result.seed, 0)
        found = numbers({key: value for key, value in asdict(result).items() if key != "seed"})
        self._each(lambda logger: self._open[logger].result(found, result.best_epoch or 0))
        self.close("success")

    def close(self, status: str = "failed") -> None:
        """Closes the logs that are open."""

        def closed(logger: str) -> None:
            if (log := self._open.pop(logger, None)) is not None:
                log.close(status)

        self._each(closed)
        self._subject = None

    def _each(self, tell: Callable[[str], None]) -> None:
        for logger in [*self._loggers]:
            try:
                tell(logger)
            # Each has exceptions of its own: of the network, of a server, of an account.
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                if logger not in self._proven:
                    raise ConfigError(
                        f"--logger: got {logger}, accepted: one that can be used here ({reason})"
                    ) from error
                self._loggers.remove(logger)
                self._say(f"{logger}: fails, and is left out from here on ({reason}); metrics.jsonl has everything")
                with suppress(Exception):
                    if (log := self._open.pop(logger, None)) is not None:
                        log.close("failed")


def settings_of_network(config: Config, method: str, seed: int) -> dict[str, Any]:
    """The settings that a network has, by key; those of other networks and what is unset are left out."""
    sections = asdict(config)
    sections["method"] = {} if method == TEACHER else asdict(config.method.options(method))
    for name in ("seeds", "logger"):
        del sections["run"][name]
    flat = {f"{section}.{name}": value for section, own in sections.items() for name, value in own.items()}
    return {"method": method, "seed": seed, **{key: value for key, value in flat.items() if value is not None}}


def numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics or a result, those within by `NAME/NAME`; whose they are is left out."""
    return {key: value for key, value in _numbers(content, "") if key not in ("epoch", "seed")}


def _numbers(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
