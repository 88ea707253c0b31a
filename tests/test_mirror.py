"""The host's copy of a count notices whatever changes the buffer."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cid

B, C = 8, 5
AVERAGES: dict[str, Callable[[nn.Module], AveragedModel]] = {
    "ema": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "ema of buffers": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    "swa": AveragedModel,
    "swa of buffers": lambda m: AveragedModel(m, use_buffers=True),
}


def make(**options: Any) -> cid.Distiller:
    student, teacher = (nn.Sequential(nn.Linear(20, w), nn.ReLU(), nn.Linear(w, C)) for w in (6, 9))
    return cid.Distiller(student, teacher, num_classes=C, **({"beta": 3.0, "gamma": 0.5, "warmup_epochs": 2} | options))


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 20), torch.arange(B) % C


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("steps_per_turn", [None, 1])
def test_an_average_predicts_as_what_it_averages(kind: str, steps_per_turn: int | None) -> None:
    distiller = make(steps_per_turn=steps_per_turn)
    average = AVERAGES[kind](distiller)
    ours = average.module
    assert isinstance(ours, cid.Distiller)
    for epoch in range(5):
        distiller(*data())
        average.update_parameters(distiller)
        assert ours.warming_up == distiller.warming_up == (epoch < 2)
        distiller.epoch_end()
    ours.eval()
    x, _ = data()
    torch.testing.assert_close(ours.predict(x), ours.student()(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(ours).predict(x), ours.predict(x))
    ours.epoch_end()  # does not fall back
    assert not ours.warming_up


def _fill(criterion: cid.CIDLoss, epoch: int) -> None:
    criterion.epoch.fill_(epoch)


def _copy(criterion: cid.CIDLoss, epoch: int) -> None:
    criterion.state_dict()["epoch"].copy_(torch.tensor(epoch))


def _assign(criterion: cid.CIDLoss, epoch: int) -> None:
    criterion.epoch = torch.tensor(epoch)


def _load(criterion: cid.CIDLoss, epoch: int) -> None:
    criterion.load_state_dict(criterion.state_dict() | {"epoch": torch.tensor(epoch)}, assign=bool(epoch % 2))


def _through_a_copy(criterion: cid.CIDLoss, epoch: int) -> None:
    criterion.epoch.fill_(epoch)
    criterion.__setstate__(copy.deepcopy(criterion).__getstate__())


def _through_a_type(criterion: cid.CIDLoss, epoch: int) -> None:
    criterion.epoch.fill_(epoch)
    criterion.double()


CHANGES = (_fill, _copy, _assign, _load, _through_a_copy, _through_a_type)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_epoch_is_noticed(change: Callable[[cid.CIDLoss, int], None]) -> None:
    criterion = make().criterion
    criterion.bank.context.normal_()  # loaded: no sign that the warm-up is over
    for epoch in (1, 3, 0, 2):
        change(criterion, epoch)
        assert criterion.warming_up == (epoch < 2)
        assert criterion._gathering == (epoch >= 1)
    criterion.epoch_end()
    assert int(criterion.epoch) == 3


@pytest.mark.parametrize("forward", [True, False])
def test_a_step_notices_too(forward: bool) -> None:
    distiller = make()
    distiller.criterion.epoch.fill_(2)
    if forward:
        assert distiller(*data()).logits is not None
    else:
        distiller.epoch_end()
        assert int(distiller.criterion.epoch) == 3


def test_a_change_of_the_steps_is_noticed() -> None:
    bank = cid.ContextBank(C, 6, steps_per_turn=3)
    step = torch.randn(B, 6), torch.randn(B, C), torch.arange(B) % C
    bank.update(*step)
    bank.steps.fill_(3)
    assert not bank.context.any()
    bank.update(*step)
    assert bank.context.any()
    assert int(bank.steps) == 1
    other = copy.deepcopy(bank)
    other.steps.fill_(2)
    pickled: cid.ContextBank = pickle.loads(pickle.dumps(other))
    for one in (other, pickled):
        one.update(*step)
        assert int(one.steps) == 3
        assert one.turn_if_due()


def test_moves_and_copies_are_no_change() -> None:
    """A bank that was loaded in warm-up would else end it."""
    criterion = make().criterion
    criterion.bank.context.normal_()
    moved = [copy.deepcopy(criterion), copy.deepcopy(criterion).double(), pickle.loads(pickle.dumps(criterion))]
    assert all(one.warming_up for one in moved)


def test_inference_tensors_are_read_each_time() -> None:
    """They count no versions."""
    with torch.inference_mode():
        distiller = make().eval()
        x, y = data()
        assert distiller(x, y).logits is None
        distiller.criterion.epoch.fill_(2)
        assert distiller(x, y).logits is not None


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_distiller_follows_its_average() -> None:
    torch._dynamo.reset()
    distiller = make()
    compiled = torch.compile(distiller, backend="eager", fullgraph=True)
    x, y = data()
    assert compiled(x, y).logits is None
    distiller.criterion.epoch.fill_(2)
    assert not distiller.warming_up  # looks, which a graph does not
    assert compiled(x, y).logits is not None
    torch._dynamo.reset()


def test_a_step_does_not_look_at_the_device() -> None:
    """Nothing is read while nobody else writes."""
    distiller = make(warmup_epochs=1)
    reads: list[None] = []
    distiller.criterion._read = lambda all_changed: reads.append(None)  # type: ignore[method-assign]
    for _ in range(3):
        distiller(*data())
        distiller.epoch_end()
        distiller.double().float()
    assert not reads
    distiller.criterion.epoch.add_(1)
    distiller(*data())
    assert len(reads) == 1
