"""A study as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cid._files import write_atomically
from cid.train.config import to_toml
from cid.train.results.page import environment, style_of
from cid.train.results.page.draw import Strip, strip
from cid.train.results.table import estimate
from cid.train.study.plan import Setting, without_places
from cid.train.study.table import SURE, Line, interval, notes, sure_gains, tests_of


@dataclass(frozen=True)
class Cell:
    """A method on a test: its accuracy, each network on a strip, and the difference from the baseline; or nothing."""

    accuracy: str
    strip: Strip | None
    gain: str
    sure: bool


@dataclass(frozen=True)
class Section:
    """One combination of the grid.

    Attributes:
        title: the alternatives.
        scales: what the strips of each test span.
        rows: method, colour, a cell for each test, and how many networks there are.
        settings: of its first run, as a file has them, but where files lie and what computes.
    """

    title: str
    scales: list[str]
    rows: list[tuple[str, int, list[Cell], str]]
    settings: str


def write_study_page(study: Sequence[Setting], found: Sequence[Line], baseline: str, title: str, out: Path) -> None:
    """Writes the page: a table for each combination of the grid, with every network as a dot, and its settings.

    The same rows give the same bytes.

    Args:
        study: its settings.
        found: the lines of its table, at least one.
        baseline: what methods are compared with.
        title: of the page.
        out: the file.

    Raises:
        OSError: it can't be written.
    """
    text = (
        environment("cid.train.study")
        .get_template("study.html.jinja")
        .render(
            title=title,
            axes=list(study[0].label),
            tests=tests_of(found),
            baseline=baseline,
            notes=notes(study, found),
            sections=list(_sections(study, found)),
            sure=SURE,
        )
    )
    write_atomically(out, text.encode())


def _sections(study: Sequence[Setting], found: Sequence[Line]) -> Iterator[Section]:
    tests, surely = tests_of(found), sure_gains(found)
    for label in dict.fromkeys(line.label for line in found):
        own = [(line, sure) for line, sure in zip(found, surely, strict=True) if line.label == label]
        ranges = [_range([line for line, _ in own], test) for test in tests]
        yield Section(
            title=", ".join(label) or "All runs",
            scales=[f"{100 * low:.1f} to {100 * high:.1f}" if low < high else "" for low, high in ranges],
            rows=[
                (
                    line.method,
                    style_of(line.method).colour,
                    [_cell(line, test, test in sure, *span) for test, span in zip(tests, ranges, strict=True)],
                    line.count,
                )
                for line, sure in own
            ],
            settings=next(
                to_toml(without_places(each.config)) for each in study if tuple(each.label.values()) == label
            ),
        )


def _range(found: Sequence[Line], test: str) -> tuple[float, float]:
    """The lowest and the highest accuracy of any network."""
    values = [value for line in found for value in line.accuracies.get(test, {}).values()]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _cell(line: Line, test: str, sure: bool, low: float, high: float) -> Cell:
    values = [*line.accuracies.get(test, {}).values()]
    drawn = strip(values, estimate(values).mean, low, high) if values else None
    return Cell(interval(values), drawn, interval(line.gains.get(test, ()), "+"), sure)
