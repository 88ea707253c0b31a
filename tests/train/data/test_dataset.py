from pathlib import Path

import pytest
import torch

from cid._errors import DataError
from cid.train.data import Preprocessing, Split, load_dataset
from cid.train.data.dataset import RawData
from tests.train import fakes
from tests.train.data.reading import config


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    fakes.cifar10_binary(tmp_path)
    path = tmp_path / "cifar-10-batches-bin/test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(DataError, match="label 10"):
        load_dataset(config("cifar10", tmp_path))


def test_a_further_test_is_checked_as_the_others() -> None:
    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3))
    classes, preprocessing = ("a", "b", "c"), Preprocessing(255.0, (0.5,), (0.5,))
    wrong = Split(split.images, split.labels + 1)
    with pytest.raises(DataError, match="the unbiased part has the label 3, but there are 3 classes"):
        RawData(split, split, classes, preprocessing, tests={"unbiased": wrong})
    with pytest.raises(DataError, match="the validation part has no images"):
        RawData(split, split, classes, preprocessing, validation=split.take(torch.arange(0)))
    with pytest.raises(DataError, match="the unbiased part has no images"):
        RawData(split, split, classes, preprocessing, tests={"unbiased": split.take(torch.arange(0))})


def test_the_images_of_some_classes() -> None:
    images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1)
    split = Split(images, torch.tensor([2, 0, 1, 3, 0, 2, 1]), torch.arange(7))
    data = RawData(split, split, tuple("abcd"), Preprocessing(255.0, (0.5,), (0.5,)), tests={"other": split})
    some = data.of_classes(("c", "a"))
    assert some.classes == ("a", "c")
    for part in (some.train, some.test, some.tests["other"]):
        assert part.images.flatten().tolist() == [0, 1, 4, 5]
        assert part.labels.tolist() == [1, 0, 0, 1]
        assert part.groups is not None
        assert part.groups.tolist() == [0, 1, 4, 5]


def test_splits_move_to_a_device() -> None:
    dataset = load_dataset(config("coloured-digits", rho=0.9))
    moved = dataset.to(torch.device("meta"))
    assert moved.tests["unbiased"].groups is not None
    assert moved.tests["unbiased"].groups.is_meta
    for part in ("train", "validation", "test", "unbiased"):
        there, here = ({**vars(data), **data.tests}[part] for data in (moved, dataset))
        assert there.images.is_meta
        assert there.labels.is_meta
        assert there.images.shape == here.images.shape
        assert not here.images.is_meta
