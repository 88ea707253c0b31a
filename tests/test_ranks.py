"""Ranks whose batches are parts of one train as one process does with the whole batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import cid
from tests import draws

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")

STEPS, B, C, D = 10, 13, 4, 10
TERMS = ("loss", "ce", "kd", "sample", "class_")
Step = tuple[Tensor, Tensor, Tensor | None]


def make(**options: Any) -> cid.Distiller:
    draws.seed(0)
    student = nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Linear(6, C))
    teacher = nn.Sequential(nn.Linear(D, 9), nn.ReLU(), nn.Linear(9, C))
    return cid.Distiller(
        student.double(), teacher.double(), num_classes=C, **{"beta": 1.0, "gamma": 1.0, "warmup_epochs": 1, **options}
    )


def steps(kind: str) -> list[Step]:
    """The batches of an epoch: the last is short."""
    generator = torch.Generator().manual_seed(draws.shifted(1))
    found: list[Step] = []
    for step in range(STEPS):
        count = B if step + 1 < STEPS else 9
        x = torch.randn(count, D, generator=generator, dtype=torch.float64)
        y = torch.randint(C, (count,), generator=generator)
        shares = torch.rand(count, C, generator=generator, dtype=torch.float64).softmax(1)
        weight = torch.rand(count, generator=generator, dtype=torch.float64) if kind == "weighted" else None
        if kind == "unlabelled":
            y[: 1 + step % 5] = -100
        found.append((x, shares if kind == "shares" else y, weight))
    return found


def part(values: Tensor | None, rank: int, ranks: int) -> Any:
    """What a rank has of a batch: of two or more samples as many as others, or one more."""
    return None if values is None else values.tensor_split(ranks)[rank]


def train(
    distiller: cid.Distiller, wrapped: Callable[..., Any], kind: str, epochs: int, rank: int = 0, ranks: int = 1
) -> dict[str, Tensor]:
    """The mean of the terms over the ranks in each step, and all state at the end."""
    optimizer = torch.optim.SGD(distiller.param_groups(5e-4), lr=0.005, momentum=0.9, nesterov=True)
    seen = []
    for _ in range(epochs):
        for x, y, weight in steps(kind):
            optimizer.zero_grad()
            output = wrapped(part(x, rank, ranks), part(y, rank, ranks), weight=part(weight, rank, ranks))
            output.loss.backward()
            optimizer.step()
            seen.append(torch.stack([getattr(output, term).detach() for term in TERMS]))
        distiller.epoch_end()
    terms = torch.stack(seen) / ranks
    sums = terms, distiller.criterion.bank.numerator, distiller.criterion.bank.denominator
    if ranks > 1:
        for values in sums:  # each rank has its own
            dist.all_reduce(values)
    return {"terms": terms, **distiller.state_dict()}


# The batches' kind, and the distiller's options.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "labels": ("labels", {}),
    "unlabelled": ("unlabelled", {}),
    "shares, smoothed": ("shares", {"label_smoothing": 0.1}),
    "weighted": ("weighted", {"differentiable_context": True}),
    "auto": ("labels", {"beta": "auto", "gamma": "auto"}),
    "by steps": ("labels", {"steps_per_turn": STEPS, "warmup_epochs": 0, "context_momentum": 0.5}),
    "reference": ("labels", {"backend": "reference"}),
}


def epochs(case: str) -> int:
    """50 steps of the first case; for what the others are about, an epoch after the warm-up is enough."""
    return 5 if case == "labels" else 2


def cases(ranks: int) -> list[str]:
    """All where two processes share the machine, the first of them where more do."""
    return list(CASES) if ranks == 2 else list(CASES)[:2]


def work(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    found: dict[str, Any] = {}
    for name in cases(ranks):
        kind, options = CASES[name]
        distiller = make(process_group=dist.group.WORLD, **options)
        found[name] = train(distiller, DistributedDataParallel(distiller), kind, epochs(name), rank, ranks)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_as_one_process(ranks: int, tmp_path: Path) -> None:
    spawn(work, args=(ranks, str(tmp_path)), nprocs=ranks)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for name in cases(ranks):
        kind, options = CASES[name]
        alone = make(**options)
        for key, expected in train(alone, alone, kind, epochs(name)).items():
            for each in found:
                close(each[name][key], expected, f"{name}, {key}")


def close(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=lambda text: f"{what}: {text}")
