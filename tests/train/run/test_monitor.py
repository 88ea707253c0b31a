"""The watch on the losses of an epoch."""

import pytest
import torch

from cid._errors import NonFiniteError
from cid.train.methods import StepOutput
from cid.train.run.monitor import LossMonitor


def output(loss: float, **terms: float) -> StepOutput:
    return StepOutput(torch.tensor(loss), {key: torch.tensor(value) for key, value in terms.items()}, None)


def test_monitor_names_the_first_bad_step_and_term() -> None:
    monitor = LossMonitor(torch.device("cpu"))
    target = torch.zeros(1, dtype=torch.int64)
    monitor.add(7, output(1.0, ce=1.0, sample=0.5), target)
    monitor.check()
    monitor.add(8, output(float("nan"), ce=1.0, sample=float("inf")), target)
    monitor.add(9, output(float("nan"), ce=float("nan"), sample=1.0), target)
    with pytest.raises(NonFiniteError, match="step 8: sample is inf"):
        monitor.check()


def test_monitor_names_the_sum_where_no_term_is_bad() -> None:
    monitor = LossMonitor(torch.device("cpu"))
    monitor.add(0, output(float("inf"), ce=3e38), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(NonFiniteError, match="step 0: loss is inf"):
        monitor.check()


def test_monitor_means_count_only_where_a_term_was() -> None:
    monitor = LossMonitor(torch.device("cpu"))
    target = torch.tensor([1, 0])
    monitor.add(0, output(1.0, kd=2.0), target)
    monitor.add(1, StepOutput(torch.tensor(2.0), {"ce": torch.tensor(5.0)}, torch.eye(2)), target)
    assert monitor.means() == {"loss": 1.5, "kd": 2.0, "ce": 5.0, "train_accuracy": 0.0}
    copied = LossMonitor(torch.device("cpu"))
    copied.load_state(monitor.state())
    assert copied.means() == monitor.means()
