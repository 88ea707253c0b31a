import torch

from cid.train.data import load_dataset
from cid.train.data.digits import SCORED_PLACES
from tests.train.data.reading import config


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
