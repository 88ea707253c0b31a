"""Several processes of one test, as a launcher starts them."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException, start_processes


def in_ranks(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Calls `work(rank, *arguments)` in processes of their own, in the environment that torchrun gives them.

    Forked where that goes, as PyTorch and the package are imported by now.
    """
    method = "fork" if _forks() else "spawn"
    start_processes(_begin, args=(count, _free_port(), work, arguments), nprocs=count, start_method=method)


def _forks() -> bool:
    """Whether a forked process can go backward: not where there was a GPU to speak to, or threads for one."""
    if torch.cuda.is_available():
        return False
    try:
        start_processes(_go_backward, nprocs=1, start_method="fork")
    except ProcessRaisedException:
        return False
    return True


def _go_backward(_rank: int) -> None:
    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).sum().backward()


def _begin(rank: int, count: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # threads of a pool are not forked
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    work(rank, *arguments)
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def join_gloo(folder: Path, rank: int, count: int) -> None:
    """Begins a process group of processors."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
