import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cid._errors import ConfigError, DataError
from cid.train.config import DataConfig
from cid.train.data import Batches, Preprocessing, Split, load_dataset, mix_seed
from cid.train.data.augmentation import shift_and_flip
from cid.train.data.digits import SCORED_PLACES
from cid.train.data.unpickle import load_batch
from tests.train import fakes


def config(name: str, folder: Path | None = None, **options: Any) -> DataConfig:
    return DataConfig(name=name, dir=str(folder) if folder else None, validation=0.2, **options)


def all_training_images(dataset: Any) -> list[tuple[int, bytes]]:
    """Label and pixels of training and validation images together, in a canonical order."""
    return sorted(
        (int(label), image.numpy().tobytes())
        for split in (dataset.train, dataset.validation)
        for image, label in zip(split.images, split.labels, strict=True)
    )


def expected(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, bytes]]:
    return sorted((int(label), image.tobytes()) for image, label in zip(images, labels, strict=True))


# --- published layouts ----------------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[str, Callable[[Path], tuple[np.ndarray, np.ndarray]], tuple[int, ...]]] = {
    "cifar10 binary": ("cifar10", fakes.cifar10_binary, (3, 32, 32)),
    "cifar10 pickle protocol 2": ("cifar10", lambda base: fakes.cifar10_pickled(base, protocol=2), (3, 32, 32)),
    "cifar10 pickle protocol 4": ("cifar10", lambda base: fakes.cifar10_pickled(base, protocol=4), (3, 32, 32)),
    "cifar10 pickle protocol 5": ("cifar10", lambda base: fakes.cifar10_pickled(base, protocol=5), (3, 32, 32)),
    "cifar100 binary": ("cifar100", lambda base: fakes.cifar100(base, binary=True), (3, 32, 32)),
    "cifar100 pickle": ("cifar100", lambda base: fakes.cifar100(base, binary=False), (3, 32, 32)),
    "mnist": ("mnist", lambda base: fakes.mnist(base, gzipped=False), (1, 28, 28)),
    "mnist gzipped": ("mnist", lambda base: fakes.mnist(base, gzipped=True), (1, 28, 28)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_every_image_with_its_label(tmp_path: Path, layout: str) -> None:
    name, write, shape = LAYOUTS[layout]
    images, labels = write(tmp_path)
    dataset = load_dataset(config(name, tmp_path))
    assert all_training_images(dataset) == expected(images, labels)
    assert dataset.train.images.shape[1:] == shape
    assert dataset.test.images.dtype == torch.uint8
    assert dataset.test.labels.dtype == torch.int64
    assert len(dataset.validation) == round(0.2 * len(labels))


def test_takes_the_folder_of_the_files_itself(tmp_path: Path) -> None:
    fakes.cifar10_binary(tmp_path)
    assert len(load_dataset(config("cifar10", tmp_path / "cifar-10-batches-bin")).test) == 8


def test_prefers_the_binary_version(tmp_path: Path) -> None:
    fakes.cifar10_binary(tmp_path)
    fakes.cifar10_pickled(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"never read")
    load_dataset(config("cifar10", tmp_path))


def test_missing_files_are_named_with_their_home(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_dataset(config("cifar10", tmp_path))
    for part in (str(tmp_path), "data_batch_1.bin", "cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz"):
        assert part in str(error.value)
    with pytest.raises(DataError, match=r"--data-dir: not given.*t10k-images-idx3-ubyte.*lecun"):
        load_dataset(config("mnist"))


def test_one_missing_file_is_missing_data(tmp_path: Path) -> None:
    fakes.mnist(tmp_path, gzipped=True)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels"):
        load_dataset(config("mnist", tmp_path))


def damage_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_start(path: Path) -> None:
    path.write_bytes(b"\x01\x02\x03\x04" + path.read_bytes()[4:])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "write", "file", "damage", "message"),
    [
        ("cifar10", fakes.cifar10_binary, "cifar-10-batches-bin/data_batch_3.bin", damage_size, "multiple of 3073"),
        ("cifar10", fakes.cifar10_binary, "cifar-10-batches-bin/data_batch_3.bin", damage_empty, "multiple of 3073"),
        ("cifar10", fakes.cifar10_pickled, "cifar-10-batches-py/test_batch", damage_size, "no CIFAR batch"),
        ("cifar10", fakes.cifar10_pickled, "cifar-10-batches-py/test_batch", damage_start, "no CIFAR batch"),
        ("mnist", LAYOUTS["mnist"][1], "MNIST/raw/train-images-idx3-ubyte", damage_size, "its header says"),
        ("mnist", LAYOUTS["mnist"][1], "MNIST/raw/train-images-idx3-ubyte", damage_start, "no IDX file"),
        ("mnist", LAYOUTS["mnist gzipped"][1], "MNIST/raw/train-labels-idx1-ubyte.gz", damage_size, "cannot be read"),
        ("mnist", LAYOUTS["mnist gzipped"][1], "MNIST/raw/train-labels-idx1-ubyte.gz", damage_start, "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, write: Callable[[Path], Any], file: str, damage: Callable[[Path], None], message: str
) -> None:
    write(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(DataError, match=message) as error:
        load_dataset(config(name, tmp_path))
    assert Path(file).name.removesuffix(".gz") in str(error.value)


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    fakes.cifar10_binary(tmp_path)
    path = tmp_path / "cifar-10-batches-bin/test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(DataError, match="label 10"):
        load_dataset(config("cifar10", tmp_path))


# --- the unpickler --------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("pwned"),)


def test_a_pickle_can_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(ValueError, match="not allowed"):
            load_batch(pickle.dumps({b"data": Evil()}, protocol=protocol))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value", [np.zeros(3), np.array([None, "x"]), np.asfortranarray(np.zeros((2, 2), np.uint8)), np.zeros(2, "u1,u1")]
)
def test_only_arrays_of_bytes_are_built(value: Any) -> None:
    with pytest.raises(ValueError, match=r"array|unknown"):
        load_batch(pickle.dumps({b"data": value}, protocol=2))


def test_a_pickle_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="no dict"):
        load_batch(pickle.dumps([1, 2]))


# --- image folders --------------------------------------------------------------------------------------------------


def test_image_folder(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path)
    dataset = load_dataset(DataConfig(name=str(tmp_path), validation=0.3))
    assert dataset.classes == ("cat", "dog")
    assert dataset.size == (10, 8)
    assert dataset.channels == 3
    assert [(int(label), int(image[0, 0, 0])) for image, label in zip(*vars(dataset.test).values(), strict=True)] == [
        (0, 10),
        (1, 110),
    ]


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


# --- splits ---------------------------------------------------------------------------------------------------------


def test_digits_splits_are_disjoint_fixed_and_limited() -> None:
    dataset = load_dataset(config("digits"))
    again = load_dataset(config("digits"))
    assert torch.equal(dataset.test.images, again.test.images)
    assert torch.equal(dataset.validation.images, again.validation.images)
    assert len(dataset.train) + (len(dataset.validation) + len(dataset.test)) / SCORED_PLACES == 1797
    other = load_dataset(config("digits", split_seed=1, limit=100, limit_test=7))
    assert (len(other.train), len(other.validation), len(other.test)) == (80, 20 * SCORED_PLACES, 7 * SCORED_PLACES)
    assert not torch.equal(other.validation.images, dataset.validation.images[: 20 * SCORED_PLACES])


def test_digits_keep_every_pixel_wherever_they_lie() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset(config("digits"))
    scored = int(dataset.validation.images.long().sum() + dataset.test.images.long().sum())
    assert dataset.train.images.long().sum() + scored / SCORED_PLACES == load_digits().images.sum()


def test_a_split_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="--validation"):
        load_dataset(config("digits", limit=2))


# --- batches --------------------------------------------------------------------------------------------------------


def make_batches(count: int = 21, **options: Any) -> Batches:
    images = torch.arange(count * 2 * 6 * 5, dtype=torch.int64).remainder(251).to(torch.uint8).view(count, 2, 6, 5)
    settings = {"batch_size": 5, "pad": 2, "flip": True, "seed": 3, **options}
    return Batches(Split(images, torch.arange(count)), Preprocessing(255.0, (0.1, 0.2), (0.5, 0.25)), **settings)


def test_an_epoch_has_every_sample_once_and_is_a_function_of_seed_and_epoch() -> None:
    batches = make_batches(23)
    plan = batches.plan(4)
    labels = torch.cat([batches.batch(plan, step)[1] for step in range(batches.steps)])
    assert torch.equal(labels.sort().values, torch.arange(23))
    torch.randn(3)  # the global state plays no role
    again = make_batches(23)
    for step in (4, 1):  # nor does the order
        one, other = batches.batch(plan, step), again.batch(again.plan(4), step)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.target, other.target)
    assert not torch.equal(plan.order, batches.plan(5).order)
    assert not torch.equal(plan.order, make_batches(23, seed=4).plan(4).order)


def test_a_last_batch_of_one_is_left_out() -> None:
    assert make_batches(21).steps == 4
    assert make_batches(22).steps == 5


def test_scoring_is_in_order_normalised_and_not_augmented() -> None:
    batches = make_batches(7)
    inputs = torch.cat([inputs for inputs, _ in batches.in_order()])
    images = batches._split.images.double() / 255
    mean, std = torch.tensor([0.1, 0.2]).view(-1, 1, 1), torch.tensor([0.5, 0.25]).view(-1, 1, 1)
    torch.testing.assert_close(inputs.double(), (images - mean) / std, rtol=1e-5, atol=1e-6)


def test_shift_and_flip_against_a_loop() -> None:
    images = torch.randint(256, (9, 2, 6, 5), dtype=torch.uint8)
    rows, columns = torch.randint(5, (2, 9))
    flips = torch.rand(9) < 0.5
    moved = shift_and_flip(images, 2, rows, columns, flips)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for i in range(9):
        crop = padded[i, :, rows[i] : rows[i] + 6, columns[i] : columns[i] + 5]
        assert torch.equal(moved[i], crop.flip(2) if flips[i] else crop)


def test_augmentation_varies() -> None:
    rows, columns, flips = make_batches(200).plan(0).augmentation
    assert rows.unique().tolist() == columns.unique().tolist() == [0, 1, 2, 3, 4]
    assert 60 < int(flips.sum()) < 140
    assert not make_batches(200, flip=False).plan(0).augmentation.flips.any()


def by_label(batches: Batches, epoch: int) -> torch.Tensor:
    """The inputs of an epoch, in the order of the samples."""
    plan = batches.plan(epoch)
    inputs, labels = zip(*(batches.batch(plan, step)[:2] for step in range(batches.steps)), strict=True)
    return torch.cat(inputs)[torch.cat(labels).argsort()]


def test_fixed_views_are_of_view_seed_view_and_sample_alone() -> None:
    batches = make_batches(23, views=3)
    views = [torch.cat(list(batches.in_view(number, range(23)))) for number in range(3)]
    for epoch in range(7):  # whatever the run's seed, its batches and its order
        assert torch.equal(by_label(make_batches(23, views=3, seed=epoch, batch_size=6), epoch), views[epoch % 3])
    assert not torch.equal(views[0], views[1])
    assert torch.equal(torch.cat(list(batches.in_view(1, range(4, 21)))), views[1][4:21])
    assert not torch.equal(by_label(make_batches(23, views=3, view_seed=1), 0), views[0])
    # The order is that of a run without fixed views, and new in each epoch.
    assert torch.equal(batches.plan(3).order, make_batches(23).plan(3).order)
    assert not torch.equal(batches.plan(3).order, batches.plan(0).order)


def test_mixed_seeds_differ() -> None:
    assert len({mix_seed(a, b) for a in range(20) for b in range(20)}) == 400


def test_split_moves_to_a_device() -> None:
    dataset = load_dataset(config("digits"))
    moved = dataset.to(torch.device("meta"))
    for part in ("train", "validation", "test"):
        there, here = getattr(moved, part), getattr(dataset, part)
        assert there.images.is_meta
        assert there.labels.is_meta
        assert there.images.shape == here.images.shape
        assert not here.images.is_meta
