"""The page as text, and the command that writes it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from cid import cli
from cid._errors import ConfigError
from cid.train.results.page import percent, typeset, write_page
from cid.train.results.page.gather import RunNumbers


def test_the_page_shows_the_numbers(page: Path, numbers: RunNumbers, run: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = numbers.intervention
    assert found is not None
    first = found.confounders[0]
    sentence = f"Class {first.label} is most mixed with the context of class {first.other} ({100 * first.weight:.1f}%)"
    assert sentence in text
    for line in (run / "table.txt").read_text().splitlines():
        if line.startswith(("labels ", "cid ", "cid - kd")):
            for part in re.split(r"  +", line):
                assert f">{typeset(part)}<" in text
    mixed = re.search(r"<caption><span>Weights of the contexts.*?</table>", text, re.DOTALL)
    assert mixed is not None
    cells = re.findall(r"<td[^>]*>([\d.]+)</td>", mixed[0])
    assert cells == [percent(float(value)) for value in found.mixing.flatten()]
    assert text.count("data:image/png;base64,") >= len(found.mended) + len(found.broken)
    assert len(text) < 1_000_000


def test_a_page_is_the_same_again(odd: Path, tmp_path: Path) -> None:
    one, other = (write_page([odd], tmp_path / name).read_bytes() for name in ("one.html", "other.html"))
    assert one == other


def test_names_are_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "<odd>" not in text
    assert "&lt;odd&gt; &amp; run" in text


def test_the_page_refers_to_nothing_outside(page: Path) -> None:
    text = re.sub('"data:image/png;base64,[^"]*"', '"#"', page.read_text(encoding="utf-8"))
    assert text.startswith("<!doctype html>")
    assert not re.search(r"(?i)//|https?:|@import|url\(|<script|<link|<iframe|<object", text)
    assert all(target.startswith("#") for target in re.findall(r'(?:src|href)="(.*?)"', text))


def test_the_command(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(odd)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"Report: {odd / 'report.html'}\n"
    assert f"scoring {odd / 'cid-seed0'}" in captured.err
    assert "Confusion of" not in (odd / "report.html").read_text(encoding="utf-8")


def test_several_runs_need_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run), str(run)]) == 2
    assert capsys.readouterr().err == "cid: error: --out: not given, accepted with 2 runs: the HTML file to write\n"
    for out in (tmp_path, tmp_path / "no" / "page.html"):
        assert cli.main(["report", str(run), "--out", str(out)]) == 2
        assert capsys.readouterr().err.startswith(f"cid: error: --out: got {out}, accepted: ")


def test_a_missing_extra(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "cid.train.results.page")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert cli.main(["report", str(run)]) == 2
    assert capsys.readouterr().err == 'cid: error: jinja2 is missing: pip install "cid-distill[train]"\n'


def test_without_cid(copied: Path) -> None:
    settings = (copied / "config.toml").read_text()
    (copied / "config.toml").write_text(re.sub(r"methods = \[.*?\]", 'methods = ["labels"]', settings, flags=re.DOTALL))
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(line for line in lines if '"cid"' not in line))
    text = write_page([copied]).read_text(encoding="utf-8")
    assert "no student that cid trained" in text
    assert "One method: nothing to compare." in text
    assert "warm-up" not in text


def test_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="accepted: the folder of a run"):
            write_page([path])
    with pytest.raises(ConfigError, match="RUN: got none"):
        write_page([], tmp_path / "page.html")
