from __future__ import annotations

import pytest
import torch

from cid.propensity import NoisyCalibration
from cid.train.results.page.draw import NOTHING, SIZE
from cid.train.results.page.weight_charts import distribution_chart, reliability_chart, weight_bins
from cid.train.results.page.weights import reliability


def test_bins_of_a_factor_two() -> None:
    bins = weight_bins(torch.tensor([0.25, 0.3, 0.5, 0.75, 1.0, 3.2]))
    assert bins.edges == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert bins.images == pytest.approx([2 / 6, 2 / 6, 1 / 6, 1 / 6])
    assert bins.weight == pytest.approx([0.55 / 6, 1.25 / 6, 1 / 6, 3.2 / 6])


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0] * 5, [0.0, 2.0], [1e-30, 1.0, 50.0], [0.9999999, 1.0000001], [float(i) for i in range(99)]]
)
def test_distributions_of_odd_weights(weights: list[float]) -> None:
    chart = distribution_chart(torch.tensor(weights), 3)
    for bars in chart.bars:
        assert sum(SIZE["bottom"] - bar.top for bar in bars.bars) > 0
        assert all(bar.width > 0 and SIZE["top"] <= bar.top <= SIZE["bottom"] for bar in bars.bars)
        assert all(SIZE["left"] <= bar.x <= bar.x + bar.width <= SIZE["right"] for bar in bars.bars)
    assert len(chart.numbers.rows) == len(chart.bars[0].bars) <= 12
    assert len(chart.x_ticks) <= 8
    for column in (1, 2):
        rounding = 0.05 * len(chart.numbers.rows)
        assert sum(float(row[column]) for row in chart.numbers.rows) == pytest.approx(100, abs=rounding)


def test_what_is_lighter_than_all_bins_is_said() -> None:
    chart = distribution_chart(torch.tensor([1e-9, 0.5, 1.5]), 3)
    assert chart.numbers.rows[0] == ["0 to 1/1024", "33.3", "0"]
    assert chart.bars[0].bars[-1].text == "images of 1 to 2: 33.3%"
    assert "weight 1 and up: 33.3% of the images, 75.0% of the weight" in chart.summary


SOFT, HARD = NoisyCalibration(1.0, 0.0), NoisyCalibration(0.05, 0.0)


def test_calibration_has_a_line_a_model() -> None:
    sure, unsure = torch.eye(2).repeat(8, 1), torch.zeros(16, 2)
    labels = torch.tensor([0, 1] * 8)
    found = {"context": reliability(unsure, SOFT, labels), "full": reliability(sure, HARD, labels)}
    chart = reliability_chart(found, 3)
    assert [line.name for line in chart.lines] == ["context", "full"]
    assert len({line.style for line in chart.lines}) == 2
    assert chart.summary.endswith("context 0%, full 0%.")
    assert [row[1:] for row in chart.numbers.rows] == [["16", "50.0", *[NOTHING] * 2], [*[NOTHING] * 2, "16", "100"]]
    assert [row[0] for row in chart.numbers.rows] == ["50 to 60", "90 to 100"]
    assert chart.lines[1].marks[0].text == "full, belief 100%: 100% right, of 16 images"
