"""Rows that are appended, cut off, and merged."""

import json
from pathlib import Path

import pytest

from cid._errors import ConfigError
from cid.train.study.rows import alone, append_row, read_rows


def test_what_is_cut_off_is_left_out_and_the_next_row_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_rows(file) == []
    append_row(file, {"digest": "a", "test_accuracy": 0.5})
    with file.open("a") as opened:
        opened.write('{"digest": "b", "test_acc')
    append_row(file, {"digest": "c"})
    assert read_rows(file) == [{"digest": "a", "test_accuracy": 0.5}, {"digest": "c"}]
    assert file.read_text().endswith("\n")


def test_of_two_rows_of_one_network_the_first_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"digest": key, "n": n}) + "\n" for key, n in [("a", 1), ("b", 2), ("a", 3)]))
    assert [(row["digest"], row["n"]) for row in read_rows(file)] == [("a", 1), ("b", 2)]


def test_one_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with alone(tmp_path):
        refused = pytest.raises(ConfigError, match=r"^--out: got .*, in which another cid study works")
        with refused, alone(tmp_path):
            pass
    with alone(tmp_path):
        pass
