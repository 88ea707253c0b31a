from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from cid.train.results.curves import Curve
from cid.train.results.page.draw import NOTHING, Style, busiest, heat_map, line_chart, percent, picture


def test_of_many_classes_the_busiest_are_shown() -> None:
    matrix = torch.eye(50, dtype=torch.float64)
    matrix[40, 3] = 0.9
    matrix[7, 8] = 0.8
    matrix[5] = torch.nan
    assert busiest(matrix, 4) == [3, 7, 8, 40]
    drawn = heat_map(matrix, [f"class {i}" for i in range(50)], percent)
    assert len(drawn.rows) == len(drawn.columns) <= 20
    assert drawn.classes == 50
    assert (drawn.lowest, drawn.highest) == ("0", "90.0")


def test_a_class_without_samples_shows_nothing() -> None:
    matrix = torch.tensor([[1.0, 0.25, 0.0], [torch.nan] * 3, [0.5, 0.1, 0.4]], dtype=torch.float64)
    drawn = heat_map(matrix, "abc", percent)
    assert [cell.text for cell in drawn.rows[1][1]] == [NOTHING] * 3
    assert [cell.shade for cell in drawn.rows[0][1]] == [None, 50, 0]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0, 0.0], [3.0, 1e-5], [1.0] * 40])
def test_charts_of_odd_curves(values: list[float], log: bool) -> None:
    curves = {"cid": Curve(list(range(1, len(values) + 1)), values, values, values)}
    chart = line_chart("t", curves, {"cid": Style(0, 0)}, str, log=log)
    points = [float(x) for pair in chart.lines[0].points.split() for x in pair.split(",")]
    assert len(points) == 2 * len(values)
    assert all(0 <= x <= 400 for x in points)
    assert chart.numbers.rows[-1] == [str(len(values)), str(values[-1])]
    assert len(chart.numbers.rows) <= 30
    assert chart.x_ticks


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures(channels: int) -> None:
    image = torch.arange(channels * 12, dtype=torch.uint8).reshape(channels, 3, 4) % 17
    drawn = Image.open(io.BytesIO(base64.b64decode(picture(image, 16.0).partition(",")[2])))
    assert (drawn.width, drawn.height, drawn.mode) == (4, 3, "L" if channels == 1 else "RGB")
    expected = (image.float() * 255 / 16).round().byte().movedim(0, -1).squeeze(-1)
    np.testing.assert_array_equal(np.asarray(drawn), expected.numpy())
    large = Image.open(io.BytesIO(base64.b64decode(picture(torch.zeros(3, 300, 200), 255.0).partition(",")[2])))
    assert large.height == 96
