"""Robustness as a table and as curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from cid.train.evaluation.corruptions import STRENGTHS
from cid.train.evaluation.robustness import Robustness
from cid.train.folder import TEACHER
from cid.train.results.curves import Curve, draw_curve
from cid.train.results.table import aligned, estimate, paired, sentence, with_interval

CORRUPTED = "corrupted"  # what the mean of all is called

NOTES = (
    "Accuracy in % on the test data as it is, and corrupted: the mean over fifteen corruptions at five strengths (of",
    "Hendrycks and Dietterich 2019, for photographs of 224 x 224: smaller images suffer more).",
    "+/-: 95% interval of the mean over seeds (Student's t). Differences are taken seed by seed.",
)


def table(found: Sequence[Robustness]) -> str:
    """A row for each method, the differences on corrupted images, seed by seed, and how to read them."""
    lines = [["method", "as it is", CORRUPTED, *(f"strength {strength}" for strength in STRENGTHS)]]
    for method in _methods(found):
        own = [each for each in found if each.method == method]
        columns = [[each.accuracy for each in own], [each.corrupted for each in own]]
        columns += [[each.at(strength) for each in own] for strength in STRENGTHS]
        lines.append([method, *(with_interval(estimate(values)) for values in columns)])
    students = {(each.method, each.seed): {CORRUPTED: each.corrupted} for each in found if each.method != TEACHER}
    sentences = list(map(sentence, paired(students)))
    return "\n".join([*aligned(lines), "", *sentences, *([""] if sentences else []), *NOTES])


def plot(found: Sequence[Robustness], path: Path) -> None:
    """Draws accuracy by strength, 0 for images as they are: a panel for each corruption, and one for their mean.

    Args:
        found: of which each method's mean over seeds is drawn, and the range as a band.
        path: the image to write; its suffix names the format.
    """
    from matplotlib.figure import Figure

    names = list(found[0].corruptions)
    columns = 4
    rows = -(-(len(names) + 1) // columns)
    figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for axes, name in zip(panels, ["mean", *names], strict=False):
        for method in _methods(found):
            own = [each for each in found if each.method == method]
            values = [
                [each.accuracy, *(map(each.at, STRENGTHS) if name == "mean" else each.corruptions[name])]
                for each in own
            ]
            draw_curve(axes, _curve(values), method)
        axes.set_title(name.replace("_", " "), fontsize="small")
        axes.grid(alpha=0.3)
    for axes in panels[len(names) + 1 :]:
        axes.remove()
    figure.supxlabel("strength of the corruption", fontsize="medium")
    figure.supylabel("test accuracy, %", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=120)


def _curve(networks: Sequence[Sequence[float]]) -> Curve:
    """In %, by strength, of the accuracies of some networks at each."""
    columns = [[100 * value for value in column] for column in zip(*networks, strict=True)]
    mean, lowest, highest = ([of(column) for column in columns] for of in (statistics.fmean, min, max))
    return Curve([0, *STRENGTHS], mean, lowest, highest)


def _methods(found: Sequence[Robustness]) -> list[str]:
    return list(dict.fromkeys(each.method for each in found))
