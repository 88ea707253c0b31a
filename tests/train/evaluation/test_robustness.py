"""`cid eval --corruptions`: the same corrupted images whenever asked, and what networks make of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cid import cli
from cid.train.data import load_dataset
from cid.train.evaluation.corruptions import STRENGTHS, corrupted, corruptions
from cid.train.evaluation.robustness import Robustness
from cid.train.evaluation.show import table
from cid.train.sections import DataConfig

# It draws with libraries of the system's that a server may lack.
pytest.importorskip("imagecorruptions", exc_type=ImportError)

EVERY = [
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
]  # fmt: skip


def images(count: int = 3, channels: int = 3) -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    coarse = rng.integers(40, 200, (count, channels, 8, 9), dtype=np.uint8)
    return coarse.repeat(4, 2).repeat(4, 3)


def test_they_are_the_papers() -> None:
    assert corruptions() == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_an_image_is_corrupted_alike_whenever_asked(name: str) -> None:
    given = images()
    kept = given.copy()
    np.random.seed(1)
    once = corrupted(given, name, 3)
    drawn = np.random.random()
    np.random.seed(2)
    again = corrupted(given, name, 3)
    assert np.array_equal(once, again)
    assert np.array_equal(given, kept)
    assert once.dtype == np.uint8
    assert once.shape == given.shape
    assert not np.array_equal(once, given)
    np.random.seed(1)
    assert np.random.random() == drawn  # as if nobody else had drawn


def test_images_of_a_set_and_strengths_are_drawn_apart() -> None:
    same = images(1).repeat(2, 0)
    first, second = corrupted(same, "gaussian_noise", 3)
    assert not np.array_equal(first, second)
    distances = [abs(corrupted(same, "gaussian_noise", k).astype(float) - same).mean() for k in STRENGTHS]
    assert distances == sorted(distances)


def write_images(folder: Path) -> None:
    """Bright images and dark ones."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 5)):
        for name, low in (("bright", 150), ("dark", 10)):
            place = folder / part / name
            place.mkdir(parents=True)
            for i in range(count):
                values = rng.integers(low, low + 60, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(values).save(place / f"{i}.png")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "data")
    run = tmp_path / "run"
    tiny = "--teacher cnn-3 --student cnn-2 --epochs 1 --seeds 3 4 --methods labels kd --batch-size 8 --device cpu"
    assert cli.main(["distill", "--data", str(tmp_path / "data"), *tiny.split(), "--out", str(run)]) == 0
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--corruptions", "--limit-test", "8"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("gaussian_noise: 1 of 15\n")
    assert "\nkd - labels, corrupted: " in said
    found = json.loads((run / "corruptions.json").read_text())
    assert (found["images"], found["strengths"]) == (8, [1, 2, 3, 4, 5])
    assert [each["seed"] for each in found["networks"]] == [3, 3, 4, 3, 4]
    names = ["teacher", "labels-seed3", "labels-seed4", "kd-seed3", "kd-seed4"]
    assert [each["name"] for each in found["networks"]] == names
    for each in found["networks"]:
        assert list(each["corruptions"]) == EVERY
        assert each["corrupted_accuracy"] == pytest.approx(np.mean(list(each["corruptions"].values())))
    with Image.open(run / "corruptions.png") as picture:
        picture.verify()
    before = (run / "corruptions.json").read_bytes()
    for fewer, lost in ((["--method", "kd"], "labels-seed3, labels-seed4"), (["--limit-test", "7"], "8 images, not 7")):
        assert cli.main(["eval", str(run), "--corruptions", *fewer]) == 2
        assert f"corruptions.json is of {lost}, accepted: no less" in capsys.readouterr().err
    assert (run / "corruptions.json").read_bytes() == before
    assert cli.main(["eval", str(run), "--limit-test", "7"]) == 2
    assert "--limit-test: got 7, accepted: none without --corruptions" in capsys.readouterr().err


def test_few_images_are_of_all_classes(tmp_path: Path) -> None:
    write_images(tmp_path)
    labels = load_dataset(DataConfig(name=str(tmp_path), limit_test=6)).test.labels
    assert set(labels.tolist()) == {0, 1}


def test_small_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    tiny = (
        "--limit 60 --limit-test 20 --teacher cnn-2 --student cnn-2 --epochs 1 --seeds 0 --methods labels --device cpu"
    )
    assert cli.main(["distill", *tiny.split(), "--out", str(run)]) == 0
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--corruptions"]) == 2
    said = capsys.readouterr().err
    assert "--corruptions: got 1 x 12 x 12 images with values up to 16, accepted: 3 channels of 32 x 32" in said
    assert not (run / "corruptions.json").exists()


def test_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    assert cli.main(["eval", str(tmp_path), "--corruptions"]) == 2
    assert 'imagecorruptions is missing: pip install "cid-distill[corruptions]"' in capsys.readouterr().err


def test_the_table_has_a_column_for_each_strength() -> None:
    found = [
        Robustness(f"{method}-seed{seed}", method, seed, 0.9, {"snow": [base, base, base, base, base - 0.1]})
        for method, base in (("labels", 0.5), ("kd", 0.6))
        for seed in range(3)
    ]
    text = table(found)
    head, _, labels, kd, *_ = text.splitlines()
    assert head.split("  ")[0] == "method"
    assert "strength 5" in head
    assert labels.split()[:4] == ["labels", "90.00", "+/-", "0.00"]
    assert kd.count("60.00") == 4
    assert "50.00" in kd
    assert "58.00" in kd
    assert "kd - labels, corrupted: +10.00 +/- 0.00: a difference" in text
