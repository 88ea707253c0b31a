"""What a run needs from outside: a device, the images, the networks' names, the teacher's cached outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cid._errors import ConfigError
from cid.cache import TeacherCache
from cid.train.config import Config
from cid.train.data import Dataset, load_dataset
from cid.train.methods import registry
from cid.train.models import InputSpec, build_model
from cid.train.models.published import Start, some, start_from_published
from cid.train.ranks import FEWEST, Ranks
from cid.train.run.fabric import Fabric, is_sharding, make_fabric
from cid.train.run.launch import launched
from cid.train.run.loggers import check_installed
from cid.train.run.precision import FULL, measured_precision
from cid.train.run.teacher_cache import open_cache
from cid.train.sharding import scalar_parameters
from cid.train.teachers import read_teacher

# A scaler would look at each part by itself; and what is measured are whole networks.
UNSHARDED_PRECISIONS = ("16-mixed", "auto")


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Within it PyTorch computes with `count` threads; None leaves their number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_ranks(config: Config) -> None:
    """Refuses what several processes can't do.

    Raises:
        ConfigError: names it.
    """
    if (processes := launched()) is None:
        return
    for name in config.method.methods:
        if kept := registry()[name].keeps:
            raise ConfigError(
                f"--methods: got {name}, which keeps {kept} of each sample, accepted: in one process, which sees all"
            )
        if config.run.shard and config.method.options(name).chooses_weights():
            raise ConfigError(
                f"--shard: with --beta or --gamma auto of {name}, accepted: numbers, as a run without it finds them"
            )
    if config.run.shard and config.run.compile:
        raise ConfigError("--shard: with --compile, accepted: either")
    if config.run.shard and config.run.precision in UNSHARDED_PRECISIONS:
        raise ConfigError(f"--shard: with --precision {config.run.precision}, accepted: bf16-mixed, 32-true and others")
    parts = processes.machines * processes.here * config.optim.accumulate
    if config.optim.batch_size < FEWEST * parts:
        raise ConfigError(
            f"--batch-size: got {config.optim.batch_size} for {parts} parts of a batch, accepted: at least "
            f"{FEWEST * parts}"
        )


def _with_precision(config: Config, precision: str) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, precision=precision))


@dataclass(frozen=True)
class Inputs:
    """What a run needs from outside, there before anything is written.

    Attributes:
        config: all settings.
        fabric: the device.
        data: the images, on it.
        cache: the teacher's outputs on them, where the teacher is not to be run.
        said: lines for people on networks that others have trained.
    """

    config: Config
    fabric: Fabric
    data: Dataset
    cache: TeacherCache | None = None
    said: tuple[str, ...] = ()

    @classmethod
    def load(cls, config: Config) -> Inputs:
        """Finds the device, reads the data, tries the networks' names and opens the teacher's cache.

        Its number of views becomes that of the configuration, and a precision that was measured, too.

        Raises:
            ConfigError: a device or a network is unknown.
            DataError: images are missing or damaged.
            CheckpointError: the cache, or the teacher's weights for it, are missing, damaged, or don't fit.
        """
        check_installed(config.run.logger)
        _check_ranks(config)  # before they meet: one that is refused leaves no other waiting
        measured = config.run.precision == "auto"
        fabric = make_fabric(_with_precision(config, FULL) if measured else config)
        inputs = cls(config, fabric, load_dataset(config.data).to(fabric.device))
        weightings = [config.method.options(method).weighting() for method in config.method.methods]
        others = [name for weighting in weightings if weighting is not None for name in weighting.models()]
        for name in dict.fromkeys((config.models.student, *others)):
            inputs.check(name, build_model(name, inputs.spec))
        if config.models.teacher_checkpoint is None:
            teacher = config.models.teacher
            inputs.check(teacher, build_model(teacher, inputs.spec, size=config.models.teacher_size))
        if measured:
            with cpu_threads(config.run.threads):
                measured_as = inputs.ranks.of_first(lambda: measured_precision(config, inputs.spec, fabric.device))
                config = _with_precision(config, measured_as)
            inputs = dataclasses.replace(inputs, config=config, fabric=make_fabric(config))
        if config.models.teacher_cache is None:
            return inputs
        cache = open_cache(config, inputs.data, inputs.teacher().network.eval())
        views = dataclasses.replace(config.data, views=cache.layout.views)
        return dataclasses.replace(inputs, config=dataclasses.replace(config, data=views), cache=cache)

    def check(self, name: str, network: nn.Module) -> None:
        """Refuses a network that can't be trained as the run is to.

        Raises:
            ConfigError: names it.
        """
        if is_sharding(self.fabric) and (scalars := scalar_parameters(network)):
            raise ConfigError(
                f"--shard: {name} has parameters that are one number ({', '.join(scalars)}), accepted: of one "
                "dimension or more"
            )

    @property
    def home(self) -> torch.device:
        """Where networks are before they are trained: on the device, but where this is to have a part of them alone."""
        return torch.device("cpu") if is_sharding(self.fabric) else self.fabric.device

    @property
    def teacher_is_trained(self) -> bool:
        """Whether the run trains its teacher: it does not where it was given one, whole."""
        return self.config.models.teacher_checkpoint is None and self.config.optim.teacher_epochs != 0

    def teacher(self, *, new_head: bool = False) -> Start:
        """The teacher before the run, at `home`: of a file, of published weights, or fresh.

        Args:
            new_head: whether its classifying layer is to be trained, so that it may be of other classes.

        Raises:
            ConfigError: its published weights can't be had, or it is not to be trained and lacks a class.
            CheckpointError: the file is missing, damaged, or of another network.
        """
        models = self.config.models
        if models.teacher_checkpoint is not None:
            start = read_teacher(
                Path(models.teacher_checkpoint),
                models.teacher,
                self.data,
                size=models.teacher_size,
                own_inputs=models.teacher_inputs != "data",
                new_head=new_head,
            )
        elif models.pretrained:
            start = self._published(models.teacher, models.teacher_size)
        else:
            network = build_model(models.teacher, self.spec, size=models.teacher_size)
            start = Start(network, self.data.classes, "")
        if start.new and not (self.teacher_is_trained or new_head):
            raise ConfigError(
                f"--teacher-epochs: got 0, accepted: at least 1, as {models.teacher} does not know the classes "
                f"{', '.join(some(start.new))}; or train its classifying layer first, by cid finetune"
            )
        start.network.to(self.home)
        return start

    def with_networks_seen(self) -> Inputs:
        """The same, once the networks that others have trained were loaded: `said` has what there is to say of them.

        Raises:
            ConfigError: they can't be had.
            CheckpointError: a file is missing, damaged, or of another network.
        """
        models, said = self.config.models, []
        if models.teacher_checkpoint is not None or models.pretrained:
            said.append(f"Teacher: {self.teacher().said}")
        if models.student_pretrained:
            said.append(f"Students: {self.student().said}")
        return dataclasses.replace(self, said=tuple(said))

    def student(self) -> Start:
        """A student before it is trained, at `home`: fresh, or of published weights.

        Raises:
            ConfigError: these can't be had.
        """
        models = self.config.models
        if models.student_pretrained:
            start = self._published(models.student, None)
        else:
            start = Start(build_model(models.student, self.spec), self.data.classes, "")
        start.network.to(self.home)
        return start

    def _published(self, name: str, size: int | None) -> Start:
        folder = self.config.models.pretrained_dir
        return start_from_published(
            name,
            self.spec,
            self.data.classes,
            self.data.preprocessing,
            folder=None if folder is None else Path(folder),
            size=size,
        )

    @property
    def ranks(self) -> Ranks:
        """The processes of the run, of which this is one."""
        return Ranks(self.fabric.global_rank, self.fabric.world_size)

    @property
    def spec(self) -> InputSpec:
        """What the networks read and yield."""
        return InputSpec(self.data.channels, self.data.size, len(self.data.classes))
