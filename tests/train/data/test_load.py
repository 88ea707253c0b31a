from pathlib import Path

import pytest
import torch

from cid._errors import ConfigError
from cid.train.data import load_dataset
from cid.train.sections import DataConfig
from tests.train import fakes
from tests.train.data.reading import config


def test_a_split_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="--validation"):
        load_dataset(config("digits", limit=2))


@pytest.mark.parametrize(
    ("name", "rho", "message"),
    [
        ("digits", 0.9, r"--rho: got 0\.9, accepted: none, but for coloured-digits"),
        ("coloured-digits", None, "--rho: got None, accepted: a number from 0 to 1"),
    ],
)
def test_a_bias_goes_with_the_data_sets_that_have_one(name: str, rho: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset(config(name, rho=rho))


def test_wrong_labels_are_drawn_before_the_split_and_never_for_a_test() -> None:
    right = load_dataset(config("coloured-digits", rho=0.9))
    noisy = load_dataset(config("coloured-digits", rho=0.9, label_noise=0.5))
    assert "wrong_labels" not in right.summary
    for split in ("train", "validation"):
        one, other = getattr(right, split), getattr(noisy, split)
        assert torch.equal(one.images, other.images)
        assert noisy.summary["wrong_labels"][split] == int((one.labels != other.labels).sum()) > 0
    for split, same in right.every_test.items():
        assert torch.equal(noisy.every_test[split].labels, same.labels)
    # Whatever the split, the same images have wrong labels.
    other = load_dataset(config("coloured-digits", rho=0.9, label_noise=0.5, split_seed=1))
    assert sum(other.summary["wrong_labels"].values()) == sum(noisy.summary["wrong_labels"].values())


def test_validation_images_of_their_own_get_wrong_labels_too(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path, {"train": 20, "val": 20, "test": 20})
    dataset = load_dataset(DataConfig(name=str(tmp_path), label_noise=1.0))
    wrong = dataset.summary["wrong_labels"]
    assert wrong.keys() == {"train", "validation"}
    for split, count in wrong.items():
        labels = getattr(dataset, split).labels
        assert int((labels != torch.arange(2).repeat_interleave(20)).sum()) == count > 0


def test_further_tests_are_limited_and_told_of() -> None:
    dataset = load_dataset(config("coloured-digits", rho=0.9, limit_test=7))
    assert len(dataset.tests["unbiased"]) == 7
    assert dataset.summary["tests"] == {"unbiased": {"images": 7, "from": "test"}}


def test_some_classes_alone() -> None:
    data = load_dataset(config("coloured-digits", rho=0.9, classes=("7", "2", "3")))
    assert data.classes == ("2", "3", "7")
    assert data.summary["classes"] == ["2", "3", "7"]
    for split in (data.train, data.validation, *data.every_test.values()):
        assert set(split.labels.tolist()) == {0, 1, 2}
    # A wrong label is one of these, too.
    noisy = load_dataset(config("digits", classes=("0", "1"), label_noise=1.0))
    assert set(noisy.train.labels.tolist()) == {0, 1}


@pytest.mark.parametrize("names", [("1",), ("1", "1"), ("1", "one")])
def test_classes_that_are_not_there(names: tuple[str, ...]) -> None:
    with pytest.raises(
        ConfigError, match=f"--classes: got {' '.join(names)}, accepted: two or more, each once, of 0, 1"
    ):
        load_dataset(config("digits", classes=names))
