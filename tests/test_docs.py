"""The documentation runs: its Python, its commands, and the strict build of its pages."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cid.cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Whose commands run, and what they are cut down to: of an option that stands twice, the last one holds.
RUNNING = ("start.md", "cache.md")
FEW = ["--limit", "100", "--limit-test", "50"]
QUICK = {
    "distill": ["--epochs", "2", "--teacher-epochs", "1", "--seeds", "0", *FEW],
    "cache": FEW,
}


def text_of(page: Path) -> str:
    """A page, with the files that it includes."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r'^--8<-- "(.*)"$', lambda line: text_of(ROOT / line[1]), text, flags=re.MULTILINE)


def commands_of(block: str) -> Iterator[list[str]]:
    for line in block.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "..."]
        if words and words[0] == "cid":
            yield words[1:]


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("cid")
    subparsers = whole.add_subparsers(required=True)
    for register in cid.cli.COMMANDS:
        register(subparsers)
    return whole


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, as a reader types it into one empty folder and one session."""
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    for language, block in BLOCK.findall(text_of(page)):
        if language == "python":
            exec(compile(block, str(page), "exec"), session)
            continue
        for command in commands_of(block):
            parser().parse_args(command)
            placeholders = [word for word in command if word.isupper()]
            if page.name in RUNNING and not placeholders:
                assert cid.cli.main([*command, *QUICK.get(command[0], [])]) == 0, command


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package, reason=f"the documentation is built with {package}, which is not installed")
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


def test_pages_are_built_and_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert {"index.html", "start.html", "functional.html"} <= {page.name for page in pages}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]*)", html)
        assert not loaded, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_formulas_and_links_of_docstrings_are_translated(site: Path) -> None:
    functions = (site / "api" / "functional.html").read_text(encoding="utf-8")
    assert functions.count("<math") > 10
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        left = [mark for mark in (":math:", ".. math::", "arithmatex", "<autoref", "Example:") if mark in html]
        assert not left, page


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {cid.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
