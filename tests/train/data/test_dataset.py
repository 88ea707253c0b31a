from pathlib import Path

import pytest
import torch

from cid._errors import DataError
from cid.train.data import load_dataset
from tests.train import fakes
from tests.train.data.reading import config


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    fakes.cifar10_binary(tmp_path)
    path = tmp_path / "cifar-10-batches-bin/test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(DataError, match="label 10"):
        load_dataset(config("cifar10", tmp_path))


def test_split_moves_to_a_device() -> None:
    dataset = load_dataset(config("digits"))
    moved = dataset.to(torch.device("meta"))
    for part in ("train", "validation", "test"):
        there, here = getattr(moved, part), getattr(dataset, part)
        assert there.images.is_meta
        assert there.labels.is_meta
        assert there.images.shape == here.images.shape
        assert not here.images.is_meta
