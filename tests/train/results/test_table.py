"""The table: estimates over seeds, differences seed by seed, rows of networks with and without their heads."""

from dataclasses import replace

import pytest

from cid.train.folder import Result, WithoutHead
from cid.train.results import table


def result(method: str, seed: int, accuracy: float) -> Result:
    return Result(f"{method}-seed{seed}", method, seed, 1030, 2.5, 3, 0.5, accuracy, 1.0)


RESULTS = [
    result("teacher", 0, 0.97),
    *(result("labels", seed, 0.80 + 0.01 * seed) for seed in range(3)),
    *(result("cid", seed, 0.82 + 0.01 * seed) for seed in (0, 2, 1)),
]


def test_estimate() -> None:
    values = table.estimate([1.0, 2.0, 3.0, 4.0])
    assert values.mean == 2.5
    assert values.deviation == pytest.approx(1.2910, abs=1e-4)
    assert values.half_width == pytest.approx(3.1824 * 1.2910 / 2, abs=1e-3)
    assert table.estimate([1.0]) == table.Estimate(1.0, None, None)


def test_table_has_mean_spread_and_paired_differences() -> None:
    text = table.table(RESULTS)
    assert "81.00 +/- 2.48" in text
    assert "80.00..82.00" in text
    assert "cid - labels: +2.00 +/- 0.00: a difference" in text
    assert "1,030" in text
    assert len({len(line) for line in text.splitlines()[:5]}) == 1


def test_differences_use_common_seeds_alone() -> None:
    (difference,) = table.differences([result("labels", 0, 0.5), result("kd", 0, 0.6), result("kd", 1, 0.9)])
    assert difference.accuracy.mean == pytest.approx(0.1)
    assert "one seed" in table.table([result("labels", 0, 0.5), result("kd", 0, 0.6)])


def test_two_seeds_are_no_verdict() -> None:
    results = [result(method, seed, accuracy) for method, accuracy in (("labels", 0.5), ("kd", 0.6)) for seed in (0, 1)]
    assert "kd - labels: +10.00 +/- 0.00 (two seeds: too few to tell)" in table.table(results)


def test_networks_that_can_do_without_their_heads_have_two_rows() -> None:
    own = WithoutHead(700, 0.75, 1.5)
    results = [result("kd", 0, 0.7), replace(result("cid", 0, 0.8), without_head=own)]
    assert [(row.method, row.parameters, row.accuracy.mean) for row in table.rows(results)] == [
        ("kd", 1030, 0.7),
        ("cid", 1030, 0.8),
        ("cid, no head", 700, 0.75),
    ]
    assert [(each.method, each.baseline) for each in table.differences(results)] == [
        ("cid", "kd"),
        ("cid, no head", "kd"),
        ("cid, no head", "cid"),
    ]
    text = table.table(results)
    assert "no head: the same networks by the student's own logits" in text
    assert "no head" not in table.table(results[:1])


def biased(method: str, seed: int, accuracy: float) -> Result:
    groups = {"unbiased": {"red": accuracy, "blue": accuracy - 0.4}}
    return replace(result(method, seed, accuracy), tests={"unbiased": accuracy - 0.2}, groups=groups)


def test_further_tests_and_worst_groups_have_columns_and_differences() -> None:
    results = [
        biased(method, seed, 0.8 + rise * seed) for method, rise in (("kd", 0.0), ("cid", 0.01)) for seed in (0, 1, 2)
    ]
    text = table.table([biased("teacher", 0, 0.9), *results])
    head, _, teacher, *_ = text.splitlines()
    assert head.split("  ")[0] == "method"
    assert head.index("test accuracy") < head.index("unbiased accuracy") < head.index("unbiased worst group")
    assert teacher.split()[:4] == ["teacher", "90.00", "70.00", "50.00"]
    assert "61.00 +/- 2.48" in text
    assert "41.00 +/- 2.48" in text
    assert "cid - kd: +1.00 +/- 2.48: no difference seen" in text
    assert "cid - kd, unbiased: +1.00 +/- 2.48: no difference seen" in text
    assert [each["test"] for each in table.summary(results)["differences"]] == ["test", "unbiased"]
    assert table.summary(results)["methods"][0]["worst_groups"]["unbiased"]["mean"] == pytest.approx(0.4)


def test_networks_scored_before_there_were_further_tests_have_none() -> None:
    lines = table.table([result("labels", 0, 0.5), biased("kd", 0, 0.6)]).splitlines()
    assert lines[2].split()[:4] == ["labels", "50.00", "-", "-"]
    assert not any("unbiased:" in line for line in lines)


def test_groups_of_the_test_itself_have_a_column() -> None:
    grouped = replace(result("kd", 0, 0.6), groups={"test": {"red": 0.6, "blue": 0.2}})
    assert table.table([grouped]).splitlines()[2].split()[:3] == ["kd", "60.00", "20.00"]


def test_the_networks_without_heads_are_scored_on_further_tests_too() -> None:
    own = WithoutHead(700, 0.75, 1.5, {"unbiased": 0.4})
    *_, row = table.rows([replace(biased("cid", 0, 0.8), without_head=own)])
    assert (row.method, row.tests["unbiased"].mean, row.worst_groups) == ("cid, no head", 0.4, {})


def test_the_line_about_the_data() -> None:
    part = {"images": 1000, "from": "train"}
    summary = {"train": part, "validation": part, "test": part, "unreadable": {"count": 0}}
    assert table.data_line(summary).endswith("1,000 to test on (from train)")
    further = {**summary, "tests": {"unbiased": part}, "wrong_labels": {"train": 3}}
    assert table.data_line(further).endswith(", 1,000 to test on, unbiased (from train), 3 wrong labels drawn in train")
