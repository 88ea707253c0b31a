"""A whole run: the teacher once, then every student, then the report; each part only if it is not done yet."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from cid import InterventionalStudent
from cid._errors import CheckpointError, ConfigError, DataError, InterruptedRunError
from cid.cache import TeacherCache
from cid.train.config import Config, read_toml, resolve, to_toml
from cid.train.data import READERS, Batches, Dataset, Split, load_dataset, mix_seed
from cid.train.files import read_json, write_atomically, write_json
from cid.train.methods import METHODS, Ingredients, Labels, Method
from cid.train.models import InputSpec, build_model, count_parameters
from cid.train.networks import Description, load_teacher, read_network_for, save_network
from cid.train.results import table as report
from cid.train.results.table import Result, WithoutHead
from cid.train.run.loop import Job, Trained, Trainer, evaluate, evaluate_each
from cid.train.run.progress import Observer
from cid.train.run.signals import StopRequest
from cid.train.run.teacher_cache import make_cache, open_cache


class RunFolder:
    """The files of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def check_new(path: Path) -> None:
        """Checks that nothing would be overwritten.

        Raises:
            ConfigError: the folder exists and is not empty, or is a file.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"--out: got {path}, which exists, accepted: a new folder (or go on with --resume {path})"
            )

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Makes a new folder and writes the configuration.

        Raises:
            ConfigError: the folder exists and is not empty, or is a file.
            OSError: it can't be written.
        """
        cls.check_new(path)
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
        else:  # an image folder, which goes by its path
            data = dataclasses.replace(config.data, name=data_dir)
        return dataclasses.replace(config, data=data)

    def network(self, name: str) -> Path:
        """The folder of one network, made if need be."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder

    def results(self) -> list[Result]:
        """What is done: the teacher first, then the students by method and seed."""
        found = [Result.read(path) for path in self.path.glob("*/result.json")]
        order = ["teacher", *METHODS]
        return sorted(found, key=lambda result: (order.index(result.method), result.seed))

    def students(self, method: str | None = None, seed: int | None = None) -> list[str]:
        """The names of the saved students, of one method or seed alone if given, in the order of the configuration.

        Raises:
            ConfigError: the folder is no run.
            CheckpointError: no such student is there.
        """
        config = self.config()
        every = [(each, number) for each in config.method.methods for number in config.run.seeds]
        wanted = [one for one in every if method in (None, one[0]) and seed in (None, one[1])]
        saved = [
            name
            for name in (network_name(*one) for one in wanted)
            if (self.path / name / "student.safetensors").is_file()
        ]
        if not saved:
            names = ", ".join(network_name(*one) for one in every)
            raise CheckpointError(f"{self.path}: has no saved student of this method and seed; this run's are {names}")
        return saved

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of every epoch; a line that a crash cut off is left out."""
        lines: list[dict[str, Any]] = []
        if self._metrics.is_file():
            for line in self._metrics.read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError):
                    lines.append(json.loads(line))
        return lines

    def rewind_metrics(self, name: str, epoch: int) -> None:
        """Drops a network's metrics from `epoch` on: they are about to be computed again."""
        kept = [line for line in self.metrics() if line["name"] != name or line["epoch"] < epoch]
        write_atomically(self._metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Appends a line."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def make_fabric(config: Config) -> Fabric:
    """Fabric for one device.

    Raises:
        ConfigError: the device is unknown or not there, or can't do the precision.
    """
    kind, _, index = config.run.device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdecimal()):
        raise ConfigError(f"--device: got {config.run.device!r}, accepted: auto, cpu, cuda, cuda:N or mps")
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=[int(index)] if index else 1,
            precision=config.run.precision,  # type: ignore[arg-type]  # checked against Fabric's names already
        )
    # Fabric has an exception of its own for each missing accelerator.
    except Exception as error:
        raise ConfigError(f"--device {config.run.device} --precision {config.run.precision}: {error}") from error
    fabric.launch()
    return fabric


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Within it PyTorch computes with `count` threads; None leaves their number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Inputs:
    """What a run needs from outside, there before anything is written.

    Attributes:
        config: all settings.
        fabric: the device.
        data: the images, on it.
        cache: the teacher's outputs on them, where the teacher is not to be run.
    """

    config: Config
    fabric: Fabric
    data: Dataset
    cache: TeacherCache | None = None

    @classmethod
    def load(cls, config: Config) -> Inputs:
        """Finds the device, reads the data, tries the networks' names and opens the teacher's cache.

        Its number of views becomes that of the configuration.

        Raises:
            ConfigError: a device or a network is unknown.
            DataError: images are missing or damaged.
            CheckpointError: the cache, or the teacher's weights for it, are missing, damaged, or don't fit.
        """
        fabric = make_fabric(config)
        inputs = cls(config, fabric, load_dataset(config.data).to(fabric.device))
        for name in (config.models.teacher, config.models.student):
            build_model(name, inputs.spec)
        if config.models.teacher_cache is None:
            return inputs
        cache = open_cache(config, inputs.data, inputs.given_teacher())
        views = dataclasses.replace(config.data, views=cache.layout.views)
        return dataclasses.replace(inputs, config=dataclasses.replace(config, data=views), cache=cache)

    def given_teacher(self) -> nn.Module:
        """The teacher of `--teacher-checkpoint`, on the device.

        Raises:
            ConfigError: none was given.
            CheckpointError: the file is missing, damaged, or of another network.
        """
        models = self.config.models
        if models.teacher_checkpoint is None:
            raise ConfigError("--teacher-checkpoint: not given, accepted: safetensors file with the teacher's weights")
        network = build_model(models.teacher, self.spec).to(self.fabric.device)
        load_teacher(Path(models.teacher_checkpoint), network, models.teacher)
        return network.eval()

    @property
    def spec(self) -> InputSpec:
        """What the networks read and yield."""
        return InputSpec(self.data.channels, self.data.size, len(self.data.classes))


@dataclass
class Run:
    """Everything that the parts of a run share.

    Attributes:
        inputs: settings, device and data.
        folder: where the files go.
        observer: hears of the progress.
        stop: whether somebody asked to stop.
    """

    inputs: Inputs
    folder: RunFolder
    observer: Observer
    stop: StopRequest

    def __post_init__(self) -> None:
        self.config, self.fabric, self.data = self.inputs.config, self.inputs.fabric, self.inputs.data
        self.spec = self.inputs.spec

    def batches(self, split: Split, seed: int, cache: TeacherCache | None = None) -> Batches:
        """Batches of a split, augmented by `seed` where they are drawn for training."""
        config = self.config
        return Batches(
            split,
            self.data.preprocessing,
            batch_size=config.optim.batch_size,
            pad=config.data.pad,
            flip=config.data.flip,
            seed=seed,
            views=config.data.views,
            view_seed=config.data.view_seed,
            cache=cache,
        )

    def describe(self, model: str) -> Description:
        """How to rebuild a network of this run."""
        return Description(model, self.data.classes, self.data.channels, self.data.size, self.data.preprocessing)

    def train(self, job: Job, method: Method, seed: int) -> Trained:
        """Trains one network."""
        trainer = Trainer(
            self.fabric,
            job,
            method,
            batches=self.batches(self.data.train, seed, self.inputs.cache),
            validation=self.batches(self.data.validation, seed),
            observer=self.observer,
            record=lambda metrics: self.folder.add_metrics({**_identity(job.name), **metrics}),
            stop=self.stop,
        )
        self.folder.rewind_metrics(job.name, trainer.position.epoch)
        return trainer.train()


def network_name(method: str, seed: int) -> str:
    """What a student is called: its folder in the run."""
    return f"{method}-seed{seed}"


def _identity(name: str) -> dict[str, Any]:
    method, _, seed = name.partition("-seed")
    return {"name": name, "method": method, "seed": int(seed) if seed else None}


def distill(inputs: Inputs, folder: RunFolder, observer: Observer) -> list[Result]:
    """Does what is left of a run.

    Args:
        inputs: settings, device and data.
        folder: of the run; what is done there is not repeated.
        observer: hears of the progress.

    Raises:
        RunError: see `cid._errors`.
        OSError: a file can't be written.
    """
    folder.keep_data(inputs.data.summary)
    with StopRequest() as stop, cpu_threads(inputs.config.run.threads):
        run = Run(inputs, folder, observer, stop)
        teacher = prepare_teacher(run)
        for seed in run.config.run.seeds:
            for method in run.config.method.methods:
                train_student(run, teacher, method, seed)
        results = folder.results()
        write_report(folder, results)
    return results


def write_report(folder: RunFolder, results: list[Result]) -> None:
    """Writes table and curves."""
    write_atomically(folder.path / "table.txt", (report.table(results) + "\n").encode())
    write_json(folder.path / "table.json", report.summary(results))
    if metrics := folder.metrics():
        report.plot_curves(metrics, folder.path / "curves.png")


def prepare_teacher(run: Run) -> nn.Module:
    """The teacher, trained, loaded from where it was trained earlier, or from the given file."""
    config = run.config
    seed = config.run.seeds[0]
    torch.manual_seed(seed)
    network = build_model(config.models.teacher, run.spec).to(run.fabric.device)
    folder = run.folder.network("teacher")
    path = folder / "teacher.safetensors"
    given = config.models.teacher_checkpoint
    if (folder / "result.json").is_file():
        load_teacher(path, network, config.models.teacher)
        return network.eval()
    if given is not None:
        load_teacher(Path(given), network, config.models.teacher)
        method: Method = Labels(network).eval()
        trained = None
    else:
        epochs = config.optim.teacher_epochs or config.optim.epochs
        job = Job("teacher", folder, epochs, config.optim, config.run.checkpoint_every)
        method = Labels(network)
        trained = run.train(job, method, seed)
    _finish(run, "teacher", method, path, trained)
    return network.eval()


def train_student(run: Run, teacher: nn.Module, method_name: str, seed: int) -> None:
    """One student, unless it is done."""
    name, config = network_name(method_name, seed), run.config
    folder = run.folder.network(name)
    if (folder / "result.json").is_file():
        return
    # Before anything else is drawn, so that a seed's students start from the same weights by every method.
    torch.manual_seed(seed)
    student = build_model(config.models.student, run.spec).to(run.fabric.device)
    # A copy: a method may change the teacher's flags, and none must see what another one did.
    cache = run.inputs.cache
    ingredients = (
        Ingredients(student, copy.deepcopy(teacher), run.spec.classes, config.method)
        if cache is None
        else Ingredients(student, None, run.spec.classes, config.method, teacher_dim=cache.layout.feature_dim)
    )
    method = METHODS[method_name](ingredients)
    torch.manual_seed(mix_seed(seed, 1))
    job = Job(name, folder, config.optim.epochs, config.optim, config.run.checkpoint_every)
    trained = run.train(job, method, seed)
    _finish(run, name, method, folder / "student.safetensors", trained)


def _finish(run: Run, name: str, method: Method, path: Path, trained: Trained | None) -> None:
    """Exports a network to `path`, scores it on the test data, the only time, and marks it as done."""
    identity = _identity(name)
    models = run.config.models
    model = models.teacher if name == "teacher" else models.student
    # Whatever the precision in training, what leaves it is float32, and scored as that.
    predictor = method.predictor().float().eval()
    save_network(path, predictor, run.describe(model))
    without_head = predictor.model if isinstance(predictor, InterventionalStudent) else None
    test, *own = evaluate_each([predictor, *filter(None, [without_head])], run.batches(run.data.test, 0))
    validation = trained.validation if trained else evaluate(predictor, run.batches(run.data.validation, 0)).accuracy
    result = Result(
        name=name,
        method=identity["method"],
        seed=run.config.run.seeds[0] if identity["seed"] is None else identity["seed"],
        parameters=count_parameters(predictor),
        seconds=trained.seconds if trained else 0.0,
        best_epoch=trained.best_epoch if trained else None,
        validation_accuracy=validation,
        test_accuracy=test.accuracy,
        test_loss=test.loss,
        without_head=WithoutHead(count_parameters(without_head), own[0].accuracy, own[0].loss)
        if without_head
        else None,
    )
    write_json(run.folder.network(name) / "result.json", result.to_json())
    run.observer.finish(
        name,
        f"{model}, {result.parameters:,} parameters, accuracy {test.accuracy:.2%} (test), {validation:.2%} "
        f"(validation), {result.seconds:.1f} s",
    )
    if run.stop.signal_number is not None:
        raise InterruptedRunError(name, run.stop.signal_number)


def cache_teacher(
    config: Config, out: Path, *, dtype: str, top_k: int | None, progress: Callable[[int, int], None]
) -> TeacherCache:
    """Writes what is missing of a cache of the teacher's outputs; see `cid.train.run.teacher_cache.make_cache`."""
    inputs = Inputs.load(dataclasses.replace(config, models=dataclasses.replace(config.models, teacher_cache=None)))
    with cpu_threads(config.run.threads):
        teacher = inputs.given_teacher()
        return make_cache(config, inputs.data, teacher, out, dtype=dtype, top_k=top_k, progress=progress)


def score_students(
    folder: RunFolder,
    *,
    method: str | None,
    seed: int | None,
    data_dir: str | None,
    report_score: Callable[[str, float], None],
) -> None:
    """Scores saved students of a run on its test data.

    Args:
        folder: of the run.
        method: only this method's.
        seed: only this seed's.
        data_dir: where the data set is now, if it was moved.
        report_score: takes the name and the accuracy of each.

    Raises:
        CheckpointError: no such student is there.
        ConfigError: the data is not what the students were trained for.
        DataError: images are missing or damaged.
    """
    names = folder.students(method, seed)
    config = folder.config(data_dir)
    data = load_dataset(config.data)
    batches = Batches(data.test, data.preprocessing, batch_size=config.optim.batch_size, pad=0, flip=False, seed=0)
    for name in names:
        network = read_network_for(folder.path / name / "student.safetensors", data)
        report_score(name, evaluate(network, batches).accuracy)
