"""The program that measures methods on biased data: a run a setting and seed, none twice, and their table."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benches import bias

SETTING = "coloured-digits --rho 0.9"
TINY = (
    "--limit 60 --limit-test 40 --teacher cnn-2 --student cnn-2 --epochs 1 --methods kd kd-ipw --device cpu "
    "--ipw-folds 2 --ipw-context patches-2"
)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bias", *arguments])
    bias.main()


def test_it_runs_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["run", str(out), "--setting", SETTING, f"--options={TINY}", "--seeds"]
    call(monkeypatch, *arguments, "3")
    rows = bias.rows(out)
    assert [row["method"] for row in rows] == ["teacher", "kd-ipw", "kd"]
    for row in rows:
        assert (row["setting"], row["options"], row["seed"]) == (SETTING, TINY, 3)
        assert 0 <= bias.unbiased(row) <= 1
        # Two folds of a network of the context, and of one of the numerator, an epoch each.
        assert list(row["weights"]) == (["ipw"] if row["method"] == "kd-ipw" else [])
        assert row["weights_epochs"] == (4 if row["method"] == "kd-ipw" else 0)
    before = out.read_bytes()

    def never(setting: str, seed: int, options: list[str]) -> list[dict[str, Any]]:
        raise AssertionError(f"{setting} seed {seed} ran again")

    monkeypatch.setattr(bias, "distil", never)
    call(monkeypatch, *arguments, "3")
    assert out.read_bytes() == before
    with pytest.raises(AssertionError, match="seed 4 ran again"):
        call(monkeypatch, *arguments, "3", "4")
    capsys.readouterr()
    call(monkeypatch, "table", str(out))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| setting | method | as biased | unbiased | unbiased, against kd | n |"
    assert [line.split(" | ")[:2] for line in lines[2:]] == [[f"| {SETTING}", row["method"]] for row in rows]


def test_a_run_that_fails_says_how(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"cid\.cli distill .*--ipw-folds 1.*: .*--ipw-folds: got 1, accepted"):
        bias.run(tmp_path / "out.jsonl", [SETTING], [0], ["--ipw-folds", "1"], None, 1)
    assert bias.rows(tmp_path / "out.jsonl") == []


def row(method: str, seed: int, test: float, unbiased: float | None = None) -> dict[str, Any]:
    tests = {} if unbiased is None else {"unbiased": unbiased}
    return {"setting": "x", "method": method, "seed": seed, "test_accuracy": test, "tests": tests}


def test_the_table_pairs_runs_of_a_seed(tmp_path: Path) -> None:
    rows = [row("kd", 0, 0.9, 0.5), row("kd", 1, 0.9, 0.7), row("kd-ipw", 0, 0.8, 0.6), row("kd-ipw", 2, 0.8, 0.9)]
    kd, ipw = bias.table(rows).splitlines()[2:]
    # Two values 0.2 apart: 12.7 deviations of the mean, 0.1, on either side.
    assert kd == "| x | kd | 90.0 +/- 0.0 | 60.0 +/- 127.1 |  | 2 |"
    assert ipw == "| x | kd-ipw | 80.0 +/- 0.0 | 75.0 +/- 190.6 | +10.0 | 2 |"
    (alone,) = bias.table([row("kd", 0, 0.25)]).splitlines()[2:]
    assert alone == "| x | kd | 25.0 | 25.0 |  | 1 |"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert bias.rows(path) == rows
    assert bias.rows(tmp_path / "none.jsonl") == []
