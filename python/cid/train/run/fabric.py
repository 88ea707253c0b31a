"""Where networks are trained, in what precision, and by how many processes: Lightning Fabric for the settings."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import Any

from cid._errors import ConfigError
from cid.train.config import Config
from cid.train.run.launch import Launched, launched
from cid.train.sharding import shard

__all__ = ["Fabric", "is_sharding", "make_fabric"]


@contextmanager
def version_alone(package: str) -> Iterator[None]:
    """Within it a package that was not imported yet has a version, for those who look at nothing else."""
    try:
        version = None if package in sys.modules else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = None
    if version is None:
        yield
        return
    stand_in = sys.modules[package] = ModuleType(package)
    stand_in.__version__ = version  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del sys.modules[package]


# Fabric rather than Accelerate: it needs less around it (no client of a model hub), and of a training loop it takes
# only what we want to give away: device, precision, launch and distributed backward. The loop stays readable.
# Fabric looks at the version of torchmetrics, which brings all of torchvision, SciPy and Transformers: twice as much as
# all else that a run imports.
with version_alone("torchmetrics"):
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.plugins.precision.double import DoublePrecision
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
    from lightning_fabric.strategies.strategy import Strategy


def make_fabric(config: Config) -> Fabric:
    """Fabric for one device, or for those of the processes that a launcher has started, one each.

    Raises:
        ConfigError: the device is unknown or not there, or can't do the precision.
    """
    kind, _, index = config.run.device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdecimal()):
        raise ConfigError(f"--device: got {config.run.device!r}, accepted: auto, cpu, cuda, cuda:N or mps")
    processes = launched()
    if index and processes is not None:
        raise ConfigError(f"--device: got {config.run.device!r}, accepted: {kind}, as each process takes one by itself")
    how: dict[str, Any] = {"devices": [int(index)] if index else 1, "precision": config.run.precision}
    if processes is not None:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # which greets from each process
        how |= {"devices": processes.here, "num_nodes": processes.machines, "plugins": [TorchElasticEnvironment()]}
        how["strategy"] = _strategy(config, processes)
        if config.run.shard and config.run.precision == "64-true":  # refused by name, and not as a plugin
            how["plugins"].append(DoublePrecision())
            del how["precision"]
    try:
        fabric = Fabric(accelerator=kind, **how)
    # Fabric has an exception of its own for each missing accelerator.
    except Exception as error:
        raise ConfigError(f"--device {config.run.device} --precision {config.run.precision}: {error}") from error
    fabric.launch()
    return fabric


def _strategy(config: Config, processes: Launched) -> Strategy:
    """How several processes train one network."""
    timeout = timedelta(hours=12)  # some wait long for what the first rank does
    if config.run.shard:
        ranks = processes.machines * processes.here
        return ModelParallelStrategy(
            lambda training, mesh: shard(training, mesh["data_parallel"]),
            data_parallel_size=ranks,
            tensor_parallel_size=1,
            timeout=timeout,
        )
    # Networks of other libraries may have parameters of no use here.
    unused = ":" in config.models.student or ":" in config.models.teacher
    return DDPStrategy(timeout=timeout, find_unused_parameters=unused)


def is_sharding(fabric: Fabric) -> bool:
    """Whether it leaves each process a part of what is trained."""
    return isinstance(fabric.strategy, ModelParallelStrategy)
