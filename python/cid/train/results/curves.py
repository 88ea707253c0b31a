"""The curves of a run: its metrics by epoch, and their picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cid.train.folder import TEACHER


@dataclass(frozen=True)
class Curve:
    """A metric by epoch, counted from 1, or by what else there is: mean over the seeds, lowest and highest."""

    at: list[int]
    mean: list[float]
    lowest: list[float]
    highest: list[float]


def curve(metrics: Iterable[dict[str, Any]], method: str, key: str) -> Curve:
    """One metric of one method; an epoch that lacks it is left out."""
    by_epoch: dict[int, list[float]] = {}
    for line in metrics:
        if line["method"] == method and key in line:
            by_epoch.setdefault(line["epoch"] + 1, []).append(line[key])
    epochs = sorted(by_epoch)
    mean, lowest, highest = ([of(by_epoch[epoch]) for epoch in epochs] for of in (statistics.fmean, min, max))
    return Curve(epochs, mean, lowest, highest)


def plot_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws validation accuracy and training loss by epoch: the mean over seeds, and the range as a band.

    Args:
        metrics: lines of the metrics file.
        path: the image to write; its suffix names the format.
    """
    # The object interface: no window system is asked for, and no global state of pyplot's is touched.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, label in zip(
        panels, ("val_accuracy", "loss"), ("validation accuracy", "training loss"), strict=True
    ):
        for method in dict.fromkeys(line["method"] for line in metrics):
            draw_curve(axes, curve(metrics, method, key), method)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
    panels[1].set_yscale("log")
    for set_formatter in (panels[1].yaxis.set_major_formatter, panels[1].yaxis.set_minor_formatter):
        set_formatter(ScalarFormatter())  # 3.0 reads better than 3 x 10^0
    panels[0].set_title("The mean over seeds and their range", fontsize="medium")
    panels[1].set_title("Losses of different methods are not comparable", fontsize="medium")
    figure.savefig(path, dpi=120)


def draw_curve(axes: Any, shown: Curve, method: str) -> None:
    """A method's mean as a line, dashed for the teacher, and the range as a band."""
    style = "--" if method == TEACHER else "-"
    (line,) = axes.plot(shown.at, shown.mean, label=method, linestyle=style, linewidth=1.5)
    axes.fill_between(shown.at, shown.lowest, shown.highest, color=line.get_color(), alpha=0.15, linewidth=0)
