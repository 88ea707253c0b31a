"""Ranks gather contexts apart and turn one bank together."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import cid

RANKS, STEPS, B, C = 2, 3, 8, 4


def make(**options: Any) -> cid.Distiller:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, C))
    teacher = nn.Sequential(nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, C))
    return cid.Distiller(student, teacher, num_classes=C, beta=1.0, gamma=1.0, warmup_epochs=0, **options)


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(B, 10, generator=generator), torch.randint(C, (B,), generator=generator)) for _ in range(STEPS)
    ]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    distiller = make()
    parallel = nn.parallel.DistributedDataParallel(distiller)
    for x, y in batches(rank):
        parallel(x, y).loss.backward()
    distiller.epoch_end()
    by_step = make(steps_per_turn=STEPS)
    parallel = nn.parallel.DistributedDataParallel(by_step)
    for x, y in [*batches(rank), *batches(rank)[:1]]:
        parallel(x, y).loss.backward()
    torch.save([one.criterion.bank.context for one in (distiller, by_step)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_the_bank_is_that_of_all_ranks(tmp_path: Path) -> None:
    spawn(work, args=(str(tmp_path),), nprocs=RANKS)
    alone = make()
    for rank in range(RANKS):
        for x, y in batches(rank):
            alone(x, y)
    alone.epoch_end()
    for rank in range(RANKS):
        for context in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            torch.testing.assert_close(context, alone.criterion.bank.context)
