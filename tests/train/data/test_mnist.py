from functools import partial
from pathlib import Path

import pytest
import torch

from cid.train.data import load_dataset
from cid.train.data.bias import COLOURS
from cid.train.data.mnist import JITTER
from tests.train import fakes
from tests.train.data.reading import Damage, Write, check_damage, check_images, config, damage_size, damage_start

PLAIN: Write = partial(fakes.mnist, gzipped=False)
GZIPPED: Write = partial(fakes.mnist, gzipped=True)


@pytest.mark.parametrize("write", [PLAIN, GZIPPED], ids=["mnist", "mnist gzipped"])
def test_reads_every_image_with_its_label(tmp_path: Path, write: Write) -> None:
    check_images(tmp_path, "mnist", write, (1, 28, 28))


@pytest.mark.parametrize(
    ("write", "file", "damage", "message"),
    [
        (PLAIN, "MNIST/raw/train-images-idx3-ubyte", damage_size, "its header says"),
        (PLAIN, "MNIST/raw/train-images-idx3-ubyte", damage_start, "no IDX file"),
        (GZIPPED, "MNIST/raw/train-labels-idx1-ubyte.gz", damage_size, "cannot be read"),
        (GZIPPED, "MNIST/raw/train-labels-idx1-ubyte.gz", damage_start, "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, write: Write, file: str, damage: Damage, message: str) -> None:
    check_damage(tmp_path, "mnist", write, file, damage, message)


def test_colored_mnist_has_its_strokes_in_the_colour_of_the_group(tmp_path: Path) -> None:
    images, _ = GZIPPED(tmp_path)
    dataset = load_dataset(config("colored-mnist", tmp_path, rho=1.0))
    assert dataset.train.images.shape[1:] == (3, 28, 28)
    unbiased = dataset.tests["unbiased"]
    palette = torch.tensor(list(COLOURS.values()))
    assert unbiased.groups is not None
    assert (unbiased.groups != unbiased.labels).any()
    for split, colours in ((dataset.test, dataset.test.labels), (unbiased, unbiased.groups)):
        expected = torch.from_numpy(images).double()[:, None] * palette[colours, :, None, None]
        # A colour is six deviations off at most, and rounded, as their product is.
        torch.testing.assert_close(split.images.double(), expected, rtol=0, atol=255 * 6 * JITTER + 1)
    again = load_dataset(config("colored-mnist", tmp_path, rho=1.0))
    assert torch.equal(again.train.images, dataset.train.images)
    other = load_dataset(config("colored-mnist", tmp_path, rho=1.0, data_seed=1))
    assert not torch.equal(other.train.images, dataset.train.images)
