"""The table of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cid.train.folder import TEACHER
from cid.train.results.table import TEST, aligned, estimate, with_interval
from cid.train.study.plan import Setting, digest
from cid.train.study.rows import Row

LEVEL = 0.05  # of the tests of all differences together
SURE = "*"


@dataclass(frozen=True)
class Line:
    """A method in one combination of the grid.

    Attributes:
        label: the alternatives.
        method: its name, or that it is the teacher.
        accuracies: by test, then by seed; of two networks of one seed, the first.
        gains: over the baseline, by test, of the seeds that both have from one teacher; empty where it is not compared.
        seconds: that its networks took to train.
        apart: seeds that both have, but not known to be from one training of the teacher: of two machines, say.
    """

    label: tuple[str, ...]
    method: str
    accuracies: Mapping[str, Mapping[int, float]]
    gains: Mapping[str, Sequence[float]]
    seconds: float
    apart: int

    @property
    def networks(self) -> int:
        """How many there are."""
        return len(self.accuracies[TEST])

    @property
    def count(self) -> str:
        """How many there are, and in brackets how many are compared, if another teacher's are not."""
        return f"{self.networks} ({self.networks - self.apart})" if self.apart else str(self.networks)


def lines(study: Sequence[Setting], rows: Iterable[Row], baseline: str) -> list[Line]:
    """All methods of a study that have rows, in the order of the grid.

    Args:
        study: its settings.
        rows: of its networks, and perhaps of others, which are left out.
        baseline: a method.
    """
    by_digest: dict[str, list[Row]] = {}
    for row in rows:
        by_digest.setdefault(row["digest"], []).append(row)
    found: dict[tuple[str, ...], dict[str, dict[int, list[Row]]]] = {}
    for setting in study:
        methods = found.setdefault(tuple(setting.label.values()), {})
        for method, seed in networks(setting):
            key = digest(setting.config, method, seed)
            if key in by_digest:
                methods.setdefault(method, {})[seed] = by_digest[key]
    made = []
    for label, methods in found.items():
        for method, own in methods.items():
            other = {} if method in (TEACHER, baseline) else methods.get(baseline, {})
            both = [seed for seed in own if seed in other]
            pairs = {seed: pair for seed in both if (pair := _of_one_teacher(own[seed], other[seed]))}
            ours, theirs = ({seed: pair[side] for seed, pair in pairs.items()} for side in (0, 1))
            accuracies = _accuracies({seed: each[0] for seed, each in own.items()})
            gains = _gains(_accuracies(ours), _accuracies(theirs))
            seconds = sum(each[0]["seconds"] for each in own.values())
            made.append(Line(label, method, accuracies, gains, seconds, len(both) - len(pairs)))
    return made


def _of_one_teacher(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[Row, Row] | None:
    """The first rows of both that have heard the same training of the teacher; rows of before don't say which."""
    return next(((a, b) for a in ours for b in theirs if a.get("teacher") == b.get("teacher")), None)


def _accuracies(rows: Mapping[int, Row]) -> dict[str, dict[int, float]]:
    """By test, then by seed."""
    found: dict[str, dict[int, float]] = {}
    for seed, row in rows.items():
        for test, accuracy in {TEST: row["test_accuracy"], **row["tests"]}.items():
            found.setdefault(test, {})[seed] = accuracy
    return found


def networks(setting: Setting) -> list[tuple[str, int]]:
    """Method and seed of each, the teacher's first."""
    return [(TEACHER, setting.config.run.seeds[0]), *setting.students()]


def _gains(own: Mapping[str, Mapping[int, float]], other: Mapping[str, Mapping[int, float]]) -> dict[str, list[float]]:
    return {
        test: [value - other[test][seed] for seed, value in values.items() if seed in other[test]]
        for test, values in own.items()
        if test in other
    }


def study_table(study: Sequence[Setting], rows: Sequence[Row], baseline: str) -> str:
    """Each method's accuracy on each test, for each combination of the grid, and how it differs from the baseline.

    Means and 95% intervals (Student's t) are over seeds; differences are taken seed by seed. Those are marked that
    differ from 0 by the t-tests of all differences in the table together, by Holm's method at 5%.
    """
    found = lines(study, rows, baseline)
    tests, surely = tests_of(found), sure_gains(found)
    text = [[*study[0].label, "method", *(head for test in tests for head in (test, f"{test} - {baseline}")), "n"]]
    for line, own in zip(found, surely, strict=True):
        cells = [*line.label, line.method]
        for test in tests:
            gain = interval(line.gains.get(test, ()), "+")
            mark = SURE if test in own else " "
            cells += [interval([*line.accuracies.get(test, {}).values()]), f"{gain} {mark}" if gain else ""]
        text.append([*cells, line.count])
    return "\n".join([*aligned(text, len(study[0].label) + 1), "", *notes(study, found)])


def notes(study: Sequence[Setting], found: Sequence[Line]) -> list[str]:
    """How to read the table, what it took, and what is missing in it."""
    done = sum(line.networks for line in found)
    left = sum(map(len, map(networks, study))) - done
    hours = sum(line.seconds for line in found) / 3600
    reading = (
        "Accuracy in %, mean and 95% interval (Student's t) over seeds; differences seed by seed. "
        f"{SURE}: of all these differences not 0 (Holm, at 5%)."
    )
    missing = f"Not done yet: {left} networks." if left else "All are done."
    apart = sum(line.apart for line in found)
    other = f"Not compared, as not known to have heard one training of the teacher: {apart} networks."
    return [reading, *([other] if apart else []), f"Done: {done} networks, in {hours:.1f} hours of training. {missing}"]


def interval(values: Sequence[float], sign: str = "") -> str:
    """The mean of accuracies or differences and its interval, in %; nothing of none."""
    return with_interval(estimate(values), sign) if values else ""


def tests_of(found: Iterable[Line]) -> list[str]:
    """The tests that any of the lines has, the test data first."""
    return list(dict.fromkeys(test for line in found for test in line.accuracies))


def sure_gains(found: Sequence[Line]) -> list[set[str]]:
    """For each line the tests on which it differs from the baseline, by `sure` of all lines and tests together."""
    tests = tests_of(found)
    marks = iter(sure([line.gains.get(test, ()) for line in found for test in tests]))
    return [{test for test in tests if next(marks)} for _ in found]


def sure(differences: Sequence[Sequence[float]]) -> list[bool]:
    """Which of these differ from 0, each by its values, all together.

    Student's t-test of each that has three values or more, and Holm's method: of m tests, the p-values in order are
    held against 5% / m, 5% / (m - 1), ... until one is larger.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    from scipy.stats import ttest_1samp  # type: ignore[import-untyped]

    # Of values that are all one there is no test: they differ surely, or not at all. Equal ones differ by rounding.
    rounded = {place: [round(value, 12) for value in each] for place, each in enumerate(differences) if len(each) >= 3}
    p = {
        place: float(ttest_1samp(values, 0).pvalue) if len(set(values)) > 1 else float(not values[0])
        for place, values in rounded.items()
    }
    found = [False] * len(differences)
    for rank, place in enumerate(sorted(p, key=p.__getitem__)):
        if p[place] > LEVEL / (len(p) - rank):
            break
        found[place] = True
    return found
