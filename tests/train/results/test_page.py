"""The page as text, and the command that writes it."""

from __future__ import annotations

import itertools
import json
import re
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cid import cli
from cid._errors import ConfigError
from cid.train.folder import TEACHER
from cid.train.methods import registry
from cid.train.results.page import COLOURS, style_of, typeset, write_page
from cid.train.results.page.draw import percent
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


def test_the_page_shows_weights_and_groups(page: Path, weighted: Path) -> None:
    text = page.read_text(encoding="utf-8")
    section = text[text.index('id="run-3"') :]
    assert "Weights:" not in text[: text.index('id="run-3"')]
    assert re.findall(r"<h3>(Weights: .*?)</h3>", section) == ["Weights: ipw", "Weights: jtt"]
    assert section.count('alt="Training image ') == 2 * 24
    assert section.count("<strong>Calibration: ") == 1
    header = json.loads((weighted / "weights" / "ipw" / "weights.json").read_text())
    assert f"<dd>{header['effective_size']:,.0f} (" in section
    assert section.count("What the context says is taken out of the teacher") == 1
    assert re.search(r"% of the training images have another context than most of their class\.", section)
    groups = re.search(r"<caption><span>Accuracy on unbiased.*?</table>", section, re.DOTALL)
    assert groups is not None
    assert re.findall(r'<th scope="row">(.*?)</th>', groups[0]) == ["teacher", "kd", "kd-ipw", "jtt"]


COLOUR = re.compile(r"--(c\d|ground): #(\w{6});")


def linear(colour: str) -> NDArray[np.float64]:
    channels = np.array(list(bytes.fromhex(colour))) / 255
    found: NDArray[np.float64] = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return found


def oklab(colour: str) -> NDArray[np.float64]:
    """Where colours lie that look as different as they are far apart: Ottosson 2020."""
    cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    opponents = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    found: NDArray[np.float64] = np.array(opponents) @ np.cbrt(np.array(cones) @ linear(colour))
    return found


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def test_every_method_has_a_colour_and_a_mark_that_no_other_has() -> None:
    styles = [style_of(method) for method in (TEACHER, *registry(), "cid, no head")]
    assert len({style.colour for style in styles[: COLOURS + 1]}) == COLOURS + 1
    parts = resources.files("cid.train.results.page").joinpath("parts.html.jinja").read_text(encoding="utf-8")
    marks = parts.partition("]")[0].count('",')
    assert len({(style.colour, style.dash % marks) for style in styles}) == len(styles)
    css = resources.files("cid.train.results.page").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = (dict(COLOUR.findall(part)) for part in css.split("@media (prefers-color-scheme: dark)"))
    for theme in (light, dark):
        ground = theme.pop("ground")
        assert set(theme) == {f"c{number}" for number in range(COLOURS + 1)}
        for colour in theme.values():
            lighter, darker = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 3  # WCAG 2.1, 1.4.11: of what is no text
        for one, other in itertools.combinations(theme.values(), 2):
            assert np.linalg.norm(oklab(one) - oklab(other)) > 0.09


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
