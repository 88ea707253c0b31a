import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cid._errors import ConfigError, DataError
from cid.train.data import Split, load_dataset
from cid.train.sections import DataConfig
from tests.train import fakes
from tests.train.data.reading import config


def test_image_folder(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path)
    dataset = load_dataset(DataConfig(name=str(tmp_path), validation=0.3))
    assert dataset.classes == ("cat", "dog")
    assert dataset.size == (10, 8)
    assert dataset.channels == 3
    assert dataset.test.labels.tolist() == [0, 1]
    assert values(dataset.test) == [10, 110]


def test_image_folder_with_several_sizes_needs_resize(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path)
    Image.new("L", (5, 5)).save(tmp_path / "train/dog/other.png")
    with pytest.raises(DataError, match="--resize"):
        load_dataset(DataConfig(name=str(tmp_path), validation=0.3))
    assert load_dataset(DataConfig(name=str(tmp_path), validation=0.3, resize=6)).size == (6, 6)


def test_image_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data: got '.*nowhere', accepted: digits"):
        load_dataset(config(str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="no folder 'train'"):
        load_dataset(config(str(tmp_path)))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"no folder 'test', expected train/CLASS/, and test/CLASS/ or val/CLASS/"):
        load_dataset(config(str(tmp_path)))
    (tmp_path / "train").rmdir()
    fakes.image_folder(tmp_path)
    (tmp_path / "test/bird").mkdir()
    with pytest.raises(DataError, match="bird"):
        load_dataset(config(str(tmp_path)))
    (tmp_path / "test/bird").rmdir()
    (tmp_path / "train/bird").mkdir()
    (tmp_path / "train/bird/0.gif").write_bytes(b"of no kind that is read")
    with pytest.raises(DataError, match=r"train has no images \(\.png .*\) of bird"):
        load_dataset(config(str(tmp_path)))


def test_an_image_of_another_size_is_named_in_whichever_split(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path)
    Image.new("RGB", (5, 6)).save(tmp_path / "test/dog/x.png")
    with pytest.raises(DataError, match=r"test/dog/x\.png: is \(6, 5\), .*cat/0\.png is \(10, 8\): give --resize"):
        load_dataset(config(str(tmp_path)))


def values(split: Split) -> list[int]:
    """The first pixel of each image: in the fake folders it tells them apart."""
    return split.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_val_beside_test_chooses_the_epoch(tmp_path: Path, name: str) -> None:
    fakes.image_folder(tmp_path, {"train": 3, name: 2, "test": 1})
    dataset = load_dataset(DataConfig(name=str(tmp_path)))
    assert values(dataset.train) == [0, 1, 2, 100, 101, 102]
    assert values(dataset.validation) == [10, 11, 110, 111]
    assert values(dataset.test) == [20, 120]
    assert dataset.validation.labels.tolist() == [0, 0, 1, 1]
    assert dataset.summary["validation"] == {"images": 4, "from": name}
    limited = load_dataset(DataConfig(name=str(tmp_path), limit=4, limit_test=1))
    assert (len(limited.train), len(limited.validation), len(limited.test)) == (4, 4, 1)
    with pytest.raises(ConfigError, match=rf"--validation: got 0\.3, accepted: none, as {name}/ is for that"):
        load_dataset(DataConfig(name=str(tmp_path), validation=0.3))


def test_val_alone_is_the_test_data_and_chooses_nothing(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path, {"train": 10, "val": 2})
    dataset = load_dataset(DataConfig(name=str(tmp_path)))
    assert values(dataset.test) == [10, 11, 110, 111]
    assert len(dataset.validation) == 2  # a tenth
    assert sorted(values(dataset.train) + values(dataset.validation)) == [*range(10), *range(100, 110)]
    assert {split: dataset.summary[split] for split in ("train", "validation", "test")} == {
        "train": {"images": 18, "from": "train"},
        "validation": {"images": 2, "from": "train"},
        "test": {"images": 4, "from": "val"},
    }


def test_two_folders_of_validation_images_are_refused(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path, {"train": 3, "val": 1, "valid": 1})
    with pytest.raises(DataError, match="has the folders val and valid, expected one of them"):
        load_dataset(DataConfig(name=str(tmp_path)))


def test_folders_of_groups_are_the_test_data(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path, {"train": 3, "val": 1, "test-on water": 2, "test-on land": 1})
    shutil.rmtree(tmp_path / "test-on water/dog")  # a group need not have every class
    dataset = load_dataset(DataConfig(name=str(tmp_path)))
    assert values(dataset.validation) == [10, 110]
    assert dataset.groups == ("on land", "on water")
    assert values(dataset.test) == [30, 130, 20, 21]
    assert dataset.test.labels.tolist() == [0, 1, 0, 0]
    assert dataset.test.groups is not None
    assert dataset.test.groups.tolist() == [0, 0, 1, 1]
    assert dataset.tests == {}
    assert dataset.train.groups is None
    assert dataset.summary["test"] == {"images": 4, "from": "test-on land, test-on water"}
    limited = load_dataset(DataConfig(name=str(tmp_path), limit_test=3)).test
    assert limited.groups is not None
    for value, group in zip(values(limited), limited.groups.tolist(), strict=True):
        assert (value in (20, 21)) == group


def test_beside_a_test_the_groups_are_a_further_one(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path, {"train": 5, "test": 1, "test-a": 1, "test-b": 2})
    dataset = load_dataset(DataConfig(name=str(tmp_path), validation=0.2))
    assert values(dataset.test) == [10, 110]
    assert dataset.test.groups is None
    further = dataset.tests["groups"]
    assert values(further) == [20, 120, 30, 31, 130, 131]
    assert further.groups is not None
    assert further.groups.tolist() == [0, 0, 1, 1, 1, 1]
    assert dataset.summary["tests"] == {"groups": {"images": 6, "from": "test-a, test-b"}}


def test_a_folder_of_a_group_is_checked_as_the_others(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path, {"train": 3, "test-a": 1})
    (tmp_path / "test-a/bird").mkdir()
    with pytest.raises(DataError, match="test-a has classes that train has not: bird"):
        load_dataset(config(str(tmp_path)))
    shutil.rmtree(tmp_path / "test-a")
    (tmp_path / "test-a").mkdir()
    with pytest.raises(DataError, match="test-a has no images in the folders cat, dog"):
        load_dataset(config(str(tmp_path)))


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path)
    for hidden in ("train/cat/._0.png", "train/cat/.DS_Store", "train/cat/Thumbs.db", "train/.DS_Store", "test/._cat"):
        (tmp_path / hidden).write_bytes(b"\0\5")
    for folder in ("train/.ipynb_checkpoints", "test/.git", "train/cat/.thumbnails"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(b"no image")
    dataset = load_dataset(config(str(tmp_path)))
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train) + len(dataset.validation) == 6
    assert dataset.summary["unreadable"] == {"count": 0, "images": {}}


def damage(folder: Path) -> None:
    """An empty file, one that is no image, one that is cut off, and a link to nowhere."""
    whole = (folder / "train/cat/0.png").read_bytes()
    (folder / "train/cat/empty.png").touch()
    (folder / "train/cat/text.JPG").write_text("no image")
    (folder / "train/dog/cut off.png").write_bytes(whole[:-30])
    (folder / "test/dog/link.png").symlink_to("nowhere")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes links for administrators alone")
def test_all_unreadable_images_are_named_at_once(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=r"has 4 images that cannot be read: .*--skip-unreadable") as error:
        load_dataset(config(str(tmp_path)))
    names = "train/cat/empty.png, train/cat/text.JPG, train/dog/cut off.png, test/dog/link.png ("
    assert names in str(error.value)
    for i in range(12):
        (tmp_path / f"train/cat/a{i}.png").touch()
    with pytest.raises(DataError, match=r"has 16 images .*train/cat/a7\.png and 6 more \("):
        load_dataset(config(str(tmp_path)))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes links for administrators alone")
def test_unreadable_images_can_be_left_out(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path)
    expected = load_dataset(config(str(tmp_path)))
    damage(tmp_path)
    dataset = load_dataset(config(str(tmp_path), skip_unreadable=True))
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(dataset, split).images, getattr(expected, split).images)
        assert torch.equal(getattr(dataset, split).labels, getattr(expected, split).labels)
    unreadable = dataset.summary["unreadable"]
    assert unreadable["count"] == 4
    assert unreadable["images"].keys() == {
        "train/cat/empty.png",
        "train/cat/text.JPG",
        "train/dog/cut off.png",
        "test/dog/link.png",
    }
    assert "No such file" in unreadable["images"]["test/dog/link.png"]
    for path in (tmp_path / "train/cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"train has no images .* of cat"):
        load_dataset(config(str(tmp_path), skip_unreadable=True))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes links for administrators alone")
def test_images_are_found_at_any_depth_and_by_links(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path / "data")
    train = tmp_path / "data/train"
    (train / "cat/a folder").mkdir()
    (train / "cat/0.png").rename(train / "cat/a folder/0.png")
    (train / "dog").rename(tmp_path / "elsewhere")
    (train / "dog").symlink_to(tmp_path / "elsewhere")
    (train / "cat/around").symlink_to(train / "cat")  # would never end
    dataset = load_dataset(config(str(tmp_path / "data")))
    assert sorted(values(dataset.train) + values(dataset.validation)) == [0, 1, 2, 100, 101, 102]


RAMP = np.linspace(0, 0xFFFF, 80).astype(np.uint16).reshape(10, 8)
BYTES = (RAMP >> 8).astype(np.uint8)
GREY = Image.fromarray(BYTES)


@pytest.mark.parametrize(
    ("image", "suffix", "options"),
    [
        (GREY, ".png", {}),
        (GREY.convert("LA"), ".png", {}),
        (GREY.convert("RGBA"), ".webp", {"lossless": True, "exact": True}),
        (GREY.convert("P"), ".png", {"transparency": bytes(256)}),
        (Image.fromarray(RAMP), ".png", {}),
        (Image.fromarray(RAMP), ".TIF", {}),
        (Image.fromarray(RAMP), ".pgm", {}),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_images_of_every_kind_become_three_channels_of_bytes(
    tmp_path: Path, image: Image.Image, suffix: str, options: dict[str, Any]
) -> None:
    fakes.image_folder(tmp_path)
    image.save(tmp_path / f"test/cat/+{suffix}", **options)  # the first by name
    read = load_dataset(config(str(tmp_path))).test.images[0]
    assert torch.equal(read, torch.from_numpy(BYTES).expand(3, 10, 8))


@pytest.mark.parametrize("pixels", [RAMP / np.float32(0xFFFF), RAMP.astype(np.int32)])
def test_pixels_of_more_than_16_bits_are_not_guessed_at(tmp_path: Path, pixels: np.ndarray) -> None:
    fakes.image_folder(tmp_path)
    Image.fromarray(pixels).save(tmp_path / "test/cat/x.tiff")
    with pytest.raises(DataError, match=r"test/cat/x\.tiff \(its pixels are of Pillow's mode [FI], expected at most"):
        load_dataset(config(str(tmp_path)))
