"""The page of a study."""

import re
from pathlib import Path

from cid.train.folder import TEACHER
from cid.train.results.page import typeset
from cid.train.study.page import write_study_page
from cid.train.study.plan import Setting
from cid.train.study.table import lines, study_table
from tests.train.study.conftest import row


def page(study: list[Setting], folder: Path, title: str = "rates") -> str:
    slow, fast = study
    gains = {"labels": (0.5, 0.6, 0.7), "kd": (0.51, 0.62, 0.71), "cid": (0.61, 0.72, 0.81)}
    rows = [row(slow, method, seed, value) for method, own in gains.items() for seed, value in enumerate(own)]
    rows += [row(slow, TEACHER, 0, 0.99), row(fast, "kd", 0, 0.4, unbiased=0.3)]
    found = lines(study, rows, "kd")
    write_study_page(study, found, "kd", title, folder / "page.html")
    text = (folder / "page.html").read_text(encoding="utf-8")
    for line in study_table(study, rows, "kd").splitlines()[2:7]:
        for part in re.split("  +", line.strip())[1:]:
            assert re.sub("^-", "\N{MINUS SIGN}", typeset(part)) in text
    return text


def test_it_has_the_table_and_every_network(study: list[Setting], tmp_path: Path) -> None:
    text = page(study, tmp_path)
    assert text.count("<circle") == 3 * 3 + 1 + 2
    assert "<strong>+10.00 ± 0.00 *</strong>" in text
    assert "Not done yet: 9 networks." in text
    assert text.count("<h2") == 2
    assert "lr = 0.001" in text
    assert "threads" not in text
    assert page(study, tmp_path) == text


def test_it_refers_to_nothing_and_names_are_escaped(study: list[Setting], tmp_path: Path) -> None:
    text = page(study, tmp_path, "<odd> & study")
    assert "&lt;odd&gt; &amp; study" in text
    assert "<odd>" not in text
    assert not re.search(r"(?i)//|https?:|@import|url\(|<script|<link|<iframe|<object", text)
