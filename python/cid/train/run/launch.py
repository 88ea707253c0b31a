"""Several processes for one run, each with a device of its own: started by torchrun, or here as torchrun does it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist

LAUNCHER = "CID_LAUNCHER"  # in the environment: the process that started this one


class Launched(NamedTuple):
    """How many processes a launcher has started: on how many machines, and on each."""

    machines: int
    here: int


def launched() -> Launched | None:
    """What torchrun has started, of which this is one; None where this one is alone."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return None
    size, here = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return Launched(size // here, here) if size > 1 else None


def follow_launcher() -> None:
    """Ends this process when the one of `launch` is gone, be it killed."""
    if launcher := os.environ.get(LAUNCHER):
        threading.Thread(target=_end_with, args=(int(launcher),), daemon=True).start()


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1.0)
    os._exit(1)


def has_launcher() -> bool:
    """Whether this process is one of `launch`."""
    return LAUNCHER in os.environ


def is_of_another(error: RuntimeError) -> bool:
    """Whether an error says that another process of the run is gone."""
    return launched() is not None and (isinstance(error, dist.DistError) or "gloo" in str(error))


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs `cid` with these arguments in several processes of this machine; when one fails, all end.

    Returns:
        The exit code of the one that failed first, or 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What has failed the processes tell by themselves.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # As torchrun does: the processes would each take all cores.
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "cid", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode  # it has said why
        print(
            f"cid: error: the process of rank {rank} was ended by signal {-failure.exitcode}, and the others with it; "
            "go on with: cid distill --resume, of the run's folder",
            file=sys.stderr,
        )
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
