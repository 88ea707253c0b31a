"""How the page reads in a real browser."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.results.browser import CHROMIUM, Browser


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
    assert browser.evaluate("document.title").endswith("digits, <odd> & run, coloured")
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
    assert browser.evaluate("[...document.querySelectorAll('img')].every(each => each.alt)")
    for role in ("image", "table", "columnheader", "rowheader", "link", "navigation"):
        assert by_role[role]
        assert all(by_role[role])
    for start in ("Distribution of the weights", "How often each model is right"):
        assert any(name.startswith(start) for name in by_role["image"])
    assert any(
        re.match(r"Validation accuracy, % by epoch\. At the end: teacher [\d.]+", name) for name in by_role["image"]
    )
