"""Learning rates by name, and their optimizers."""

import pytest
import torch

from cid.train.run.schedule import OPTIMIZERS, SCHEDULES, learning_rate, set_learning_rate
from cid.train.sections import OptimConfig


def test_step_schedule_has_the_papers_milestones() -> None:
    factors = [SCHEDULES["step"](epoch / 240) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_onecycle_is_torchs() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=1001, cycle_momentum=False, final_div_factor=1e12
    )
    for step in range(1000):
        assert 0.1 * SCHEDULES["onecycle"](step / 1000) == pytest.approx(theirs.get_last_lr()[0], abs=5e-4)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_within_bounds(name: str) -> None:
    assert all(0 <= SCHEDULES[name](i / 1000) <= 1 for i in range(1000))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rate_is_set_on_every_group(name: str) -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "weight_decay": 0.1}, {"params": [weights[1]], "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[name](groups, 0.1)
    rate = learning_rate(OptimConfig(lr=0.2, schedule="cosine"), 0.5)
    assert rate == pytest.approx(0.1)
    set_learning_rate(optimizer, rate)
    assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
