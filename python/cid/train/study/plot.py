"""The picture of a study: a dot for every network, the mean of each method and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cid.train.results.table import estimate
from cid.train.study.table import Line, tests_of


def plot_study(found: Sequence[Line], path: Path) -> None:
    """Draws a panel for each combination of the grid and each test, methods in rows.

    Args:
        found: the lines of the study's table, at least one.
        path: the image to write; its suffix names the format.
    """
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(line.label for line in found))
    tests = tests_of(found)
    most = max(sum(line.label == label for line in found) for label in labels)
    size = (1.5 + 4.5 * len(tests), (1.0 + 0.3 * most) * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(labels), len(tests), squeeze=False, sharex="col")
    for row, label in zip(panels, labels, strict=True):
        own = [line for line in found if line.label == label]
        for axes, test in zip(row, tests, strict=True):
            _draw(axes, own, test)
            axes.set_title(" ".join([*label, test]), fontsize="medium")
    for axes in panels[-1]:
        axes.set_xlabel("accuracy, %: each network, and the mean with its 95% interval")
    figure.savefig(path, dpi=120)


def _draw(axes: Any, lines: Sequence[Line], test: str) -> None:
    names = [line.method for line in lines]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    axes.grid(axis="x", alpha=0.3)
    for place, line in enumerate(lines):
        values = [100 * value for value in line.accuracies.get(test, {}).values()]
        if not values:
            continue
        summary = estimate(values)
        axes.scatter(values, [place] * len(values), s=14, color="C0", alpha=0.4, linewidths=0)
        axes.errorbar(summary.mean, place, xerr=summary.half_width, fmt="|", color="C0", capsize=3, markersize=10)
