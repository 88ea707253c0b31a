"""The table of a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cid.train.folder import TEACHER
from cid.train.results.table import TEST, estimate
from cid.train.study.plan import Setting, digest
from cid.train.study.rows import Row


def study_table(study: Sequence[Setting], rows: Iterable[Row], baseline: str) -> str:
    """Each method's accuracy on each test, for each combination of the grid, and how it differs from the baseline.

    Means and 95% intervals (Student's t) are over seeds; differences are taken seed by seed.

    Args:
        study: its settings.
        rows: of its networks, and perhaps of others, which are left out.
        baseline: a method.
    """
    by_digest = {row["digest"]: row for row in rows}
    groups: dict[tuple[str, ...], dict[str, dict[int, Row]]] = {}
    missing = 0
    for setting in study:
        methods = groups.setdefault(tuple(setting.label.values()), {})
        first = setting.config.run.seeds[0]
        for method, seed in [(TEACHER, first), *setting.students()]:
            row = by_digest.get(digest(setting.config, method, seed))
            missing += row is None
            if row is not None:
                methods.setdefault(method, {})[seed] = row
    tests = dict.fromkeys(
        test
        for methods in groups.values()
        for own in methods.values()
        for row in own.values()
        for test in _accuracies(row)
    )
    lines = [[*study[0].label, "method", *(text for test in tests for text in (test, f"{test} - {baseline}")), "n"]]
    for label, methods in groups.items():
        for method, own in methods.items():
            cells = [
                text
                for test in tests
                for text in _cells(own, {} if method in (TEACHER, baseline) else methods.get(baseline, {}), test)
            ]
            lines.append([*label, method, *cells, str(len(own))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    names = len(study[0].label) + 1
    text = [
        "  ".join(
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * (sum(widths) + 2 * len(widths) - 2))
    notes = "Accuracy in %, mean and 95% interval (Student's t) over seeds; differences seed by seed."
    left = f" {missing} networks are not done yet." if missing else ""
    return "\n".join([*text, "", notes + left])


def _accuracies(row: Row) -> dict[str, float]:
    return {TEST: row["test_accuracy"], **row["tests"]}


def _cells(own: dict[int, Row], other: dict[int, Row], test: str) -> tuple[str, str]:
    """The accuracy on a test, and how it differs."""
    found = {seed: _accuracies(row).get(test) for seed, row in own.items()}
    against = {seed: _accuracies(row).get(test) for seed, row in other.items()}
    values = [value for value in found.values() if value is not None]
    gains = [
        value - base for seed, value in found.items() if value is not None and (base := against.get(seed)) is not None
    ]
    return _interval(values), _interval(gains, "+")


def _interval(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    found = estimate(values)
    text = f"{100 * found.mean:{sign}.2f}"
    return text if found.half_width is None else f"{text} +/- {100 * found.half_width:.2f}"
