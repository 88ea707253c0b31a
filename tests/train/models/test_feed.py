"""What a network does with a data set's inputs before it reads them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from cid._errors import ConfigError
from cid.train.data import Normalize, Preprocessing
from cid.train.models import InputSpec, build_model
from cid.train.models.feed import Feed, attach, feed_of
from cid.train.models.spec import Native
from tests import draws

GIVEN = Preprocessing(255.0, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
NATIVE = Native(3, (6, 9), (0.5, 0.4, 0.3), (0.1, 0.3, 0.5))


@pytest.mark.parametrize("size", [(6, 9), (12, 18), (3, 5)])
def test_it_is_as_if_images_were_normalised_so(size: tuple[int, int]) -> None:
    images = draws.uniform(2, 3, 6, 9)
    network = attach(nn.Identity(), Feed.between(GIVEN, NATIVE, size))
    expected = Normalize(Preprocessing(1.0, (0.5, 0.4, 0.3), (0.1, 0.3, 0.5)))(images)
    if size != (6, 9):
        expected = interpolate(expected, size, mode="bilinear", antialias=size < (6, 9))
    torch.testing.assert_close(network(Normalize(GIVEN)(images)), expected)


def test_grey_goes_to_all_channels() -> None:
    grey, images = Preprocessing(16.0, (0.3,), (0.5,)), draws.uniform(2, 1, 6, 9)
    network = attach(nn.Identity(), Feed.between(grey, NATIVE, (6, 9)))
    expected = Normalize(Preprocessing(1.0, (0.5, 0.4, 0.3), (0.1, 0.3, 0.5)))(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(network(Normalize(grey)(images)), expected)


def test_of_the_same_normalisation_it_leaves_every_bit() -> None:
    spec = InputSpec(3, (6, 9), 5)
    feed = Feed.plain(3, (6, 9))
    assert feed.after(GIVEN, GIVEN) == feed
    assert not feed.changes(spec)
    assert Feed.between(GIVEN, Native(3, (6, 9)), (6, 9)) == feed


def test_a_copy_has_it_and_the_weights_keep_their_names() -> None:
    model = build_model("cnn-2", InputSpec(3, (8, 8), 4))
    names = list(model.state_dict())
    fed = build_model("cnn-2", InputSpec(3, (8, 8), 4), size=16)
    assert list(fed.state_dict()) == names
    assert feed_of(model) is None
    assert feed_of(nn.Sequential(copy.deepcopy(fed))) == Feed.plain(3, (16, 16))
    first: list[torch.Size] = []
    next(fed.children()).register_forward_pre_hook(lambda _, args: first.append(args[0].shape))
    fed(torch.zeros(2, 3, 8, 8))
    assert first == [(2, 3, 16, 16)]


def test_a_model_that_takes_one_size_brings_images_to_it() -> None:
    pytest.importorskip("torchvision")
    network = build_model("torchvision:vit_b_32", InputSpec(1, (32, 32), 4))
    assert feed_of(network) == Feed.plain(3, (224, 224))
    with pytest.raises(ConfigError, match=r"'torchvision:vit_b_32' takes no images of 32 x 32; others are given by"):
        build_model("torchvision:vit_b_32", InputSpec(1, (32, 32), 4), size=32)
    with pytest.raises(ConfigError, match="reads 3 channels, and images here have 4"):
        build_model("torchvision:vit_b_32", InputSpec(4, (32, 32), 4))
