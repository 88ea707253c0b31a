"""Images that are read as they are needed: the same batches as from memory, whoever reads them."""

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cid._errors import ConfigError, DataError
from cid.train.data import Batch, Batches, Dataset, Mixing, Split, load_dataset
from cid.train.data.decoding import decode
from cid.train.data.images import PHOTOGRAPHS
from cid.train.data.stored.images import Storage, StoredImages
from cid.train.data.stored.views import Views
from cid.train.ranks import Ranks
from cid.train.sections import DataConfig

SIZES = {"train": 7, "val": 3, "test": 2}


def pixels(label: int, number: int, size: tuple[int, int] = (13, 11)) -> Image.Image:
    rng = np.random.default_rng((label, number))
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def write_folder(base: Path) -> None:
    for part, count in SIZES.items():
        for label, name in enumerate(("cat", "dog", "eel")):
            (base / part / name).mkdir(parents=True)
            for number in range(count):
                pixels(label, number).save(base / part / name / f"{number}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("images")
    write_folder(base)
    return base


def load(name: str | Path, **options: Any) -> Dataset:
    return load_dataset(DataConfig(name=str(name), **{"memory": 0.0, "workers": 0, **options}))


def make_batches(data: Dataset, **options: Any) -> Batches:
    settings = {"batch_size": 4, "pad": 2, "flip": True, "seed": 3, **options}
    return Batches(data.train, data.preprocessing, **settings)


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("inputs", "target", "indices"))


def check_same(batches: Batches, others: Batches, epoch: int, first: int = 0) -> None:
    pairs = list(zip(batches.epoch(epoch, first), others.epoch(epoch, first), strict=True))
    assert len(pairs) == batches.steps - first
    assert all(same(one, other) for one, other in pairs)


def test_stored_images_make_the_batches_of_those_in_memory(folder: Path) -> None:
    stored, kept = load(folder), load(folder, memory=2.0)
    assert not stored.train.in_memory
    assert kept.train.in_memory
    assert stored.summary == {**kept.summary, "read": "as needed"}
    assert (stored.size, stored.channels) == ((13, 11), 3)
    check_same(make_batches(stored), make_batches(kept), 4)
    for part in ("validation", "test"):
        one, other = getattr(stored, part), getattr(kept, part)
        assert torch.equal(one.pixels(slice(None)), other.images)
        scored = [list(Batches(each, kept.preprocessing, batch_size=4, pad=2, flip=True, seed=0).in_order())
                  for each in (one, other)]  # fmt: skip
        for (mine, images, labels), (theirs, others, right) in zip(*scored, strict=True):
            assert mine == theirs
            assert torch.equal(images, others)
            assert torch.equal(labels, right)
    with pytest.raises(TypeError, match="not in memory"):
        _ = stored.train.images


def test_what_fits_stays_in_memory(folder: Path) -> None:
    size = 36 * 3 * 13 * 11 / 2**30
    assert load(folder, memory=size).train.in_memory
    assert not load(folder, memory=size * 0.99).train.in_memory
    assert not load(folder, memory=size, resize=14).train.in_memory


VIEWS: dict[str, Any] = {"crop": 8, "randaugment": (2, 9)}


@pytest.mark.parametrize("options", [VIEWS, {}])
def test_workers_change_nothing(folder: Path, options: dict[str, Any]) -> None:
    """Nor does where an epoch is gone on with, or what was drawn before."""
    alone = make_batches(load(folder, **options), pad=0)
    other = make_batches(load(folder, **options, workers=2), pad=0)
    check_same(alone, other, 0)
    torch.rand(5)
    for epoch, first in ((1, 3), (1, 0), (0, 5)):
        check_same(alone, other, epoch, first)
    state = torch.get_rng_state()
    next(alone.epoch(0))
    next(other.epoch(0))  # which is left
    assert torch.equal(torch.get_rng_state(), state)
    check_same(alone, other, 0)


def test_workers_do_not_run_the_users_script_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may call `distill` outside of `if __name__ == "__main__":`, or be read from a pipe."""
    script, again = tmp_path / "script.py", tmp_path / "again"
    script.write_text(f"open({str(again)!r}, 'w').close()\n", encoding="utf-8")
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.setattr(main, "__file__", str(script), raising=False)
    check_same(make_batches(load(folder, workers=1)), make_batches(load(folder)), 0)
    assert not again.exists()
    assert sys.modules["__main__"] is main


def test_the_parts_of_the_ranks_are_the_batches_of_one(folder: Path) -> None:
    data = load(folder, **VIEWS)
    mixing = Mixing(3, mixup=0.4, cutmix=1.0)
    whole = make_batches(data, batch_size=7, mixing=mixing)
    parts = [make_batches(data, batch_size=7, mixing=mixing, ranks=Ranks(rank, 2)) for rank in range(2)]
    for one, *each in zip(*(batches.epoch(2, 1) for batches in (whole, *parts)), strict=True):
        assert torch.equal(one.inputs, torch.cat([part.inputs for part in each]))
        assert torch.equal(one.target, torch.cat([part.target for part in each]))


def test_views_differ_by_epoch_and_sample_and_fixed_ones_do_not(folder: Path) -> None:
    data = load(folder, **VIEWS)

    def by_sample(epoch: int, **options: Any) -> Tensor:
        batches = list(make_batches(data, batch_size=7, pad=0, flip=False, **options).epoch(epoch))
        return torch.cat([each.inputs for each in batches])[torch.cat([each.indices for each in batches]).argsort()]

    assert not torch.equal(by_sample(0), by_sample(1))
    assert not torch.equal(by_sample(0), by_sample(0, seed=4))
    assert torch.equal(by_sample(0, views=2), by_sample(2, views=2, seed=5))
    assert not torch.equal(by_sample(0, views=2), by_sample(1, views=2))
    fixed = make_batches(data, pad=0, flip=False, views=2)
    assert torch.equal(torch.cat(list(fixed.in_view(1, range(2, 9)))), by_sample(1, views=2)[2:9])


def test_the_middle_is_scored(folder: Path) -> None:
    data = load(folder, crop=8, resize=11)
    assert data.size == (8, 8)
    # The shorter side has 11 already; the middle of an odd number may be either.
    found, image = data.test.pixels(torch.tensor([0]))[0].numpy().transpose(1, 2, 0), np.asarray(pixels(0, 0))
    assert any(np.array_equal(found, image[y : y + 8, x : x + 8]) for y in (2, 3) for x in (1, 2))


def test_named_data_is_looked_at_at_random_too() -> None:
    data = load("digits", crop=6, limit=60, limit_test=20, validation=0.2)
    assert data.size == (6, 6)
    assert data.channels == 1
    assert {batch.inputs.shape for batch in make_batches(data, batch_size=16, pad=0).epoch(0)} == {(16, 1, 6, 6)}
    with pytest.raises(ConfigError, match=r"--randaugment: got images with values up to 16, accepted: such up to 255"):
        load("digits", randaugment=(1, 5))


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_the_run_or_is_replaced(tmp_path: Path, workers: int) -> None:
    write_folder(tmp_path)
    damaged = tmp_path / "train/dog/3.png"
    damaged.write_bytes(damaged.read_bytes()[:70])
    with pytest.raises(DataError, match=r"--data: train/dog/3\.png: cannot be read: .*; mend or remove it, or"):
        list(make_batches(load(tmp_path, workers=workers)).epoch(0))
    data = load(tmp_path, workers=workers, skip_unreadable=True)
    found = list(make_batches(data, batch_size=7, pad=0, flip=False).epoch(0))
    indices = torch.cat([batch.indices for batch in found])
    missing = 7 + 3
    assert indices.sort().values.tolist() == sorted([*range(missing), *range(missing + 1, 21), missing + 1])
    assert torch.equal(torch.cat([batch.target for batch in found]), data.train.labels[indices])
    stored = data.train.kept
    assert isinstance(stored, StoredImages)
    assert list(stored.storage.unreadable) == ["train/dog/3.png"]


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    pixels(0, 0, (12, 11)).save(tmp_path / "train/eel/5.png")
    for skip in (False, True):
        with pytest.raises(DataError, match=r"train/eel/5\.png: is \(12, 11\), others are \(13, 11\); give --resize"):
            list(make_batches(load(tmp_path, skip_unreadable=skip), batch_size=7).epoch(0))


def workers_of(data: Dataset) -> list[int]:
    assert isinstance(data.train.kept, StoredImages)
    loader: Any = data.train.kept.storage.readers._loader
    return [worker.pid for worker in loader._iterator._workers]


def test_a_worker_that_dies_ends_the_epoch(folder: Path) -> None:
    data = load(folder, workers=1)
    epoch = make_batches(data, batch_size=2).epoch(0)
    next(epoch)
    (worker,) = workers_of(data)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a terminal; the run answers them
        os.kill(worker, number)
    next(epoch)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(DataError, match=r"--workers: a process that reads images ended unexpectedly"):
        list(epoch)
    check_same(make_batches(data), make_batches(load(folder)), 1)  # others take its place


class Stumbling:
    """Images that the system does not let be read."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Image.Image:
        raise self._error

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return ""


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_what_is_no_fault_of_the_image_is_not_left_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Storage.open([Stumbling(error)], Views(), (3, 2, 2), workers=0, replaces=True).images(0)
    split = Split(stored, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(type(error)):
        split.pixels(slice(None))

    def stumble(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", stumble)
    with pytest.raises(type(error)):
        decode("x.png")


def test_a_worker_says_what_could_not_be_opened() -> None:
    source = Stumbling(OSError(24, "Too many open files"))
    stored = Storage.open([source], Views(), (3, 2, 2), workers=1, replaces=True).images(0)
    batches = Batches(Split(stored, torch.zeros(4, dtype=torch.int64)), PHOTOGRAPHS, batch_size=2, pad=0, flip=False,
                      seed=0)  # fmt: skip
    with pytest.raises(DataError, match=r"--data: an image cannot be opened: OSError: .*Too many open files"):
        list(batches.epoch(0))


def test_what_is_no_image_says_so_in_the_same_words_each_time() -> None:
    with pytest.raises(ValueError, match=r"^no image that Pillow knows$"):
        decode(io.BytesIO(b"text"))
