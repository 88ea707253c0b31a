"""What two processes on this machine really send, compute and keep in a step, beside what the model says of it."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

import cid
from benches.scale import model
from benches.scale.model import Step
from cid.bench import memory
from cid.train.run.batch_norm import over_ranks

RANKS, INPUTS, HIDDEN = 2, 7, 12


class Pair(NamedTuple):
    """A number of the model, and the same counted."""

    what: str
    modelled: float
    counted: int


@dataclass
class Traffic:
    """Bytes that collectives were given."""

    gathered: int = 0
    reduced: int = 0


@contextmanager
def listening() -> Iterator[Traffic]:
    """Counts what goes into PyTorch's collectives meanwhile."""
    heard, gather, reduce = Traffic(), dist.all_gather_into_tensor, dist.all_reduce

    def all_gather(every: Any, own: Any, **options: Any) -> Any:
        heard.gathered += own.nbytes
        return gather(every, own, **options)

    def all_reduce(values: Any, **options: Any) -> Any:
        heard.reduced += values.nbytes
        return reduce(values, **options)

    with patch.object(dist, "all_gather_into_tensor", all_gather), patch.object(dist, "all_reduce", all_reduce):
        yield heard


def networks(step: Step) -> tuple[nn.Module, nn.Module]:
    """Two small ones of the step's sizes; the student's normalisation is over the ranks."""

    def network(dim: int) -> nn.Module:
        body = nn.Linear(INPUTS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dim), nn.ReLU()
        return nn.Sequential(*body, nn.Linear(dim, step.classes))

    student = network(step.student_dim)
    over_ranks(student, torch.device("cpu"))
    return student, network(step.teacher_dim)


def as_counted(step: Step) -> Step:
    """The step as it is here, with the small student."""
    trained = (INPUTS + 1 + 2) * HIDDEN + (HIDDEN + 1) * step.student_dim
    return replace(step, ranks=RANKS, body=trained, norms=(HIDDEN,))


def compare(step: Step, rank: int) -> list[Pair]:
    """Of a step, the second: the first tells how long a batch may be."""
    torch.manual_seed(rank)
    distiller = cid.Distiller(
        *networks(step), num_classes=step.classes, beta=1.0, gamma=1.0, warmup_epochs=0, pairs=step.pairs,
        process_group=dist.group.WORLD, backend="reference",
    )  # fmt: skip
    parallel = DistributedDataParallel(distiller)
    parallel.register_comm_hook(None, allreduce_hook)  # so that its gradients are heard
    count = step.batch - rank  # parts of a batch may differ
    x, y = torch.randn(count, INPUTS), torch.randint(step.classes, (count,))
    parallel(x, y).loss.backward()
    with listening() as heard:
        parallel(x, y).loss.backward()
    with listening() as turned:
        distiller.epoch_end()
    criterion = distiller.criterion
    assert criterion.across is not None
    received = criterion.across.received
    state = sum(each.nbytes for each in (*criterion.head.parameters(), *criterion.bank.buffers()))
    sums = model.gradients(step) + model.head_gradients(step) + model.statistics_gradients(step)
    kept = model.kept(step)
    return [
        Pair(
            "labels and features, bytes received",
            model.gathered(step, model.labels(step) + model.features(step)),
            received,
        ),
        Pair(
            "batch normalisation, bytes received",
            model.gathered(step, model.statistics(step, gpu=False)),
            (RANKS - 1) * heard.gathered - received,
        ),
        Pair("gradients, bytes summed up", sums, heard.reduced),
        Pair("bank, bytes summed up once an epoch", model.bank_sums(step), turned.reduced),
        Pair("bank and head, bytes kept", kept["bank"] + kept["head"] / 3, state),
    ]


def fullest(step: Step) -> Pair:
    """Bytes that the loss needs beyond its inputs and their gradients."""
    b, c, ds, dt = step.batch, step.classes, step.student_dim, step.teacher_dim
    criterion = cid.CIDLoss(
        ds, dt, c, beta=1.0, gamma=1.0, warmup_epochs=0, pairs=step.pairs, process_group=dist.group.WORLD
    )
    f, s = torch.randn(b, ds, requires_grad=True), torch.randn(b, c, requires_grad=True)
    given = f, s, torch.randn(b, dt), torch.randn(b, c), torch.randint(c, (b,))

    def call() -> object:
        return torch.autograd.grad(criterion(*given).loss, [f, s, *criterion.parameters()])

    call()
    passing = model.passing(step)
    return Pair("memory of the loss, bytes", sum(passing.values()) - passing["logits"] / 2, memory.counted(call))


def products(step: Step) -> Pair:
    """FLOP of the products of the loss on one rank's samples, but for those of class, which go by labels."""
    b, c, ds, dt = step.batch, step.classes, step.student_dim, step.teacher_dim
    criterion = cid.CIDLoss(ds, dt, c, beta=1.0, gamma=1.0, warmup_epochs=0, backend="reference")
    f, s = torch.randn(b, ds, requires_grad=True), torch.randn(b, c, requires_grad=True)
    given = f, s, torch.randn(b, dt), torch.randn(b, c), torch.randint(c, (b,))
    with FlopCounterMode(display=False) as all_of_it:
        criterion(*given).loss.backward()
    with FlopCounterMode(display=False) as of_class:
        cid.functional.class_loss(f, given[2], given[4], backend="reference").backward()
    flop = all_of_it.get_total_flops() - of_class.get_total_flops()
    return Pair("products of the loss but class, FLOP", model.products(step), flop)


def work(rank: int, steps: Sequence[Step], folder: str) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    found = [([tuple(pair) for pair in compare(step, rank)], tuple(fullest(step))) for step in steps]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def count(steps: Sequence[Step]) -> list[tuple[list[Pair], Pair]]:
    """Of each step, as the first of two processes has them: what is to be equal, and what roughly so."""
    flop = [products(step) for step in steps]  # first: what PyTorch imports for it, the processes need, too
    with tempfile.TemporaryDirectory() as folder:
        start_processes(work, args=(steps, folder), nprocs=RANKS, start_method="spawn")
        found = torch.load(Path(folder) / "0.pt", weights_only=True)
    return [
        ([*(Pair(*pair) for pair in equal), of_products], Pair(*rough))
        for of_products, (equal, rough) in zip(flop, found, strict=True)
    ]


# Each with another part in the lead: none, labels alone, features, the head, the logits.
STEPS = [
    as_counted(Step(5, 3, 6, 9)),
    as_counted(Step(5, 3, 6, 9, pairs="local")),
    as_counted(Step(2048, 10, 128, 256)),
    as_counted(Step(33, 2011, 512, 65)),
    as_counted(Step(256, 8000, 16, 32)),
]
