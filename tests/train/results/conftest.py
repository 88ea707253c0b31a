"""The runs that the page's tests are of, trained once, and their page."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cid import cli
from cid.train.results.page import render
from cid.train.results.page.gather import RunNumbers, gather
from tests import draws

SETTINGS = "--teacher cnn-4 --student cnn-2 --batch-size 16 --optimizer adamw --lr 0.01 --device cpu"
# Names of classes and runs are whatever users call their folders.
ODD_NAMES = ("<img src=x onerror=alert(1)>", "\"'&amp;", "a" * 60, "b c")


def distill(arguments: str, out: Path) -> Path:
    assert cli.main(["distill", *arguments.split(), *SETTINGS.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a few digits, but enough that each class is tested whatever is drawn, with two seeds."""
    arguments = f"--limit 150 --limit-test 200 --epochs 4 --teacher-epochs 2 --seeds 0 1 --split-seed {draws.SHIFT}"
    return distill(f"{arguments} --methods labels kd cid", tmp_path_factory.mktemp("page") / "digits")


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a few coloured digits, with two weightings, one of them in two rounds."""
    arguments = (
        "--data coloured-digits --limit 150 --limit-test 60 --epochs 2 --teacher-epochs 2 --seeds 0 1 "
        f"--methods kd kd-ipw jtt --ipw-folds 2 --ipw-rounds 2 --split-seed {draws.SHIFT}"
    )
    return distill(arguments, tmp_path_factory.mktemp("page") / "coloured")


@pytest.fixture(scope="package")
def numbers(run: Path) -> RunNumbers:
    return gather(run, "digits")


@pytest.fixture(scope="package")
def page(numbers: RunNumbers, odd: Path, weighted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three runs, one with names that HTML must escape."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    renamed = dataclasses.replace(gather(odd, "<odd> & run"), classes=ODD_NAMES)
    path.write_text(render([numbers, renamed, gather(weighted, "coloured")]), encoding="utf-8")
    return path


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))
