"""What a run's folder holds: its configuration, its data's summary, metrics, and each network's result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cid._errors import CheckpointError, ConfigError, DataError
from cid._files import write_atomically
from cid.train.config import Config, read_toml, resolve, to_toml
from cid.train.data import PREFIXES, READERS
from cid.train.files import read_json, read_json_lines, write_json
from cid.train.methods import registry

TEACHER = "teacher"  # what the teacher is called: its folder, and the method in its result


def network_name(method: str, seed: int) -> str:
    """What a student is called: its folder in the run."""
    return f"{method}-seed{seed}"


@dataclass(frozen=True)
class Scores:
    """How good a network is on the test data, and on further tests.

    Attributes:
        test_accuracy: 0..1.
        test_loss: mean cross-entropy.
        tests: accuracy on each further test, by its name.
        groups: accuracy in each group, of each test (further ones, or "test") whose samples have groups.
    """

    test_accuracy: float
    test_loss: float
    tests: dict[str, float]
    groups: dict[str, dict[str, float]]


@dataclass(frozen=True)
class WithoutHead:
    """What a network of method cid yields without its interventional head: by the student's own logits s.

    Attributes:
        parameters: trainable values of the student.
        test_accuracy: 0..1, from the same pass over the test data; this and what follows as in `Scores`.
        test_loss: mean cross-entropy.
        tests: accuracy on each further test.
        groups: accuracy in each group.
    """

    parameters: int
    test_accuracy: float
    test_loss: float
    tests: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One network, trained and scored once on the test data and on each further test.

    Attributes:
        name: its folder in the run.
        method: how it was trained, or "teacher".
        seed: of its weights, batches and augmentation.
        parameters: trainable values in what predicts (for cid with the interventional head).
        seconds: training time; 0 for a teacher that was loaded.
        best_epoch: whose weights were kept, from 0; None for a teacher that was loaded.
        validation_accuracy: of that epoch, 0..1.
        test_accuracy: 0..1; this and what follows as in `Scores`.
        test_loss: mean cross-entropy.
        without_head: the same of the same network without its head, if it has one.
        tests: accuracy on each further test.
        groups: accuracy in each group.
    """

    name: str
    method: str
    seed: int
    parameters: int
    seconds: float
    best_epoch: int | None
    validation_accuracy: float
    test_accuracy: float
    test_loss: float
    without_head: WithoutHead | None = None
    tests: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> Result:
        """Reads what `to_json` gave.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        content = read_json(path)
        try:
            own = content.get("without_head")
            return cls(**{**content, "without_head": own and WithoutHead(**own)})
        except (AttributeError, TypeError) as error:
            raise CheckpointError(f"{path}: is no result: {error}") from error


def worst_groups(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The accuracy in the worst group of each test, of that in all groups."""
    return {test: min(each.values()) for test, each in groups.items()}


def in_words(scores: Scores | Result) -> str:
    """The accuracy on every test, and in the worst groups, as text."""
    parts = [f"accuracy {scores.test_accuracy:.2%} (test)"]
    parts += [f"{accuracy:.2%} ({test})" for test, accuracy in scores.tests.items()]
    parts += [f"{accuracy:.2%} (worst group of {test})" for test, accuracy in worst_groups(scores.groups).items()]
    return ", ".join(parts)


class Saved(NamedTuple):
    """A network of a run that is saved: its folder, how it was trained, and its seed."""

    name: str
    method: str
    seed: int


class RunFolder:
    """The files of a run.

    Args:
        path: the folder.
        network: the only one that is worked on, where several processes share the run: its metrics go to its folder.
        writes: whether metrics are written; of several processes that train together, the first does so.
    """

    def __init__(self, path: Path, network: str | None = None, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self._metrics = self.network(network) / "metrics.jsonl" if network else path / "metrics.jsonl"

    @staticmethod
    def check_new(path: Path, more: str = "") -> None:
        """Checks that nothing would be overwritten.

        Args:
            path: of the folder.
            more: what else is accepted, for the message.

        Raises:
            ConfigError: the folder exists and is not empty, or is a file.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"--out: got {path}, which exists, accepted: a new folder{more}")

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Makes a new folder and writes the configuration.

        Raises:
            ConfigError: the folder exists and is not empty, or is a file.
            OSError: it can't be written.
        """
        cls.check_new(path, f" (or go on with --resume {path})")
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "config.toml", to_toml(config).encode())
        return cls(path)

    def keep_data(self, summary: dict[str, Any]) -> None:
        """Writes what data the run is on, or compares it with what was written.

        Raises:
            DataError: the run began with other data.
        """
        file = self.path / "data.json"
        if not file.is_file():
            write_json(file, summary)
        elif read_json(file) != summary:
            raise DataError(f"{file}: is not of the images that are there now, on which the run can't go on")

    def keep_unreadable(self, found: Mapping[str, str]) -> None:
        """Adds images that others had to be taken for, and why, to those that are known."""
        file = self.path / "unreadable.json"
        known = read_json(file) if file.is_file() else {}
        if not found.keys() <= known.keys():
            write_json(file, {**known, **found})

    def config(self, data_dir: str | None = None) -> Config:
        """The configuration of the run.

        Args:
            data_dir: where the data set is now, if it was moved.

        Raises:
            ConfigError: the folder is no run.
        """
        file = self.path / "config.toml"
        if not file.is_file():
            raise ConfigError(f"got {self.path}, accepted: the folder of a run, which has a config.toml")
        config = resolve({}, read_toml(file))
        if data_dir is None:
            return config
        if config.data.name in READERS:
            data = dataclasses.replace(config.data, dir=data_dir)
        else:  # a folder, which goes by its path
            kind, colon, _ = config.data.name.rpartition(":") if config.data.name.startswith(PREFIXES) else ("", "", "")
            data = dataclasses.replace(config.data, name=f"{kind}{colon}{data_dir}")
        return dataclasses.replace(config, data=data)

    def weights(self, name: str) -> Path:
        """The file of one network's weights."""
        return self.path / name / ("teacher.safetensors" if name == TEACHER else "student.safetensors")

    def network(self, name: str) -> Path:
        """The folder of one network, made if need be."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder

    def is_done(self, name: str) -> bool:
        """Whether a network is trained and scored."""
        return (self.path / name / "result.json").is_file()

    def results(self) -> list[Result]:
        """What is done: the teacher first, then the students by method and seed."""
        found = [Result.read(path) for path in self.path.glob("*/result.json")]
        order = [TEACHER, *registry()]
        return sorted(found, key=lambda result: (order.index(result.method), result.seed))

    def students(self, method: str | None = None, seed: int | None = None) -> list[Saved]:
        """The saved students, of one method or seed alone if given, in the order of the configuration.

        Raises:
            ConfigError: the folder is no run.
            CheckpointError: no such student is there.
        """
        config = self.config()
        every = [
            Saved(network_name(each, number), each, number)
            for each in config.method.methods
            for number in config.run.seeds
        ]
        wanted = [one for one in every if method in (None, one.method) and seed in (None, one.seed)]
        saved = [one for one in wanted if self.weights(one.name).is_file()]
        if not saved:
            names = ", ".join(one.name for one in every)
            raise CheckpointError(f"{self.path}: has no saved student of this method and seed; this run's are {names}")
        return saved

    def saved(self, method: str | None = None, seed: int | None = None) -> list[Saved]:
        """The teacher, if the run has saved one, and the students of `students`.

        Raises:
            ConfigError: the folder is no run.
            CheckpointError: no such student is there.
        """
        students = self.students(method, seed)
        teacher = Saved(TEACHER, TEACHER, self.config().run.seeds[0])
        return [teacher, *students] if self.weights(TEACHER).is_file() else students

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of every epoch of all networks; a line that a crash cut off is left out."""
        files = [self.path / "metrics.jsonl", *sorted(self.path.glob("*/metrics.jsonl"))]
        return [line for file in files for line in read_json_lines(file)]

    def rewind_metrics(self, name: str, epoch: int) -> None:
        """Drops a network's metrics from `epoch` on: they are about to be computed again."""
        if not self.writes:
            return
        kept = [line for line in read_json_lines(self._metrics) if line["name"] != name or line["epoch"] < epoch]
        write_atomically(self._metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Appends a line."""
        if not self.writes:
            return
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
