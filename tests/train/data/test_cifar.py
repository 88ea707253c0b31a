from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cid.train.data import load_dataset
from cid.train.data.bias import to_bytes
from cid.train.data.corruptions import CORRUPTIONS, contrast
from tests.train import fakes
from tests.train.data.reading import (
    Damage,
    Write,
    check_damage,
    check_images,
    config,
    damage_empty,
    damage_size,
    damage_start,
)

LAYOUTS: dict[str, tuple[str, Write]] = {
    "cifar10 binary": ("cifar10", fakes.cifar10_binary),
    "cifar10 pickle protocol 2": ("cifar10", partial(fakes.cifar10_pickled, protocol=2)),
    "cifar10 pickle protocol 4": ("cifar10", partial(fakes.cifar10_pickled, protocol=4)),
    "cifar10 pickle protocol 5": ("cifar10", partial(fakes.cifar10_pickled, protocol=5)),
    "cifar100 binary": ("cifar100", partial(fakes.cifar100, binary=True)),
    "cifar100 pickle": ("cifar100", partial(fakes.cifar100, binary=False)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_every_image_with_its_label(tmp_path: Path, layout: str) -> None:
    name, write = LAYOUTS[layout]
    check_images(tmp_path, name, write, (3, 32, 32))


def test_prefers_the_binary_version(tmp_path: Path) -> None:
    fakes.cifar10_binary(tmp_path)
    fakes.cifar10_pickled(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"never read")
    load_dataset(config("cifar10", tmp_path))


def test_half_a_binary_version_hides_no_python_version(tmp_path: Path) -> None:
    fakes.cifar10_pickled(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    (folder / "test_batch.bin").write_bytes(b"never read")
    assert len(load_dataset(config("cifar10", folder)).test) == 8


@pytest.mark.parametrize(
    ("write", "file", "damage", "message"),
    [
        (fakes.cifar10_binary, "cifar-10-batches-bin/data_batch_3.bin", damage_size, "multiple of 3073"),
        (fakes.cifar10_binary, "cifar-10-batches-bin/data_batch_3.bin", damage_empty, "multiple of 3073"),
        (fakes.cifar10_pickled, "cifar-10-batches-py/test_batch", damage_size, "no CIFAR batch"),
        (fakes.cifar10_pickled, "cifar-10-batches-py/test_batch", damage_start, "no CIFAR batch"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, write: Write, file: str, damage: Damage, message: str) -> None:
    check_damage(tmp_path, "cifar10", write, file, damage, message)


def test_corrupted_cifar10_has_the_corruption_of_the_class(tmp_path: Path) -> None:
    fakes.cifar10_binary(tmp_path)
    plain = load_dataset(config("cifar10", tmp_path))
    dataset = load_dataset(config("corrupted-cifar10", tmp_path, rho=1.0))
    assert dataset.groups == tuple(CORRUPTIONS)
    assert dataset.train.groups is not None
    assert torch.equal(dataset.train.groups, dataset.train.labels)
    assert torch.equal(dataset.train.labels, plain.train.labels)
    assert (dataset.train.images != plain.train.images).flatten(1).any(1).all()
    # The fourth goes with contrast, which draws nothing.
    chosen = plain.train.labels == 4
    expected = contrast(plain.train.images[chosen].div(255).numpy(), np.random.default_rng())
    assert torch.equal(dataset.train.images[chosen], torch.from_numpy(to_bytes(expected)))
    assert torch.equal(dataset.tests["unbiased"].labels, plain.test.labels)
    again = load_dataset(config("corrupted-cifar10", tmp_path, rho=1.0))
    assert torch.equal(again.train.images, dataset.train.images)
