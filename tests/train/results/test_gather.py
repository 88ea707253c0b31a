"""The page of `cid report`: its numbers, its errors, and how it reads in a real browser."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cid import cli
from cid._errors import CheckpointError, ConfigError
from cid.train import load_student
from cid.train.config import read_toml, resolve
from cid.train.data import load_dataset
from cid.train.files import read_tensors, write_tensors
from cid.train.results.page import percent, render, typeset, write_page
from cid.train.results.page.draw import NOTHING, Style, busiest, heat_map, line_chart, picture
from cid.train.results.page.gather import RunNumbers, gather
from cid.train.results.table import Curve, curve
from tests import bounds, draws
from tests.train.results.browser import CHROMIUM, Browser

BATCH = 16
SETTINGS = f"--teacher cnn-4 --student cnn-2 --batch-size {BATCH} --optimizer adamw --lr 0.01 --device cpu"
# Names of classes and runs are whatever users call their folders.
ODD_NAMES = ("<img src=x onerror=alert(1)>", "\"'&amp;", "a" * 60, "b c")


def distill(arguments: str, out: Path) -> Path:
    assert cli.main(["distill", *arguments.split(), *SETTINGS.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a few digits, but enough that each class is tested whatever is drawn, with two seeds."""
    arguments = f"--limit 150 --limit-test 200 --epochs 4 --teacher-epochs 2 --seeds 0 1 --split-seed {draws.SHIFT}"
    return distill(arguments, tmp_path_factory.mktemp("page") / "digits")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an image folder, with one method."""
    base = tmp_path_factory.mktemp("page") / "pictures"
    pixels = np.random.default_rng(draws.SHIFT)
    for part in ("train", "test"):
        for name in "abcd":
            (base / part / name).mkdir(parents=True)
            for i in range(8):
                image = pixels.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                Image.fromarray(image).save(base / part / name / f"{i}.png")
    return distill(f"--data {base} --epochs 2 --seeds 0 --methods cid", base.with_name("odd"))


@pytest.fixture(scope="module")
def numbers(run: Path) -> RunNumbers:
    return gather(run, "digits")


@pytest.fixture(scope="module")
def page(numbers: RunNumbers, odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both runs, one with names that HTML must escape."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    renamed = dataclasses.replace(gather(odd, "<odd> & run"), classes=ODD_NAMES)
    path.write_text(render([numbers, renamed]), encoding="utf-8")
    return path


# --- the numbers -----------------------------------------------------------------------------------------------------


@functools.cache
def own_and_final(run: Path, seed: int) -> tuple[Tensor, Tensor, Tensor, Any]:
    """s, z and the labels of the test data, and the student, by nothing of the page's.

    In batches as the page's: in others each logit is rounded otherwise, and what is close is decided otherwise.
    """
    test = load_dataset(resolve({}, read_toml(run / "config.toml")).data).test
    student: Any = load_student(run / f"cid-seed{seed}")
    parts = (test.images.float() / 16).split(BATCH)
    with torch.no_grad():
        s, z = (torch.cat([model(x) for x in parts]) for model in (lambda x: student[1].model(student[0](x)), student))
    return s, z, test.labels, student[1]


def test_what_is_mixed(run: Path, numbers: RunNumbers) -> None:
    mixing, cosines, rounding = np.zeros((10, 10)), np.zeros((10, 10)), 0.0
    for seed in (0, 1):
        s, _, labels, student = own_and_final(run, seed)
        # Weights change by less than the logits: three convolutions of up to 4 channels, and the layer.
        rounding = max(rounding, bounds.logits(s, layers=4, terms=9 * 4))
        for sample, label in zip(s.double().numpy(), labels.tolist(), strict=True):
            weights = np.exp(sample / 2.0) / np.exp(sample / 2.0).sum()
            mixing[label] += weights / (labels == label).sum().item() / 2
        context = student.context.double().numpy()
        for i in range(10):
            for j in range(10):
                lengths = np.linalg.norm(context[i]) * np.linalg.norm(context[j])
                cosines[i, j] += context[i] @ context[j] / lengths / 2
    found = numbers.intervention
    assert found is not None
    assert found.temperature == 2.0
    np.testing.assert_allclose(found.mixing, mixing, rtol=0, atol=rounding)
    np.testing.assert_allclose(found.cosines, cosines, rtol=1e-9)
    np.fill_diagonal(mixing, -1)
    assert [one.weight for one in found.confounders] == pytest.approx(sorted(mixing.max(1), reverse=True), abs=rounding)
    for one in found.confounders:
        assert mixing[one.label, one.other] >= mixing[one.label].max() - 2 * rounding
        assert one.cosine == pytest.approx(cosines[one.label, one.other])
        assert 0 <= one.students <= 2


@pytest.fixture(scope="module")
def contrary(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with heads that are for what they were against: whatever it learned, they change decisions."""
    path = tmp_path_factory.mktemp("page") / "contrary"
    shutil.copytree(run, path)
    for student in path.glob("cid-seed*/student.safetensors"):
        tensors, header = read_tensors(student)
        heads = [name for name in tensors if name.startswith("head.")]
        assert heads
        write_tensors(student, tensors | {name: -tensors[name] for name in heads}, header)
    return path


def test_changed_decisions(contrary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cid.train.results.page.gather"]  # a function of that name hides it
    monkeypatch.setattr(module, "_check_accuracy", lambda *_: None)  # these are not what was trained
    run, found = contrary, gather(contrary, "digits").intervention
    assert found is not None
    changed: dict[bool, set[int]] = {True: set(), False: set()}
    for seed, student in enumerate(found.students):
        s, z, labels, _ = own_and_final(run, seed)
        before, after, pairs = s.argmax(1) == labels, z.argmax(1) == labels, s.argmax(1) != z.argmax(1)
        assert student.name == f"cid-seed{seed}"
        assert student.own_accuracy == pytest.approx(before.float().mean().item())
        assert student.accuracy == pytest.approx(after.float().mean().item())
        assert student.mended + student.broken + student.still_wrong == pairs.sum()
        assert student.mended - student.broken == after.sum() - before.sum()
        for mended, chosen in ((True, ~before & after), (False, before & ~after)):
            changed[mended] |= set(chosen.nonzero().flatten().tolist())
    assert changed[False]
    for mended, samples in ((True, found.mended), (False, found.broken)):
        assert len(samples) == min(12, len(changed[mended]))
        assert len({sample.index for sample in samples}) == len(samples)
        assert [sample.final.share for sample in samples] == sorted((x.final.share for x in samples), reverse=True)
        for sample in samples:
            assert sample.index in changed[mended]
            s, z, labels, _ = own_and_final(run, int(sample.student[-1]))
            assert sample.label == labels[sample.index]
            assert sample.own.label == s.argmax(1)[sample.index]
            assert sample.final.label == z.argmax(1)[sample.index]
            for ours, theirs in ((sample.final, z), (sample.contexts[0], s / 2)):
                rounding = bounds.logits(theirs, layers=4, terms=9 * 4)
                assert ours.share == pytest.approx(theirs.softmax(1)[sample.index].max().item(), abs=rounding)


def test_confusion(run: Path, numbers: RunNumbers) -> None:
    assert list(numbers.confusions) == ["teacher", "labels", "kd", "cid"]
    for method, matrix in numbers.confusions.items():
        torch.testing.assert_close(matrix.sum(1), torch.ones(10, dtype=torch.float64))
        accuracies = [result.test_accuracy for result in numbers.results if result.method == method]
        test = load_dataset(numbers.config.data).test
        weights = torch.bincount(test.labels, minlength=10) / len(test)
        assert float((matrix.diagonal() * weights).sum()) == pytest.approx(sum(accuracies) / len(accuracies))
    threes = 0.0
    for seed in (0, 1):
        _, z, labels, _ = own_and_final(run, seed)
        threes += (z.argmax(1)[labels == 3] == 9).double().mean().item() / 2
    assert float(numbers.confusions["cid"][3, 9]) == pytest.approx(threes)


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


# --- parts -----------------------------------------------------------------------------------------------------------


def test_of_many_classes_the_busiest_are_shown() -> None:
    matrix = torch.eye(50, dtype=torch.float64)
    matrix[40, 3] = 0.9
    matrix[7, 8] = 0.8
    matrix[5] = torch.nan
    assert busiest(matrix, 4) == [3, 7, 8, 40]
    drawn = heat_map(matrix, [f"class {i}" for i in range(50)], percent)
    assert len(drawn.rows) == len(drawn.columns) <= 20
    assert drawn.classes == 50
    assert (drawn.lowest, drawn.highest) == ("0", "90.0")


def test_a_class_without_samples_shows_nothing() -> None:
    matrix = torch.tensor([[1.0, 0.25, 0.0], [torch.nan] * 3, [0.5, 0.1, 0.4]], dtype=torch.float64)
    drawn = heat_map(matrix, "abc", percent)
    assert [cell.text for cell in drawn.rows[1][1]] == [NOTHING] * 3
    assert [cell.shade for cell in drawn.rows[0][1]] == [None, 50, 0]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0, 0.0], [3.0, 1e-5], [1.0] * 40])
def test_charts_of_odd_curves(values: list[float], log: bool) -> None:
    curves = {"cid": Curve(list(range(1, len(values) + 1)), values, values, values)}
    chart = line_chart("t", curves, {"cid": Style(0, 0)}, str, log=log)
    points = [float(x) for pair in chart.lines[0].points.split() for x in pair.split(",")]
    assert len(points) == 2 * len(values)
    assert all(0 <= x <= 400 for x in points)
    assert chart.table[-1] == (len(values), [str(values[-1])])
    assert len(chart.table) <= 30
    assert chart.x_ticks


def test_a_curve_is_the_mean_and_the_range() -> None:
    lines = [{"method": "cid", "epoch": 1, "loss": 2.0}, {"method": "cid", "epoch": 1, "loss": 4.0}]
    lines += [{"method": "kd", "epoch": 0, "loss": 9.0}, {"method": "cid", "epoch": 0}]
    assert curve(lines, "cid", "loss") == Curve([2], [3.0], [2.0], [4.0])


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures(channels: int) -> None:
    image = torch.arange(channels * 12, dtype=torch.uint8).reshape(channels, 3, 4) % 17
    drawn = Image.open(io.BytesIO(base64.b64decode(picture(image, 16.0).partition(",")[2])))
    assert (drawn.width, drawn.height, drawn.mode) == (4, 3, "L" if channels == 1 else "RGB")
    expected = (image.float() * 255 / 16).round().byte().movedim(0, -1).squeeze(-1)
    np.testing.assert_array_equal(np.asarray(drawn), expected.numpy())
    large = Image.open(io.BytesIO(base64.b64decode(picture(torch.zeros(3, 300, 200), 255.0).partition(",")[2])))
    assert large.height == 96


# --- the command -----------------------------------------------------------------------------------------------------


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


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


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


def test_an_unfinished_run(copied: Path) -> None:
    (copied / "kd-seed1" / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not finished, it lacks kd-seed1; go on with: cid distill --resume"):
        write_page([copied])
    assert not (copied / "report.html").exists()


@pytest.mark.parametrize("content", [None, "", "5\n", '{"name": "teacher"}\n'])
def test_damaged_metrics(copied: Path, content: str | None) -> None:
    (copied / "metrics.jsonl").unlink()
    if content is not None:
        (copied / "metrics.jsonl").write_text(content)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: is missing or damaged"):
        write_page([copied])


def test_a_damaged_student(copied: Path) -> None:
    path = copied / "cid-seed1" / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"cid-seed1.student\.safetensors: is no readable safetensors file"):
        write_page([copied])


def test_other_images(copied: Path) -> None:
    path = copied / "labels-seed0" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "test_accuracy": 1.0}))
    with pytest.raises(ConfigError, match=r"labels-seed0: scores .* and 100\.00% when it was trained"):
        write_page([copied])


def test_images_that_moved(odd: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(odd.with_name("pictures"), tmp_path / "moved"))
    assert write_page([odd], tmp_path / "page.html", data_dir=str(data)).is_file()
    (data / "train" / "d").rename(data / "train" / "new")
    (data / "test" / "d").rename(data / "test" / "new")
    with pytest.raises(ConfigError, match=r"was trained for 4 classes of 3 x 9 x 12 images, .*--data-dir"):
        write_page([odd], tmp_path / "page.html", data_dir=str(data))


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_opens_without_complaint_and_never_scrolls_sideways(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.title").endswith("digits, <odd> & run")
    assert browser.complaints() == []
    assert {url.partition(":")[0] for url in browser.requests()} <= {"file", "data"}


def test_a_map_of_ten_classes_fits_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, width=390)
    box, table = browser.evaluate(
        "(box => [box.clientWidth, box.scrollWidth])(document.querySelector('.heat').closest('.scroll'))"
    )
    assert table <= box


# Draws each colour on a pixel, which yields it as sRGB whatever its notation.
CONTRASTS = """(() => {
    const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const luminance = (colours) => {
        for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(value => {
            value /= 255;
            return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = getComputedStyle(document.body).backgroundColor;
    return [...document.querySelectorAll('td, th, p, li, summary, dt, dd, a, text')].map(each => {
        const style = getComputedStyle(each);
        const behind = [ground, style.backgroundColor];
        const pair = [luminance(behind), luminance([each.tagName === 'text' ? style.fill : style.color])];
        return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    });
})()"""


def test_both_themes_have_contrast(browser: Browser, page: Path) -> None:
    grounds = []
    for dark in (False, True):
        browser.open(page, width=1280, dark=dark)
        contrasts = browser.evaluate(CONTRASTS)
        assert len(contrasts) > 500
        assert min(contrasts) >= 4.5
        grounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(18, 22, 27)"]


def test_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page, width=360)
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("Enter")
    assert browser.evaluate("document.activeElement.id") == "main"
    browser.press("Tab")  # the table is wider than the window: its box can be scrolled
    assert browser.evaluate("document.activeElement.className") == "scroll"
    browser.press("ArrowRight")
    browser.wait("document.activeElement.scrollLeft > 0")
    browser.evaluate("document.querySelector('summary').focus()")
    browser.press("Enter")
    assert browser.evaluate("document.querySelector('details').open")


def test_to_a_screen_reader(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    assert browser.evaluate("document.documentElement.lang") == "en"
    assert browser.evaluate("[...document.querySelectorAll('table')].every(each => each.caption.textContent)")
    assert browser.evaluate("[...document.querySelectorAll('th')].every(each => each.scope)")
    levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(each => +each.tagName[1])")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    nodes = [node for node in browser.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    by_role: dict[str, list[str]] = {}
    for node in nodes:
        by_role.setdefault(node["role"]["value"], []).append(node["name"]["value"])
    for role in ("image", "table", "columnheader", "rowheader", "link", "navigation"):
        assert by_role[role]
        assert all(by_role[role])
    assert any(
        re.match(r"Validation accuracy, % by epoch\. At the end: teacher [\d.]+", name) for name in by_role["image"]
    )
