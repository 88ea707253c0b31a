"""The bench of whole runs measures what it says, on images of no size to speak of."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from benches import throughput


def test_rows_of_whole_and_bare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    networks = ["--teacher", "cnn-2", "--student", "cnn-2", "--device", "cpu", "--threads", "1"]
    throughput.main([*networks, "--precision", "32-true", "--rounds", "1", "--limit", "200", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["method"] for row in rows] == ["labels", "kd", "cid"]
    for row in rows:
        assert row["images"] == 180
        assert row["ratios"] == [pytest.approx(row["whole"][0] / row["bare"][0], rel=1e-2)]
    assert rows[0]["teacher"] is None
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_every_step_has_its_turn() -> None:
    clock = iter(range(100))
    bare = SimpleNamespace(now=lambda: next(clock), step=lambda: next(clock))
    turns = throughput.Turns(cast(throughput.Bare, bare))
    turns.start("kd", 7, 0)
    turns.step(5, 0.1)  # as a device reports them
    turns.epoch({})
    assert turns.steps == 7
    assert turns.seconds == 7 + 2  # a tick a step, and one a turn to read the clock
