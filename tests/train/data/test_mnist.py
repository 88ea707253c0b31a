from functools import partial
from pathlib import Path

import pytest

from tests.train import fakes
from tests.train.data.reading import Damage, Write, check_damage, check_images, damage_size, damage_start

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
