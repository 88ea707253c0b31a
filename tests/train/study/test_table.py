"""The table of a study, and which of its differences are sure."""

from pathlib import Path

import pytest

from cid.train.folder import TEACHER
from cid.train.study.plan import Setting
from cid.train.study.plot import plot_study
from cid.train.study.table import lines, study_table, sure
from tests.train.study.conftest import row


def test_means_intervals_and_differences_seed_by_seed(study: list[Setting]) -> None:
    slow, fast = study
    accuracies = {"labels": [0.5, 0.6, 0.7], "kd": [0.51, 0.62, 0.71], "cid": [0.8, 0.9]}
    rows = [row(slow, method, seed, value) for method, own in accuracies.items() for seed, value in enumerate(own)]
    rows += [row(slow, TEACHER, 0, 0.99), {"digest": "another", "test_accuracy": 0.1, "tests": {}}]
    rows += [row(fast, "kd", 0, 0.4, unbiased=0.3), row(fast, "cid", 0, 0.5, unbiased=0.2)]
    text = study_table(study, rows, "kd").splitlines()
    assert text[0].split() == ["rate", "method", "test", "test", "-", "kd", "unbiased", "unbiased", "-", "kd", "n"]
    cells = [line.split() for line in text[2:]]
    assert cells[0] == ["slow", "teacher", "99.00", "1"]
    # t of 2 degrees of freedom: 4.303 standard errors, of sd 10 and 0.577.
    assert cells[1] == ["slow", "labels", "60.00", "+/-", "24.84", "-1.33", "+/-", "1.43", "3"]
    assert cells[2] == ["slow", "kd", "61.33", "+/-", "24.88", "3"]
    assert cells[3][:2] + cells[3][5:] == ["slow", "cid", "+28.50", "+/-", "6.35", "2"]
    assert cells[4] == ["fast", "kd", "40.00", "30.00", "1"]
    assert cells[5] == ["fast", "cid", "50.00", "+10.00", "20.00", "-10.00", "1"]
    assert text[-1] == "Done: 11 networks, in 1.8 hours of training. Not done yet: 9 networks."
    assert len(lines(study, rows, "kd")) == 6


def test_of_another_teacher_nothing_is_compared(study: list[Setting]) -> None:
    slow, _ = study
    rows = [row(slow, method, seed, 0.5 + 0.1 * seed) for method in ("kd", "cid") for seed in range(3)]
    for each in rows[1:]:  # the first, of kd, does not say which
        each["teacher"] = "here"
    rows[-1]["teacher"] = "there"
    kd, cid = lines(study, rows, "kd")
    assert (kd.count, cid.count) == ("3", "3 (1)")
    assert cid.gains == {"test": [0.0]}
    text = study_table(study, rows, "kd").splitlines()
    assert text[3].endswith(" 3 (1)")
    assert text[-2] == "Not compared, as not known to have heard one training of the teacher: 2 networks."
    # The baseline there, too, by another machine: what is shown stays the first's.
    more = [*rows, {**row(slow, "kd", 2, 0.5), "teacher": "there"}]
    kd, cid = lines(study, more, "kd")
    assert (kd.accuracies["test"][2], cid.count) == (0.7, "3 (2)")
    assert cid.gains["test"] == pytest.approx([0.0, 0.2])


def test_the_picture(study: list[Setting], tmp_path: Path) -> None:
    slow, fast = study
    rows = [row(slow, method, seed, 0.1 * seed) for method in ("labels", "kd") for seed in range(3)]
    rows += [row(slow, TEACHER, 0, 0.9), row(fast, "cid", 0, 0.4, unbiased=0.3)]
    plot_study(lines(study, rows, "kd"), tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_no_rows_yet(study: list[Setting]) -> None:
    assert study_table(study, [], "kd").splitlines()[-1].endswith(" Not done yet: 20 networks.")


def test_what_is_sure_of_all() -> None:
    near = [0.01, 0.011, 0.009]  # t = 17.3: p = 0.0033
    far = [0.01, 0.015, 0.005]  # t = 3.46: p = 0.074
    some = [0.01, 0.0125, 0.0075, 0.0095]  # t = 9.6: p = 0.0024
    assert sure([near]) == [True]
    assert sure([far]) == [False]
    assert sure([some, near]) == [True, True]
    # 0.0024 is at most 5% / 20, 0.0033 more than 5% / 19.
    assert sure([some, *[far] * 18, near]) == [True, *[False] * 19]
    assert sure([near] + [far] * 19) == [False] * 20
    # None of two values; and what never varies.
    assert sure([[0.1, 0.1], [], [0.1] * 3, [0.0] * 3]) == [False, False, True, False]
    assert sure([[0.61 - 0.51, 0.72 - 0.62, 0.81 - 0.71], [0.3 - 0.1 - 0.2, 0.0, 0.0]]) == [True, False]
