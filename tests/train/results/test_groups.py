from __future__ import annotations

from dataclasses import replace

from cid.train.folder import Result, WithoutHead
from cid.train.results.page.groups import GroupRow, GroupTable, group_tables

PLAIN = Result("kd-seed0", "kd", 0, 1030, 2.5, 3, 0.5, 0.9, 1.0)


def test_a_table_for_each_test() -> None:
    one = replace(PLAIN, tests={"hard": 0.5, "odd": 0.4}, groups={"hard": {"a": 0.25, "b": 0.75}, "test": {"a": 0.9}})
    other = replace(
        one, seed=1, tests={"hard": 0.5, "odd": 0.4}, groups={"hard": {"a": 0.5, "b": 0.25}, "test": {"a": 0.9}}
    )
    assert list(group_tables([one, other])) == [
        GroupTable(
            "hard",
            ["a", "b"],
            [GroupRow("kd", "50.00 +/- 0.00", "25.00 +/- 0.00", ["37.50 +/- 158.83", "50.00 +/- 317.66"], 0)],
        ),
        GroupTable("odd", [], [GroupRow("kd", "40.00 +/- 0.00", "", [], None)]),
        GroupTable("test", ["a"], [GroupRow("kd", "90.00 +/- 0.00", "90.00 +/- 0.00", ["90.00 +/- 0.00"], 0)]),
    ]


def test_networks_without_their_heads_have_rows() -> None:
    own = WithoutHead(700, 0.75, 1.5, tests={"hard": 0.2}, groups={"hard": {"a": 0.1}})
    cid = replace(PLAIN, method="cid", tests={"hard": 0.5}, groups={"hard": {"a": 0.4}}, without_head=own)
    (table,) = group_tables([cid])
    assert [(row.method, row.accuracy, row.worst) for row in table.rows] == [
        ("cid", "50.00", "40.00"),
        ("cid, no head", "20.00", "10.00"),
    ]


def test_no_table_without_further_tests() -> None:
    assert list(group_tables([PLAIN])) == []
