import torch

from cid.train.data import load_dataset
from cid.train.data.bias import COLOURS
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


def test_coloured_digits_have_grounds_that_name_the_class() -> None:
    dataset = load_dataset(config("coloured-digits", rho=1.0))
    plain = load_dataset(config("digits"))
    assert dataset.train.images.shape[1:] == (3, 8, 8)
    assert len(dataset.train) == len(plain.train)
    assert torch.equal(dataset.train.labels, plain.train.labels)
    grounds = 0.6 * torch.tensor(list(COLOURS.values()))
    unbiased = dataset.tests["unbiased"]
    assert torch.equal(unbiased.labels, dataset.test.labels)
    for split, colours in ((dataset.test, dataset.test.labels), (unbiased, unbiased.groups)):
        assert colours is not None
        # The first and the last column have next to no ink: there the mean is the ground's, but for the cut-off noise.
        edges = split.images[..., [0, 7]].float().div(255).mean((2, 3))
        nearest = torch.cdist(edges, grounds).argmin(1)
        assert int((nearest == colours).sum()) > 0.9 * len(split)
    assert dataset.groups == tuple(COLOURS)


def test_coloured_digits_are_normalised() -> None:
    dataset = load_dataset(config("coloured-digits", rho=0.9))
    preprocessing = dataset.preprocessing
    pixels = dataset.train.images.double() / preprocessing.scale
    for found, fixed in ((pixels.mean((0, 2, 3)), preprocessing.mean), (pixels.std((0, 2, 3)), preprocessing.std)):
        torch.testing.assert_close(found, torch.tensor(fixed).double(), rtol=0, atol=0.02)


def test_without_bias_grounds_are_drawn_from_all() -> None:
    train = load_dataset(config("coloured-digits", rho=0.0)).train
    assert train.groups is not None
    aligned = int((train.groups == train.labels).sum())
    assert abs(aligned - 0.1 * len(train)) < 6 * (0.09 * len(train)) ** 0.5


def test_the_data_seed_draws_the_coloured_digits() -> None:
    one, again, other = (load_dataset(config("coloured-digits", rho=0.9, data_seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one.train.images, again.train.images)
    assert torch.equal(one.tests["unbiased"].images, again.tests["unbiased"].images)
    assert not torch.equal(one.train.images, other.train.images)
    assert torch.equal(one.train.labels, other.train.labels)
