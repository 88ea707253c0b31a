"""Ranks whose batches are parts of one train as one process does with the whole batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import cid
from tests import draws
from tests.processes import in_ranks, join_gloo

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


def work(rank: int, ranks: int, folder: Path) -> None:
    join_gloo(folder, rank, ranks)
    found: dict[str, Any] = {}
    for name in cases(ranks):
        kind, options = CASES[name]
        distiller = make(process_group=dist.group.WORLD, **options)
        found[name] = train(distiller, DistributedDataParallel(distiller), kind, epochs(name), rank, ranks)
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_as_one_process(ranks: int, tmp_path: Path) -> None:
    in_ranks(ranks, work, ranks, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for name in cases(ranks):
        kind, options = CASES[name]
        alone = make(**options)
        for key, expected in train(alone, alone, kind, epochs(name)).items():
            for each in found:
                close(each[name][key], expected, f"{name}, {key}")


def close(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=lambda text: f"{what}: {text}")


def shard(rank: int, ranks: int, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    join_gloo(folder, rank, ranks)
    distiller = make(process_group=dist.group.WORLD)
    mesh = init_device_mesh("cpu", (ranks,))
    for module in (distiller.student_model, distiller.teacher_model, distiller):
        assert module is not None
        fully_shard(module, mesh=mesh)
    train(distiller, distiller, "unlabelled", 2, rank, ranks)
    found = get_model_state_dict(distiller, options=StateDictOptions(full_state_dict=True))
    torch.save(found, folder / f"{rank}.pt")


def test_sharded_ranks_train_as_one_process(tmp_path: Path) -> None:
    in_ranks(2, shard, 2, tmp_path)
    alone = make()
    train(alone, alone, "unlabelled", 2)
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    for key, expected in alone.state_dict().items():
        close(found[key], expected, key)


def one_step(rank: int, ranks: int, folder: Path) -> None:
    """A step with pairs of each rank alone, one in eval mode, one of more samples than before, and one compiled."""
    join_gloo(folder, rank, ranks)
    x, y, _ = steps("labels")[0]
    own = part(x, rank, ranks), part(y, rank, ranks)
    local = make(process_group=dist.group.WORLD, pairs="local", warmup_epochs=0)
    terms = local(*own)
    terms.loss.backward()
    found: dict[str, Any] = {"local": list(terms[:5]), "gradient": local.criterion.head.weight.grad}
    found["local bytes"] = local.criterion.across and local.criterion.across.received
    every = make(process_group=dist.group.WORLD, warmup_epochs=0)
    every(own[0][:2], own[1][:2])
    found["grown"] = list(every(*own)[:5])
    every(*own)
    found["bytes"] = every.criterion.across and every.criterion.across.received
    found["eval"] = list(every.eval()(*own)[:5])  # nothing is exchanged: ranks may have as many batches as they like
    compiled = make(process_group=dist.group.WORLD, warmup_epochs=0)
    found["compiled"] = list(torch.compile(compiled, backend="eager")(*own)[:5])
    torch.save(found, folder / f"{rank}.pt")


# PyTorch's compiler looks at this attribute of what it goes on with after what it leaves alone.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_what_ranks_exchange_in_a_step(tmp_path: Path) -> None:
    ranks = 3
    in_ranks(ranks, one_step, ranks, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    x, y, _ = steps("labels")[0]
    alone = make(warmup_epochs=0)
    whole = alone(x, y)
    whole.loss.backward()
    for name in ("grown", "compiled"):
        for expected, *parts in zip(whole[:5], *(each[name] for each in found), strict=True):
            close(torch.stack(parts).mean(), expected.detach(), name)
    local = [make(warmup_epochs=0)(part(x, rank, ranks), part(y, rank, ranks)) for rank in range(ranks)]
    _, ce, kd, sample, class_ = (
        torch.stack(parts).mean() for parts in zip(*(each["local"] for each in found), strict=True)
    )
    for value, expected in ((ce, whole.ce), (kd, whole.kd), (sample, whole.sample)):
        close(value, expected, "with local pairs")
    close(class_, torch.stack([each.class_ for each in local]).mean(), "class of local pairs")
    for each, expected in zip(found, local, strict=True):
        close(torch.stack(each["eval"]), torch.stack(expected[:5]), "in eval mode")
    longest = -(-len(y) // ranks)  # as 13 are 5, 4 and 4
    labels, features = 8 * (2 + longest), 8 * longest * (6 + 9)
    for each in found:
        # The head does not depend on class, whose pairs differ.
        torch.testing.assert_close(each["gradient"], alone.criterion.head.weight.grad)
        assert each["local bytes"] == (ranks - 1) * labels + (ranks - 1) * 8 * 2
        assert each["bytes"] == (ranks - 1) * (labels + features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_group": "world"}, "process_group: got str, accepted: torch.distributed.ProcessGroup"),
        ({"pairs": "some"}, "pairs: got 'some'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        make(**options)
