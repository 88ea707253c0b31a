"""The rows as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cid.bench.measure import Row

# Okabe and Ito's blue and vermilion: told apart by every kind of colour vision.
BLUE, VERMILION = "#0072B2", "#D55E00"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws each row's speed-up and its distance from the floor, as dots on logarithmic axes.

    Args:
        rows: measured ones, at least one.
        path: the image to write; its suffix names the format.
    """
    # The object interface: no window system is asked for, and no global state of pyplot's is touched.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.3 + 0.22 * len(rows)), layout="constrained")
    speed_ups, floors = figure.subplots(1, 2, sharey=True)
    _dots(speed_ups, [row["speed_up"] for row in rows], BLUE, "o", "times as fast as the fastest other")
    _dots(floors, [row["x_floor"]["median"] for row in rows], VERMILION, "D", "times the floor")
    speed_ups.set_yticks(range(len(rows)), _labels(rows), fontsize="small")
    speed_ups.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    speed_ups.set_title("Speed-up: right of 1 is faster", fontsize="medium")
    floors.set_title("Distance from the floor: 1 is the best possible", fontsize="medium")
    figure.savefig(path, dpi=120)


def _dots(axes: Any, values: list[float | None], colour: str, marker: str, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    known = [(value, i) for i, value in enumerate(values) if value is not None]
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    for value, i in known:
        axes.plot([1, value], [i, i], color=colour, linewidth=1, alpha=0.5)
        left = value < 1
        axes.annotate(
            f"{value:.2f}" if value < 10 else f"{value:.0f}",
            (value, i),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize="x-small",
        )
    axes.plot([value for value, _ in known], [i for _, i in known], marker, color=colour, markersize=5)
    axes.margins(x=0.12)  # room for the numbers
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    axes.tick_params(top=True, labeltop=len(values) > 30)  # a tall chart is read from above too
    axes.grid(axis="x", alpha=0.3)


def _labels(rows: Sequence[Row]) -> list[str]:
    """Term and size, and whatever else is not the same in all rows."""
    varying = [key for key in ("dtype", "threads", "simd") if len({row[key] for row in rows}) > 1]

    def word(row: Row, key: str) -> str:
        return f"{row[key]} thread{'s' if row[key] > 1 else ''}" if key == "threads" else str(row[key])

    return [" ".join([row["term"], row["size"], *(word(row, key) for key in varying)]) for row in rows]
