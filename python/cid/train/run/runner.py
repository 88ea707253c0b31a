"""A whole run: the teacher once, then weights, every student and the report; each part only if it is not done yet."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cid._errors import ConfigError, InterruptedRunError
from cid._files import write_atomically
from cid.cache import TeacherCache
from cid.train.config import Config
from cid.train.data import Batches, Mixing, Split, mix_seed
from cid.train.files import write_json
from cid.train.folder import TEACHER, Result, RunFolder, network_name
from cid.train.methods import Ingredients, SampleWeights, Training, Weighting
from cid.train.methods.labels import Labels
from cid.train.networks import Description, read_network_for
from cid.train.results import curves, table
from cid.train.run.finish import finish
from cid.train.run.inputs import Inputs, cpu_threads
from cid.train.run.loggers import RunLog
from cid.train.run.loop import Job, Trained, Trainer
from cid.train.run.precision import FULL
from cid.train.run.progress import Observer
from cid.train.run.signals import StopRequest
from cid.train.run.teacher_cache import make_cache
from cid.train.run.weights import weigh_samples


@dataclass(frozen=True)
class Network:
    """One of the networks of a run.

    Attributes:
        method: how it is trained, or that it is the teacher.
        seed: of its weights, batches and augmentation.
        model: its name, as `--student` takes it.
        epochs: how long it is trained.
    """

    method: str
    seed: int
    model: str
    epochs: int

    @property
    def name(self) -> str:
        """What messages and the run's folder call it."""
        return TEACHER if self.method == TEACHER else network_name(self.method, self.seed)

    @property
    def key(self) -> dict[str, str | int | None]:
        """What each line of its metrics begins with; the teacher is every seed's."""
        return {"name": self.name, "method": self.method, "seed": None if self.method == TEACHER else self.seed}


@dataclass
class Run:
    """Everything that the parts of a run share.

    Attributes:
        inputs: settings, device and data.
        folder: where the files go.
        observer: hears of the progress.
        stop: whether somebody asked to stop.
        weights: of the samples, by what methods ask for.
        cache: the teacher's outputs, where it is not to be run for each batch.
    """

    inputs: Inputs
    folder: RunFolder
    observer: Observer
    stop: StopRequest
    weights: dict[Weighting | None, SampleWeights] = field(default_factory=dict)
    cache: TeacherCache | None = None

    def __post_init__(self) -> None:
        self.config, self.fabric, self.data = self.inputs.config, self.inputs.fabric, self.inputs.data
        self.spec = self.inputs.spec
        self.cache = self.inputs.cache
        self.ranks = self.inputs.ranks
        loggers = self.config.run.logger if self.ranks.first else ()
        self.log = RunLog(loggers, self.folder, self.config, self.observer.note)

    def batches(
        self,
        split: Split,
        seed: int,
        *,
        cache: TeacherCache | None = None,
        weights: Tensor | None = None,
        logit_adjustments: Tensor | None = None,
    ) -> Batches:
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
            weights=weights,
            logit_adjustments=logit_adjustments,
            ranks=self.ranks,
            mixing=Mixing.of(config.data, len(self.data.classes)),
        )

    def seed(self, seed: int) -> None:
        """Seeds what is drawn in training (dropout): each rank draws for its own samples."""
        torch.manual_seed(mix_seed(seed, self.ranks.rank) if self.ranks.rank else seed)

    def stop_if_asked(self, name: str) -> None:
        """Ends the run after a network.

        Raises:
            InterruptedRunError: a signal came, on any rank.
        """
        if (number := self.ranks.first_of(self.stop.signal_number)) is not None:
            raise InterruptedRunError(name, number)

    def ingredients(self, student: nn.Module, teacher: nn.Module | None, split: Split | None = None) -> Ingredients:
        """What a method makes its networks of, to be trained on a split: all training images if it is not given."""
        cache = self.cache
        return Ingredients(
            student,
            teacher,
            self.spec,
            (split or self.data.train).labels.cpu(),
            teacher_dim=None if cache is None else cache.layout.feature_dim,
            fresh_student=lambda: self.inputs.student().network,
            process_group=torch.distributed.group.WORLD if self.ranks.size > 1 else None,
            pairs="local" if self.config.run.local_pairs else "all",
            longest=self.config.optim.batch_size // self.ranks.size + 3,  # parts are cut between pairs
        )

    def describe(self, model: str) -> Description:
        """How to rebuild a network of this run."""
        return Description(model, self.data.classes, self.data.channels, self.data.size, self.data.preprocessing)

    def train(self, network: Network, training: Training, weights: SampleWeights | None = None) -> Trained:
        """Trains one network, its samples and those that choose the epoch weighted if they are to be."""
        config, name, optim = self.config, network.name, self.config.optim
        if network.method == TEACHER:
            optim = dataclasses.replace(optim, lr=optim.teacher_lr or optim.lr)
        train, validation, adjustment = (
            (None, None, None) if weights is None else (weights.train, weights.validation, weights.logit_adjustment)
        )
        job = Job(
            name,
            self.folder.network(name),
            network.epochs,
            optim,
            config.run.checkpoint_every,
            patience=config.optim.patience,
            ema=None if network.method == TEACHER else config.optim.ema,
            norms_over_ranks=config.run.sync_batchnorm,
        )
        return self.fit(
            job,
            training,
            self.batches(
                self.data.train,
                network.seed,
                cache=self.cache,
                weights=train,
                logit_adjustments=adjustment,
            ),
            self.batches(self.data.validation, network.seed, weights=validation),
            self.folder,
            network.key,
            network,
        )

    def fit(
        self,
        job: Job,
        training: Training,
        batches: Batches,
        validation: Batches,
        files: RunFolder,
        key: Mapping[str, Any],
        network: Network | None = None,
    ) -> Trained:
        """Does a job from where an earlier attempt stopped; its metrics go to `files`, each line begun by `key`.

        Those of a network of the run, if it is one, go where people look, too.
        """

        def record(metrics: dict[str, Any]) -> None:
            files.add_metrics({**key, **metrics})
            if network is not None:
                self.log.epoch(metrics)

        if self.config.run.compile:
            part = self.ranks.part(self.config.optim.batch_size)
            training.compile_step((part.stop - part.start) // self.config.optim.accumulate)
        trainer = Trainer(
            self.fabric,
            job,
            training,
            batches=batches,
            validation=validation,
            observer=self.observer,
            record=record,
            stop=self.stop,
        )
        files.rewind_metrics(key["name"], trainer.position.epoch)
        if network is not None:
            begun = network.name, network.method, network.seed, trainer.position.epoch
            self.ranks.of_first(lambda: self.log.begin(*begun))
        return trainer.train()


# --- the acts --------------------------------------------------------------------------------------------------------


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
    with _open(inputs, folder, observer) as run:
        teacher = prepare(run)
        for seed in run.config.run.seeds:
            for method in run.config.method.methods:
                train_student(run, teacher, method, seed)
        results = folder.results()
        write_table_and_curves(folder, results)
    return results


def distill_part(inputs: Inputs, folder: RunFolder, observer: Observer, student: tuple[str, int] | None) -> None:
    """Does what comes before the students of a run, and one of these if it is named.

    Once that is done, several processes may each do a student of the run at a time. See `distill`.
    """
    with _open(inputs, folder, observer) as run:
        teacher = prepare(run)
        if student is not None:
            train_student(run, teacher, *student)


@contextmanager
def _open(inputs: Inputs, folder: RunFolder, observer: Observer) -> Iterator[Run]:
    inputs.ranks.of_first(lambda: folder.keep_data(inputs.data.summary))
    folder.writes = inputs.ranks.first
    with StopRequest() as stop, cpu_threads(inputs.config.run.threads):
        run = Run(inputs, folder, observer, stop)
        with closing(run.log):
            yield run


def prepare(run: Run) -> nn.Module:
    """The teacher, and the weights that methods ask for, each unless it is there."""
    teacher = prepare_teacher(run)
    methods = map(run.config.method.options, run.config.method.methods)
    run.weights = weigh_samples(run, [method.weighting() for method in methods])
    if run.config.models.cache_teacher:
        run.cache = keep_outputs(run, teacher)
    return teacher


def keep_outputs(run: Run, teacher: nn.Module) -> TeacherCache:
    """What the teacher says of every view, in the run's folder, unless it is there: as a student would hear it.

    Raises:
        InterruptedRunError: a signal came; what is finished is kept.
    """

    def shard_done(_done: int, _total: int) -> None:
        if (number := run.stop.signal_number) is not None:
            raise InterruptedRunError("the teacher's outputs", number)

    def make() -> TeacherCache:
        folder = run.folder.path / "teacher-cache"
        with run.fabric.autocast():
            return make_cache(run.config, run.data, teacher, folder, dtype="float32", top_k=None, progress=shard_done)

    teacher.to(run.fabric.device)
    if run.ranks.size > 1:
        run.ranks.of_first(lambda: make() and None)  # then each opens what is there
    cache = make()
    teacher.to(run.inputs.home)
    return cache


def write_table_and_curves(folder: RunFolder, results: list[Result]) -> None:
    """Writes table and curves."""
    if not folder.writes:
        return
    write_atomically(folder.path / "table.txt", (table.table(results) + "\n").encode())
    write_json(folder.path / "table.json", table.summary(results))
    if metrics := folder.metrics():
        curves.plot_curves(metrics, folder.path / "curves.png")


def prepare_teacher(run: Run) -> nn.Module:
    """The teacher, trained, loaded from where it was trained earlier, or from the given file."""
    config = run.config
    optim = config.optim
    teacher = Network(TEACHER, config.run.seeds[0], config.models.teacher, optim.teacher_epochs or optim.epochs)
    if run.folder.is_done(TEACHER):
        return read_network_for(run.folder.weights(TEACHER), run.data).to(run.inputs.home)
    torch.manual_seed(teacher.seed)
    network = run.inputs.teacher().network
    training = Training(Labels(), run.ingredients(network, None))
    trained = run.train(teacher, training) if run.inputs.teacher_is_trained else None
    finish(run, teacher, training.predictor(), trained)
    return network.to(run.inputs.home).eval()


def train_student(run: Run, teacher: nn.Module, method: str, seed: int) -> None:
    """One student, unless it is done."""
    config = run.config
    network = Network(method, seed, config.models.student, config.optim.epochs)
    if run.folder.is_done(network.name):
        return
    # Before anything else is drawn, so that a seed's students start from the same weights by every method.
    torch.manual_seed(seed)
    student = run.inputs.student().network
    # A copy: a method may change the teacher's flags, and none must see what another one did.
    options = config.method.options(method)
    asked = copy.deepcopy(teacher) if run.cache is None or options.asks_teacher else None
    training = Training(options, run.ingredients(student, asked))
    run.seed(mix_seed(seed, 1))
    trained = run.train(network, training, run.weights.get(options.weighting()))
    finish(run, network, training.predictor(), trained)


def cache_teacher(
    config: Config, out: Path, *, dtype: str, top_k: int | None, progress: Callable[[int, int], None]
) -> TeacherCache:
    """Writes what is missing of a cache of the teacher's outputs; see `cid.train.run.teacher_cache.make_cache`."""
    # The teacher's outputs are of full precision: there is nothing to measure.
    models, run = (
        dataclasses.replace(config.models, teacher_cache=None),
        dataclasses.replace(config.run, precision=FULL),
    )
    inputs = Inputs.load(dataclasses.replace(config, models=models, run=run))
    with cpu_threads(config.run.threads):
        if inputs.teacher_is_trained:
            raise ConfigError(
                "--teacher-checkpoint: not given, accepted: a file with the teacher's weights; or --pretrained "
                "--teacher-epochs 0"
            )
        teacher = inputs.teacher().network.eval()
        return make_cache(config, inputs.data, teacher, out, dtype=dtype, top_k=top_k, progress=progress)
