"""Ranks gather contexts apart and turn one bank together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import cid
from cid.train.data import Batch
from cid.train.methods import Ingredients, Training
from cid.train.methods.cid import CID
from cid.train.models import InputSpec
from tests import draws
from tests.processes import in_ranks, join_gloo

RANKS, STEPS, B, C = 2, 3, 8, 4


def make(**options: Any) -> cid.Distiller:
    draws.seed(0)
    student = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, C))
    teacher = nn.Sequential(nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, C))
    return cid.Distiller(student, teacher, num_classes=C, **{"beta": 1.0, "gamma": 1.0, "warmup_epochs": 0, **options})


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(draws.shifted(rank))
    return [
        (torch.randn(B, 10, generator=generator), torch.randint(C, (B,), generator=generator)) for _ in range(STEPS)
    ]


def work(rank: int, folder: str) -> None:
    join_gloo(Path(folder), rank, RANKS)
    distiller = make()
    parallel = nn.parallel.DistributedDataParallel(distiller)
    for x, y in batches(rank):
        parallel(x, y).loss.backward()
    distiller.epoch_end()
    by_step = make(steps_per_turn=STEPS)
    parallel = nn.parallel.DistributedDataParallel(by_step)
    for x, y in [*batches(rank), *batches(rank)[:1]]:
        parallel(x, y, weight=y + 0.5).loss.backward()  # the contexts are not weighed
    torch.save([one.criterion.bank.context for one in (distiller, by_step)], f"{folder}/{rank}.pt")


def choose(rank: int, folder: str) -> None:
    join_gloo(Path(folder), rank, RANKS)
    distiller = make(beta="auto", gamma="auto")
    parallel = nn.parallel.DistributedDataParallel(distiller)
    for x, y in batches(rank):
        parallel(x, y).loss.backward()
    torch.save((distiller.criterion.beta, distiller.criterion.gamma), f"{folder}/{rank}.pt")


def bank_of_all_ranks() -> Tensor:
    """What one process gathers from the batches of all."""
    alone = make()
    for rank in range(RANKS):
        for x, y in batches(rank):
            alone(x, y)
    alone.epoch_end()
    return alone.criterion.bank.context


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_the_bank_is_that_of_all_ranks(tmp_path: Path) -> None:
    in_ranks(RANKS, work, str(tmp_path))
    expected = bank_of_all_ranks()
    for rank in range(RANKS):
        for context in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            torch.testing.assert_close(context, expected)


def train_methods(rank: int, folder: str) -> None:
    """The command line's method, wrapped as its loop does it."""
    join_gloo(Path(folder), rank, RANKS)
    networks = make()
    given = Ingredients(networks.student_model, networks.teacher_model, InputSpec(1, (1, 1), C), torch.arange(B))
    plain = Training(CID(beta=1.0, gamma=1.0, warmup_epochs=0), given)
    ignored = set(plain._ddp_params_and_buffers_to_ignore)
    parallel = nn.parallel.DistributedDataParallel(plain)
    for x, y in batches(rank):
        parallel(Batch(x, y, torch.arange(B))).loss.backward()
    plain.epoch_end()
    compiled = make()
    parallel = nn.parallel.DistributedDataParallel(torch.compile(compiled, backend="eager"))
    read: list[None] = []
    compiled.criterion._read = lambda all_changed: read.append(None)  # type: ignore[method-assign]
    for x, y in batches(rank):
        parallel(x, y).loss.backward()
    compiled.epoch_end()
    banks = [plain.distiller.criterion.bank.context, compiled.criterion.bank.context]
    torch.save((banks, len(read), sorted(ignored)), f"{folder}/{rank}.pt")


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_the_bank_of_a_method_or_a_compiled_distiller_is_that_of_all_ranks(tmp_path: Path) -> None:
    in_ranks(RANKS, train_methods, str(tmp_path))
    expected = bank_of_all_ranks()
    for rank in range(RANKS):
        banks, read, ignored = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for context in banks:
            torch.testing.assert_close(context, expected)
        assert read == 0  # on a GPU it would wait in every step
        assert "distiller.criterion.bank.numerator" in ignored


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_student_that_is_wrapped_by_itself_is_refused() -> None:
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(10, C))
    for student in (wrapped, nn.Sequential(wrapped)):
        with pytest.raises(ValueError, match=r"^student: is wrapped in DistributedDataParallel.* wrap the Distiller"):
            cid.Distiller(student, nn.Linear(10, C), num_classes=C, beta=1.0, gamma=1.0)


@pytest.mark.usefixtures("one_process")
def test_a_sharded_student_says_how_to_gather_it() -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distiller, whole = make(), make()
    fully_shard(distiller, mesh=init_device_mesh("cpu", (1,)))
    for x, y in batches(0):
        distiller(x, y).loss.backward()
    distiller.epoch_end()
    with pytest.raises(RuntimeError, match=r"^student: .*sharded.*get_model_state_dict"):
        distiller.student()
    whole.load_state_dict(get_model_state_dict(distiller, options=StateDictOptions(full_state_dict=True)))
    x, _ = batches(0)[0]
    whole.eval()
    torch.testing.assert_close(whole.student()(x), whole.predict(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(distiller.eval()(x), whole.predict(x))


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_the_weights_are_those_of_all_ranks(tmp_path: Path) -> None:
    in_ranks(RANKS, choose, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    assert found[0] == found[1]
    alone = make(beta="auto", gamma="auto")
    for each in zip(*map(batches, range(RANKS)), strict=True):
        for x, y in each:
            alone(x, y)
    # Nothing steps here: the sums over ranks are those over batches, added up in another order.
    assert found[0] == pytest.approx((alone.criterion.beta, alone.criterion.gamma), rel=1e-5)
