"""Charts, heat maps and pictures as numbers and texts; the template alone writes markup, so that it alone escapes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from cid.train.results.curves import Curve
from cid.train.results.page.gather import others


def percent(share: float) -> str:
    """A part of 1 as text, with one decimal, but for none and all."""
    text = f"{100 * share:.1f}"
    return {"0.0": "0", "-0.0": "0", "100.0": "100"}.get(text, text)


# --- charts ----------------------------------------------------------------------------------------------------------

# Of a chart, and of the area within it that the lines are drawn on.
SIZE = {"width": 400, "height": 270, "left": 56, "right": 384, "top": 12, "bottom": 222}
MARKS = 8  # on a line, about


class Style(NamedTuple):
    """Numbers that stand for a colour, and for a dash and a mark: what differs by colour differs without it too."""

    colour: int
    dash: int


@dataclass(frozen=True)
class Tick:
    """A place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point of a line that is marked and says its value."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve as SVG takes it: `points` of the mean, `band` around the range."""

    name: str
    style: Style
    points: str
    band: str
    marks: list[Mark]


@dataclass(frozen=True)
class Bar:
    """A rectangle from the horizontal axis up, that says its value."""

    x: float
    width: float
    top: float
    text: str


@dataclass(frozen=True)
class Bars:
    """A bar for each interval of the horizontal axis."""

    name: str
    style: Style
    bars: list[Bar]


@dataclass(frozen=True)
class Numbers:
    """What a chart shows, for those who read rather than look; the first column is the horizontal axis."""

    caption: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Chart:
    """Lines or bars between two axes.

    Attributes:
        title: what they show.
        summary: the same with the most important numbers, for those who don't see them.
        x_label: what the horizontal axis is.
        x_ticks: on it.
        y_ticks: on the vertical axis.
        numbers: the values.
        lines: over the bars.
        bars: by the names of the legend.
        guides: lines to compare with, as SVG takes points.
    """

    title: str
    summary: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    numbers: Numbers
    lines: list[Line] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    guides: list[str] = field(default_factory=list)


def line_chart(
    title: str,
    curves: dict[str, Curve],
    styles: dict[str, Style],
    show: Callable[[float], str],
    *,
    log: bool,
) -> Chart:
    """Draws curves over epochs.

    Args:
        title: what the curves show.
        curves: by name, each of at least one epoch.
        styles: by name.
        show: a value as text.
        log: whether the vertical axis is logarithmic; values that are not positive make it linear.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    lows = [value for curve in curves.values() for value in curve.lowest]
    low, high = min(lows), max(value for curve in curves.values() for value in curve.highest)
    last = max(curve.at[-1] for curve in curves.values())
    log = log and low > 0
    if log:
        ticks = [tick for tick in LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(low, high) if low <= tick <= high]
    else:
        ticks = list(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high))
        low, high = ticks[0], ticks[-1]
    y = axis(low, high, SIZE["bottom"], SIZE["top"], log=log)
    x = axis(1, last, SIZE["left"], SIZE["right"])
    epochs = [int(tick) for tick in MaxNLocator(5, integer=True).tick_values(1, last) if 1 <= tick <= last] or [1]

    def draw(number: int, name: str, curve: Curve) -> Line:
        across = [x(epoch) for epoch in curve.at]
        upper = list(zip(across, map(y, curve.highest), strict=True))
        lower = list(zip(across, map(y, curve.lowest), strict=True))
        step = math.ceil(last / MARKS)
        marked = [i for i, epoch in enumerate(curve.at) if (epoch - 1) % step == number * step // len(curves)]
        return Line(
            name=name,
            style=styles[name],
            points=svg_points(zip(across, map(y, curve.mean), strict=True)),
            band=svg_points([*upper, *reversed(lower)]),
            marks=[
                Mark(across[i], y(curve.mean[i]), f"{name}, epoch {curve.at[i]}: {show(curve.mean[i])}") for i in marked
            ],
        )

    ends = ", ".join(f"{name} {show(curve.mean[-1])}" for name, curve in curves.items())
    return Chart(
        title=title,
        summary=f"{title} by epoch. At the end: {ends}.",
        x_label="epoch",
        x_ticks=[Tick(x(epoch), str(epoch)) for epoch in epochs],
        y_ticks=[Tick(y(tick), show(tick)) for tick in ticks],
        numbers=Numbers(
            f"{title}: mean over the networks by epoch", ["epoch", *curves], _curve_table(curves, last, show)
        ),
        lines=[draw(number, name, curve) for number, (name, curve) in enumerate(curves.items())],
    )


def axis(low: float, high: float, start: float, end: float, *, log: bool = False) -> Callable[[float], float]:
    """Maps low..high to start..end; a single value to the middle."""
    scale = math.log if log else float
    first, length = scale(low), scale(high) - scale(low)
    return lambda value: round(start + (end - start) * ((scale(value) - first) / length if length else 0.5), 1)


def svg_points(pairs: Iterable[tuple[float, float]]) -> str:
    """Points as SVG takes them."""
    return " ".join(f"{x:g},{y:g}" for x, y in pairs)


def _curve_table(curves: dict[str, Curve], last: int, show: Callable[[float], str], rows: int = 30) -> list[list[str]]:
    """Each curve's mean at up to so many epochs, the last among them."""
    by_epoch = [dict(zip(curve.at, map(show, curve.mean), strict=True)) for curve in curves.values()]
    shown = range(last, 0, -math.ceil(last / rows))
    return [[str(epoch), *(one.get(epoch, NOTHING) for one in by_epoch)] for epoch in reversed(shown)]


# --- heat maps -------------------------------------------------------------------------------------------------------

NOTHING = "\N{EN DASH}"
SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Cell:
    """A number of a heat map.

    Attributes:
        text: the number.
        shade: 0..100, how dark; None on the diagonal.
    """

    text: str
    shade: int | None


@dataclass(frozen=True)
class HeatMap:
    """A class-by-class matrix as a table. Shades span the numbers off the diagonal: the diagonal would drown them.

    Attributes:
        columns: names.
        rows: names and numbers.
        lowest: number off the diagonal, as text.
        highest: likewise.
        classes: how many there are, shown or not.
    """

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    lowest: str
    highest: str
    classes: int


def busiest(matrix: Tensor, limit: int = SHOWN_CLASSES) -> list[int]:
    """The classes of the largest entries off the diagonal, in order; all of them where they are few enough."""
    count = len(matrix)
    if count <= limit:
        return list(range(count))
    chosen: dict[int, None] = {}
    for place in others(matrix).flatten().sort(descending=True, stable=True).indices.tolist():
        pair = dict.fromkeys(divmod(place, count))
        if len(chosen | pair) > limit:
            break
        chosen |= pair
    return sorted(chosen)


def heat_map(matrix: Tensor, names: Sequence[str], show: Callable[[float], str]) -> HeatMap:
    """Draws the busiest part of a matrix.

    Args:
        matrix: (C, C); NaN where nothing is known.
        names: of the classes.
        show: a number as text.
    """
    chosen = busiest(matrix)
    apart = others(matrix[chosen][:, chosen])
    known = apart[apart.isfinite()].tolist() or [0.0]
    low, high = min(known), max(known)

    def cell(row: int, column: int) -> Cell:
        value = float(matrix[row, column])
        if math.isnan(value):
            return Cell(NOTHING, 0)
        if row == column:
            return Cell(show(value), None)
        return Cell(show(value), round(100 * (value - low) / (high - low)) if high > low else 0)

    return HeatMap(
        columns=[names[label] for label in chosen],
        rows=[(names[row], [cell(row, column) for column in chosen]) for row in chosen],
        lowest=show(low),
        highest=show(high),
        classes=len(names),
    )


# --- strips and pictures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """The accuracies of a row of the table on a line from 0 to 100: every network, and the mean."""

    dots: list[float]
    mean: float


def strip(values: Sequence[float], mean: float, low: float, high: float) -> Strip:
    """Places accuracies between the lowest and the highest of all rows."""
    x = axis(low, high, 4, 96)
    return Strip([x(value) for value in values], x(mean))


LARGEST_SIDE = 96


def picture(image: Tensor, scale: float) -> str:
    """An image (channels, height, width) as the data URI of a PNG; large ones are reduced."""
    from PIL import Image

    pixels = (image.float() * (255 / scale)).round().clamp(0, 255).byte().movedim(0, -1).squeeze(-1).cpu().numpy()
    drawn = Image.fromarray(pixels)
    drawn.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    drawn.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
