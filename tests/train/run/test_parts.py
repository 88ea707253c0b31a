"""Schedules, the loss monitor, signals and the report."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cid._errors import CheckpointError, NonFiniteError
from cid.train.config import OptimConfig
from cid.train.files import write_json
from cid.train.methods import StepOutput
from cid.train.results import table as report
from cid.train.results.table import Result, WithoutHead
from cid.train.run.monitor import LossMonitor
from cid.train.run.schedule import OPTIMIZERS, SCHEDULES, learning_rate, set_learning_rate
from cid.train.run.signals import StopRequest


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal_number is None
        signal.raise_signal(number)
        assert stop.signal_number == number
        assert signal.getsignal(number) == before  # a second one would end the process
    assert signal.getsignal(number) == before


def result(method: str, seed: int, accuracy: float) -> Result:
    return Result(f"{method}-seed{seed}", method, seed, 1030, 2.5, 3, 0.5, accuracy, 1.0)


RESULTS = [
    result("teacher", 0, 0.97),
    *(result("labels", seed, 0.80 + 0.01 * seed) for seed in range(3)),
    *(result("cid", seed, 0.82 + 0.01 * seed) for seed in (0, 2, 1)),
]


def test_estimate() -> None:
    values = report.estimate([1.0, 2.0, 3.0, 4.0])
    assert values.mean == 2.5
    assert values.deviation == pytest.approx(1.2910, abs=1e-4)
    assert values.half_width == pytest.approx(3.1824 * 1.2910 / 2, abs=1e-3)
    assert report.estimate([1.0]) == report.Estimate(1.0, None, None)


def test_table_has_mean_spread_and_paired_differences() -> None:
    text = report.table(RESULTS)
    assert "81.00 +/- 2.48" in text
    assert "80.00..82.00" in text
    assert "cid - labels: +2.00 +/- 0.00: a difference" in text
    assert "1,030" in text
    assert len({len(line) for line in text.splitlines()[:5]}) == 1


def test_differences_use_common_seeds_alone() -> None:
    (difference,) = report.differences([result("labels", 0, 0.5), result("kd", 0, 0.6), result("kd", 1, 0.9)])
    assert difference.accuracy.mean == pytest.approx(0.1)
    assert "one seed" in report.table([result("labels", 0, 0.5), result("kd", 0, 0.6)])


def test_two_seeds_are_no_verdict() -> None:
    results = [result(method, seed, accuracy) for method, accuracy in (("labels", 0.5), ("kd", 0.6)) for seed in (0, 1)]
    assert "kd - labels: +10.00 +/- 0.00 (two seeds: too few to tell)" in report.table(results)


def test_networks_that_can_do_without_their_heads_have_two_rows(tmp_path: Path) -> None:
    own = WithoutHead(700, 0.75, 1.5)
    results = [result("kd", 0, 0.7), replace(result("cid", 0, 0.8), without_head=own)]
    assert [(row.method, row.parameters, row.accuracy.mean) for row in report.rows(results)] == [
        ("kd", 1030, 0.7),
        ("cid", 1030, 0.8),
        ("cid, no head", 700, 0.75),
    ]
    assert [(each.method, each.baseline) for each in report.differences(results)] == [
        ("cid", "kd"),
        ("cid, no head", "kd"),
        ("cid, no head", "cid"),
    ]
    text = report.table(results)
    assert "no head: the same networks by the student's own logits" in text
    assert "no head" not in report.table(results[:1])
    write_json(tmp_path / "result.json", results[1].to_json())
    assert Result.read(tmp_path / "result.json") == results[1]


def test_results_of_before_there_was_a_row_without_head(tmp_path: Path) -> None:
    content = result("cid", 0, 0.8).to_json()
    del content["without_head"]
    write_json(tmp_path / "result.json", content)
    assert Result.read(tmp_path / "result.json") == result("cid", 0, 0.8)
    write_json(tmp_path / "result.json", {**content, "without_head": {"accuracy": 1}})
    with pytest.raises(CheckpointError, match=r"result\.json: is no result"):
        Result.read(tmp_path / "result.json")


def test_curves(tmp_path: Path) -> None:
    lines = [
        {"method": method, "epoch": epoch, "val_accuracy": 0.1 * epoch, "loss": 2.0 - epoch / 10}
        for method in ("teacher", "labels", "cid")
        for epoch in range(4)
        for _ in range(2)
    ]
    report.plot_curves(lines, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
