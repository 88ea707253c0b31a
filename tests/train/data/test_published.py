from pathlib import Path

import pytest

from cid._errors import DataError
from cid.train.data import load_dataset
from tests.train import fakes
from tests.train.data.reading import config


def test_takes_the_folder_of_the_files_itself(tmp_path: Path) -> None:
    fakes.cifar10_binary(tmp_path)
    assert len(load_dataset(config("cifar10", tmp_path / "cifar-10-batches-bin")).test) == 8


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
