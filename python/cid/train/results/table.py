"""The table of a run: each method's accuracy over the seeds, and the differences, seed by seed; so on every test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cid.train.folder import TEACHER, Result, worst_groups

TEST = "test"  # what the test data is called beside further tests


def data_line(summary: Mapping[str, Any]) -> str:
    """What each split is for, as a line of text; see `cid.train.data.Dataset`."""
    jobs = {"train": "to train on", "validation": "to choose the epoch by", "test": "to test on"}
    parts = [f"{summary[split]['images']:,} {job} (from {summary[split]['from']})" for split, job in jobs.items()]
    parts += [
        f"{tested['images']:,} to test on, {name} (from {tested['from']})"
        for name, tested in summary.get("tests", {}).items()
    ]
    parts += [f"{count:,} wrong labels drawn in {part}" for part, count in summary.get("wrong_labels", {}).items()]
    if left_out := summary["unreadable"]["count"]:
        parts.append(f"{left_out:,} unreadable and left out (see data.json)")
    if "read" in summary:
        parts.append(f"read {summary['read']}")
    return f"Images: {', '.join(parts)}"


@dataclass(frozen=True)
class Estimate:
    """Mean of some numbers, their standard deviation, and half the width of the mean's 95% interval (Student's t).

    With one number, deviation and interval are None.
    """

    mean: float
    deviation: float | None
    half_width: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Summarises numbers that were drawn independently."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    mean = statistics.fmean(values)
    count = len(values)
    if count < 2:
        return Estimate(mean, None, None)
    deviation = statistics.stdev(values)
    return Estimate(mean, deviation, float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: of its networks.
        networks: how many.
        accuracy: on the test data.
        lowest: accuracy.
        highest: accuracy.
        parameters: of each.
        seconds: of each, in the mean.
        tests: accuracy on each further test.
        worst_groups: accuracy in each network's worst group, of each test whose samples have groups.
        groups: accuracy in each group of these tests.
    """

    method: str
    networks: int
    accuracy: Estimate
    lowest: float
    highest: float
    parameters: int
    seconds: float
    tests: dict[str, Estimate]
    worst_groups: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]]


@dataclass(frozen=True)
class Difference:
    """How much better `method` is than `baseline` on a test, by the seeds that both have."""

    method: str
    baseline: str
    seeds: int
    accuracy: Estimate
    test: str = TEST


def with_variants(results: Iterable[Result]) -> list[Result]:
    """The results, each followed by that of the same network without its head, if it has one, as of a method."""
    found: list[Result] = []
    for result in results:
        found.append(result)
        if result.without_head is not None:
            method = f"{result.method}, no head"
            found.append(replace(result, method=method, without_head=None, **asdict(result.without_head)))
    return found


def rows(results: Iterable[Result]) -> list[Row]:
    """A row a method, in order of appearance, and one more where its networks can also do without their heads."""
    groups: dict[str, list[Result]] = {}
    for result in with_variants(results):
        groups.setdefault(result.method, []).append(result)
    return [_row(method, group) for method, group in groups.items()]


def _row(method: str, group: list[Result]) -> Row:
    accuracies = [result.test_accuracy for result in group]
    return Row(
        method=method,
        networks=len(group),
        accuracy=estimate(accuracies),
        lowest=min(accuracies),
        highest=max(accuracies),
        parameters=group[0].parameters,
        seconds=statistics.fmean(result.seconds for result in group),
        tests=_estimates(result.tests for result in group),
        worst_groups=_estimates(worst_groups(result.groups) for result in group),
        groups={test: _estimates(result.groups.get(test, {}) for result in group) for test in group[0].groups},
    )


def _estimates(found: Iterable[Mapping[str, float]]) -> dict[str, Estimate]:
    """A summary of the numbers of each name."""
    values: dict[str, list[float]] = {}
    for each in found:
        for name, value in each.items():
            values.setdefault(name, []).append(value)
    return {name: estimate(numbers) for name, numbers in values.items()}


def differences(results: Iterable[Result]) -> list[Difference]:
    """Each row's method against each earlier one, seed by seed: what both share (weights, batches) cancels.

    First those on the test data, then those on each further test.
    """
    students = [result for result in with_variants(results) if result.method != TEACHER]
    return paired({(each.method, each.seed): {TEST: each.test_accuracy, **each.tests} for each in students})


def paired(accuracies: Mapping[tuple[str, int], Mapping[str, float]]) -> list[Difference]:
    """Each method against each earlier one, of accuracies on every test by method and seed."""
    methods = list(dict.fromkeys(method for method, _ in accuracies))
    pairs = [(later, earlier) for i, later in enumerate(methods) for earlier in methods[:i]]
    found: list[Difference] = []
    for test in dict.fromkeys(name for each in accuracies.values() for name in each):
        by_key = {key: each[test] for key, each in accuracies.items() if test in each}
        for method, baseline in pairs:
            seeds = [seed for name, seed in by_key if name == method and (baseline, seed) in by_key]
            values = [by_key[method, seed] - by_key[baseline, seed] for seed in seeds]
            if values:
                found.append(Difference(method, baseline, len(values), estimate(values), test))
    return found


HEAD = ("method", "test accuracy", "spread (sd)", "lowest..highest", "networks", "parameters", "seconds each")


def table(results: Sequence[Result], reading: Sequence[str] | None = None) -> str:
    """The results as text, with notes on how to read it: those of a run unless others are given."""
    found = rows(results)
    further = [further_cells(row) for row in found]
    names = list(dict.fromkeys(name for each in further for name in each))
    lines = [[*HEAD[:2], *names, *HEAD[2:]]]
    for row, each in zip(found, further, strict=True):
        method, accuracy, *rest = cells(row)
        lines.append([method, accuracy, *(each.get(name, "-") for name in names), *rest])
    text = [*aligned(lines), "", *(sentence(difference) for difference in differences(results))]
    return "\n".join([*text, "", *(notes(results) if reading is None else reading)])


def aligned(lines: Sequence[Sequence[str]], names: int = 1) -> list[str]:
    """Lines of one width, a rule below the first: cells that are names, the first ones, to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return [text[0], "-" * len(text[0]), *text[1:]]


def notes(results: Iterable[Result]) -> list[str]:
    """How to read the table."""
    text = [
        "Accuracy in %. +/-: 95% interval of the mean over seeds (Student's t), for this split of the data.",
        "Differences are taken seed by seed. The epoch was chosen on validation data; the test data was used once.",
    ]
    if any(result.without_head for result in results):
        text.insert(0, "no head: the same networks by the student's own logits, from the same pass over the test data.")
    return text


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f}"


def with_interval(accuracy: Estimate, sign: str = "") -> str:
    """An accuracy, or with the sign "+" a difference, in %, with the interval that it has."""
    interval = "" if accuracy.half_width is None else f" +/- {_percent(accuracy.half_width)}"
    return _percent(accuracy.mean, sign) + interval


def further_cells(row: Row) -> dict[str, str]:
    """A row's texts on further tests and groups, by what the table's head calls them; they follow the accuracy."""
    names = {TEST: "worst group", **{test: f"{test} worst group" for test in row.tests}}
    return {
        **{f"{test} accuracy": with_interval(accuracy) for test, accuracy in row.tests.items()},
        **{names[test]: with_interval(accuracy) for test, accuracy in row.worst_groups.items()},
    }


def cells(row: Row) -> list[str]:
    """A row's texts, as `HEAD` names them."""
    accuracy = row.accuracy
    several = accuracy.deviation is not None and accuracy.half_width is not None
    return [
        row.method,
        with_interval(accuracy),
        _percent(accuracy.deviation or 0.0) if several else "-",
        f"{_percent(row.lowest)}..{_percent(row.highest)}" if several else "-",
        str(row.networks),
        f"{row.parameters:,}",
        f"{row.seconds:.1f}",
    ]


def sentence(difference: Difference) -> str:
    """A difference in words."""
    accuracy = difference.accuracy
    where = "" if difference.test == TEST else f", {difference.test}"
    text = f"{difference.method} - {difference.baseline}{where}: {_percent(accuracy.mean, '+')}"
    if accuracy.half_width is None:
        return text + " (one seed: no interval)"
    text += f" +/- {_percent(accuracy.half_width)}"
    if difference.seeds < 3:  # two may differ by the same, of a few images, and leave no interval
        return text + " (two seeds: too few to tell)"
    verdict = "no difference seen" if abs(accuracy.mean) <= accuracy.half_width else "a difference"
    return f"{text}: {verdict}"


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """The table for programs."""
    return {
        "methods": [asdict(row) for row in rows(results)],
        "differences": [asdict(difference) for difference in differences(results)],
        "networks": [result.to_json() for result in results],
    }
