"""Finished runs as one HTML page that needs nothing else: tables, curves, and what the intervention does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from torch import Tensor

from cid._errors import ConfigError
from cid._files import write_atomically
from cid.train.config import to_toml
from cid.train.folder import TEACHER
from cid.train.methods import registry
from cid.train.results import table
from cid.train.results.curves import curve
from cid.train.results.page.draw import (
    SHOWN_CLASSES,
    SIZE,
    Chart,
    HeatMap,
    Strip,
    Style,
    heat_map,
    line_chart,
    percent,
    picture,
    strip,
)
from cid.train.results.page.gather import SAMPLES, RunNumbers, Sample, gather
from cid.train.results.page.groups import group_tables
from cid.train.results.page.weight_charts import weight_charts
from cid.train.results.page.weights import HeavyImage


def write_page(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    data_dir: str | None = None,
    scoring: Callable[[str], None] = lambda name: None,
) -> Path:
    """Writes the page of some finished runs.

    It reads the runs' folders and their test data, and nothing else; the page asks for no network. The same runs give
    the same bytes.

    Args:
        runs: folders of runs, at least one.
        out: the file to write; `report.html` in the folder of a single run by default.
        data_dir: where the data set is now, if it was moved.
        scoring: hears of each network that is scored.

    Returns:
        The file.

    Raises:
        ConfigError: `out` can't be, a folder is no run, or the data is not the run's.
        CheckpointError: a run is not finished, or a file of it is missing or damaged.
        DataError: images are missing or damaged.
        OSError: the page can't be written.

    Example:
        >>> from cid.train.results.page import write_page
        >>> write_page([Path("runs/demo")])  # doctest: +SKIP
        PosixPath('runs/demo/report.html')
    """
    if not runs:
        raise ConfigError("RUN: got none, accepted: one or more folders of runs")
    if out is None:
        if len(runs) > 1:
            raise ConfigError(f"--out: not given, accepted with {len(runs)} runs: the HTML file to write")
        out = runs[0] / "report.html"
    elif out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out: got {out}, accepted: a file in a folder that exists")
    numbers = [gather(run, title, data_dir, scoring) for run, title in zip(runs, titles(runs), strict=True)]
    write_atomically(out, render(numbers).encode())
    return out


def titles(runs: Sequence[Path]) -> list[str]:
    """What the page calls the runs: their folders' names, or whole paths where names repeat."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def render(runs: Sequence[RunNumbers]) -> str:
    """The page's HTML."""
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            head=table.HEAD,
            notes=table.notes(result for run in runs for result in run.results),
            table=list(table_rows(runs)),
            strip_scale=_strip_scale(runs),
            sections=[Section(run) for run in runs],
            most_samples=SAMPLES,
            most_confounders=SHOWN_CLASSES,
            size=SIZE,
        )
    )


def environment(*packages: str) -> Environment:
    """What renders templates of these packages, which may take parts of this one's."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package, ".") for package in (*packages, "cid.train.results.page")]),
        autoescape=True,  # names of classes and runs are whatever somebody called a folder
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": percent, "typeset": typeset}
    return found


def typeset(text: str) -> str:
    """A plain text of the table with the signs that a page has."""
    return text.replace("+/-", "±").replace(" - ", " \N{MINUS SIGN} ").replace(": -", ": \N{MINUS SIGN}")


@dataclass(frozen=True)
class TableRow:
    """A row of the table that all runs share."""

    run: int
    title: str
    colour: int
    cells: list[str]
    strip: Strip


def table_rows(runs: Sequence[RunNumbers]) -> Iterator[TableRow]:
    """A row a method and run. The strips of runs on the same data have one scale."""
    for number, run in enumerate(runs, 1):
        low, high = _range(other for other in runs if other.config.data.name == run.config.data.name)
        for row in table.rows(run.results):
            variants = table.with_variants(run.results)
            values = [result.test_accuracy for result in variants if result.method == row.method]
            drawn = strip(values, row.accuracy.mean, low, high)
            yield TableRow(number, run.title, style_of(row.method).colour, table.cells(row), drawn)


def _strip_scale(runs: Sequence[RunNumbers]) -> str:
    """What the strips span, where it is the same for all."""
    if len({run.config.data.name for run in runs}) > 1:
        return ""
    low, high = _range(runs)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _range(runs: Iterable[RunNumbers]) -> tuple[float, float]:
    accuracies = [result.test_accuracy for run in runs for result in table.with_variants(run.results)]
    return min(accuracies), max(accuracies)


COLOURS = 8  # beside the teacher's


def style_of(method: str) -> Style:
    """The colour and the mark of a method: the teacher's are the first, and what is no method comes after all.

    Where there are more than there are colours, two of one colour have different marks.
    """
    names = [TEACHER, *registry()]
    number = names.index(method) if method in names else len(names)
    return Style((number - 1) % COLOURS + 1 if number else 0, number)


class Section:
    """What the template shows of a run.

    Args:
        run: its numbers.
    """

    def __init__(self, run: RunNumbers) -> None:
        self.run = run
        self.differences = [table.sentence(difference) for difference in table.differences(run.results)]
        self.group_tables = list(group_tables(run.results))
        self.charts = list(self._charts())
        method = run.config.method
        self.notes = [note for note in (method.options(name).note() for name in method.methods) if note]
        self.confusions = {method: self._heat_map(matrix, percent) for method, matrix in run.confusions.items()}
        if run.intervention is not None:
            self.mixing = self._heat_map(run.intervention.mixing, percent)
            self.cosines = self._heat_map(run.intervention.cosines, lambda cosine: f"{cosine:.2f}")
        self.weightings = [(one, list(weight_charts(one, style_of(one.methods[0]).colour))) for one in run.weightings]
        self.settings = to_toml(run.config)

    def picture(self, sample: Sample | HeavyImage) -> str:
        """The sample's image as a data URI."""
        return picture(sample.image, self.run.scale)

    def name(self, label: int) -> str:
        """What a class is called."""
        return self.run.classes[label]

    def _charts(self) -> Iterator[Chart]:
        metrics = self.run.metrics
        methods = list(dict.fromkeys(line["method"] for line in metrics))
        styles = {method: style_of(method) for method in methods}
        for title, key, show, log in (
            ("Validation accuracy, %", "val_accuracy", lambda share: f"{100 * share:.4g}", False),
            ("Validation loss", "val_loss", _significant, True),
        ):
            curves = {method: curve(metrics, method, key) for method in methods}
            yield line_chart(title, curves, styles, show, log=log)
        for method in self.run.config.method.methods:
            curves = {term: curve(metrics, method, term) for term in registry()[method].terms}
            curves = {term: shown for term, shown in curves.items() if shown.at}
            if len(curves) > 1:
                styles = {term: Style(style_of(method).colour, number) for number, term in enumerate(curves)}
                yield line_chart(
                    f"Terms of {method}'s loss, before their weights", curves, styles, _significant, log=True
                )

    def _heat_map(self, matrix: Tensor, show: Callable[[float], str]) -> HeatMap:
        return heat_map(matrix, self.run.classes, show)


def _significant(value: float) -> str:
    return f"{value:.3g}"
