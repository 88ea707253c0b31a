"""What two processes on this machine really send, compute and keep in a step, beside what the model says of it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

import cid
from benches.scale import model
from benches.scale.model import Step
from cid.train.run.batch_norm import over_ranks

RANKS, INPUTS, HIDDEN = 2, 7, 12


class Pair(NamedTuple):
    """A number of the model, and the same counted."""

    what: str
    modelled: int
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
    over_ranks(student)
    return student, network(step.teacher_dim)


def body() -> int:
    """Parameters of such a network up to its features, but for the weights and biases of the last layer before them."""
    return INPUTS * HIDDEN + HIDDEN + 2 * HIDDEN


def as_counted(step: Step) -> Step:
    """The step as it is here: with the small student."""
    trained = body() + (HIDDEN + 1) * step.student_dim
    return Step(step.batch, step.classes, step.student_dim, step.teacher_dim, RANKS, trained, norms=(HIDDEN,), pairs=step.pairs)


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
    across, bank = distiller.criterion.across, distiller.criterion.bank
    assert across is not None
    sums = model.gradients(step) + model.head_gradients(step) + model.statistics_gradients(step)
    head = distiller.criterion.head
    state = sum(each.nbytes for each in (*head.parameters(), *bank.buffers()))
    expected = model.kept(step)
    return [
        Pair("labels and features, received", int(model.gathered(step, model.labels(step) + model.features(step))), across.received),
        Pair("batch normalisation, gathered", model.statistics(step, gpu=False), heard.gathered - across.received // (RANKS - 1)),
        Pair("gradients, summed", sums, heard.reduced),
        Pair("bank, summed once an epoch", model.bank_sums(step), turned.reduced),
        Pair("bank and head, kept", int(expected["bank"] + expected["head"] / 3), state),
        Pair("products of the loss, FLOP", model.products(step), products(step)),
    ]


def products(step: Step) -> int:
    """FLOP of the products of the loss on one rank's samples, but for those of class, which go by labels."""
    b, c, ds, dt = step.batch, step.classes, step.student_dim, step.teacher_dim
    criterion = cid.CIDLoss(ds, dt, c, beta=1.0, gamma=1.0, warmup_epochs=0, backend="reference")
    f, s = torch.randn(b, ds, requires_grad=True), torch.randn(b, c, requires_grad=True)
    given = f, s, torch.randn(b, dt), torch.randn(b, c), torch.randint(c, (b,))
    with FlopCounterMode(display=False) as all_of_it:
        criterion(*given).loss.backward()
    with FlopCounterMode(display=False) as of_class:
        cid.functional.class_loss(f, given[2], given[4], backend="reference").backward()
    return all_of_it.get_total_flops() - of_class.get_total_flops()


def work(rank: int, steps: list[Step], folder: str) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    found = [[tuple(pair) for pair in compare(step, rank)] for step in steps]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def count(steps: list[Step]) -> list[list[Pair]]:
    """The pairs of each step, as the first of two processes has them."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, args=(steps, folder), nprocs=RANKS)
        found = torch.load(os.path.join(folder, "0.pt"), weights_only=True)
    return [[Pair(*pair) for pair in pairs] for pairs in found]


SIZES = [
    as_counted(Step(batch, classes, student_dim, teacher_dim, pairs=pairs))
    for batch, classes, student_dim, teacher_dim, pairs in (
        (5, 3, 6, 9, "all"), (5, 3, 6, 9, "local"), (32, 100, 64, 256, "all"), (64, 1000, 128, 512, "all"),
        (33, 20011, 37, 65, "all"),
    )
]  # fmt: skip
