"""Charts of weights: how they are distributed, and whether what they are made of is calibrated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cid.train.results.page.draw import (
    NOTHING,
    SIZE,
    Bar,
    Bars,
    Chart,
    Line,
    Mark,
    Numbers,
    Style,
    Tick,
    axis,
    percent,
    svg_points,
)
from cid.train.results.page.weights import BINS, BeliefBin, Reliability, WeightNumbers


def weight_charts(found: WeightNumbers, colour: int) -> Iterator[Chart]:
    """All charts of a weighting, in a colour of its own."""
    yield distribution_chart(found.train, colour)
    if found.reliabilities:
        yield reliability_chart(found.reliabilities, colour)


# --- distribution ----------------------------------------------------------------------------------------------------

OCTAVES = 12  # shown at most: what is lighter falls into the first


@dataclass(frozen=True)
class WeightBins:
    """Parts of the images, and of the weight that they have, in bins of a factor 2.

    Attributes:
        edges: powers of 2, one more than bins; what is lighter than the first is in the first bin.
        images: 0..1.
        weight: 0..1.
    """

    edges: list[float]
    images: list[float]
    weight: list[float]


def weight_bins(weights: Tensor) -> WeightBins:
    """Counts weights, finite, from 0 and not all 0, in bins of a factor 2."""
    w = weights.double()
    top = math.floor(math.log2(float(w.max()))) + 1
    lightest = math.floor(math.log2(float(w[w > 0].min())))
    bottom = max(lightest, top - OCTAVES)
    count = top - bottom
    place = (w.clamp_min(2.0**bottom).log2().floor().long() - bottom).clamp(0, count - 1)
    images = torch.bincount(place, minlength=count) / len(w)
    weight = torch.bincount(place, weights=w, minlength=count) / w.sum()
    return WeightBins([2.0**power for power in range(bottom, top + 1)], images.tolist(), weight.tolist())


def distribution_chart(weights: Tensor, colour: int) -> Chart:
    """Draws how weights are distributed: what part of the images, and of the weight, each bin has.

    Args:
        weights: (N,), of mean 1.
        colour: of what the weight is drawn in.
    """
    bins = weight_bins(weights)
    edges = bins.edges
    shares = {"images": bins.images, "weight that they have": bins.weight}
    styles = {"images": Style(0, 0), "weight that they have": Style(colour, 1)}
    highest = max(*bins.images, *bins.weight)
    ticks = [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, 100 * highest) if tick >= 0]
    y = axis(0, ticks[-1], SIZE["bottom"], SIZE["top"])
    x = axis(edges[0], edges[-1], SIZE["left"], SIZE["right"], log=True)
    width = (SIZE["right"] - SIZE["left"]) / (len(edges) - 1)

    def between(place: int) -> str:
        first = "0" if place == 0 and float(weights.min()) < edges[0] else _power(edges[place])
        return f"{first} to {_power(edges[place + 1])}"

    def bar(number: int, name: str, place: int, share: float) -> Bar:
        left = x(edges[place]) + width * (0.12 + 0.38 * number)
        return Bar(
            round(left, 1), round(0.38 * width, 1), y(100 * share), f"{name} of {between(place)}: {percent(share)}%"
        )

    heaviest = [sum(values[place] for place, edge in enumerate(edges[:-1]) if edge >= 1) for values in shares.values()]
    return Chart(
        title="Distribution of the weights, %",
        summary=(
            f"Distribution of the weights. Images of weight 1 and up: {percent(heaviest[0])}% of the images, "
            f"{percent(heaviest[1])}% of the weight."
        ),
        x_label="weight (1 is the mean)",
        x_ticks=[Tick(x(edge), _power(edge)) for edge in edges[:: math.ceil(len(edges) / 8)]],
        y_ticks=[Tick(y(tick), f"{tick:g}") for tick in ticks],
        numbers=Numbers(
            "Parts of the images and of the weight, in %, by weight",
            ["weight", *shares],
            [[between(i), *(percent(values[i]) for values in shares.values())] for i in range(len(edges) - 1)],
        ),
        bars=[
            Bars(name, style, [bar(style.dash, name, *each) for each in enumerate(shares[name])])
            for name, style in styles.items()
        ],
    )


def _power(value: float) -> str:
    """A power of 2 as text."""
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


# --- calibration -----------------------------------------------------------------------------------------------------


def reliability_chart(reliabilities: dict[str, Reliability], colour: int) -> Chart:
    """Draws how often models are right, by how sure they are, with the exact 95% intervals as bands.

    Args:
        reliabilities: by model, at least one.
        colour: of all but the first, which has the muted one.
    """
    x, y = axis(0, 1, SIZE["left"], SIZE["right"]), axis(0, 1, SIZE["bottom"], SIZE["top"])

    def draw(name: str, style: Style, bins: list[BeliefBin]) -> Line:
        upper = [(x(one.belief), y(one.highest)) for one in bins]
        lower = [(x(one.belief), y(one.lowest)) for one in bins]
        return Line(
            name=name,
            style=style,
            points=svg_points((x(one.belief), y(one.right)) for one in bins),
            band=svg_points([*upper, *reversed(lower)]),
            marks=[
                Mark(
                    x(one.belief),
                    y(one.right),
                    f"{name}, belief {percent(one.belief)}%: {percent(one.right)}% right, of {one.count:,} images",
                )
                for one in bins
            ],
        )

    errors = ", ".join(f"{name} {percent(found.error)}%" for name, found in reliabilities.items())
    ticks = [part / 5 for part in range(6)]
    return Chart(
        title="Calibration: images decided rightly, %",
        summary=f"How often each model is right, by its largest belief. Expected calibration error: {errors}.",
        x_label="largest belief, %",
        x_ticks=[Tick(x(tick), f"{100 * tick:g}") for tick in ticks],
        y_ticks=[Tick(y(tick), f"{100 * tick:g}") for tick in ticks],
        numbers=_reliability_numbers(reliabilities),
        lines=[
            draw(name, Style(colour if number else 0, number), found.bins)
            for number, (name, found) in enumerate(reliabilities.items())
        ],
        guides=[svg_points([(x(0), y(0)), (x(1), y(1))])],
    )


def _reliability_numbers(reliabilities: dict[str, Reliability]) -> Numbers:
    by_place = [{one.place: one for one in found.bins} for found in reliabilities.values()]
    rows = []
    for place in range(BINS):
        found = [each.get(place) for each in by_place]
        if any(found):
            cells = [text for one in found for text in _bin_cells(one)]
            rows.append([f"{100 * place // BINS} to {100 * (place + 1) // BINS}", *cells])
    return Numbers(
        "Images whose largest belief is right, by it",
        ["largest belief, %", *(f"{name}: {text}" for name in reliabilities for text in ("images", "right, %"))],
        rows,
    )


def _bin_cells(found: BeliefBin | None) -> list[str]:
    return [NOTHING, NOTHING] if found is None else [f"{found.count:,}", percent(found.right)]
