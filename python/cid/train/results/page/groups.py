"""Accuracies on each further test, and in each group, as tables of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cid.train.folder import Result
from cid.train.results.table import TEST, Row, rows, with_interval


@dataclass(frozen=True)
class GroupRow:
    """A method's accuracies on a test.

    Attributes:
        method: of its networks.
        accuracy: of all images.
        worst: in each network's worst group; nothing where there are no groups.
        groups: in each group.
        lowest: which group's mean is the lowest; None where there are no groups.
    """

    method: str
    accuracy: str
    worst: str
    groups: list[str]
    lowest: int | None


@dataclass(frozen=True)
class GroupTable:
    """A test: what its groups are called, and a row a method."""

    test: str
    groups: list[str]
    rows: list[GroupRow]


def group_tables(results: Iterable[Result]) -> Iterator[GroupTable]:
    """A table for each further test and each test whose samples have groups."""
    found = rows(results)
    for test in dict.fromkeys(name for row in found for name in (*row.tests, *row.groups)):
        groups = list(dict.fromkeys(name for row in found for name in row.groups.get(test, {})))
        yield GroupTable(test, groups, [_row(row, test) for row in found])


def _row(row: Row, test: str) -> GroupRow:
    groups, worst = row.groups.get(test, {}), row.worst_groups.get(test)
    means = [accuracy.mean for accuracy in groups.values()]
    return GroupRow(
        method=row.method,
        accuracy=with_interval(row.accuracy if test == TEST else row.tests[test]),
        worst="" if worst is None else with_interval(worst),
        groups=[with_interval(accuracy) for accuracy in groups.values()],
        lowest=means.index(min(means)) if means else None,
    )
