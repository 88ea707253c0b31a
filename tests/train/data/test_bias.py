import math

import numpy as np
import pytest
import torch

from cid.train.data.bias import draw_contexts, to_bytes, with_context
from cid.train.data.dataset import RawData
from cid.train.data.images import Bytes, Preprocessing, Split
from tests import draws

COUNT = 20_000


@pytest.mark.parametrize("aligned", [0.0, 0.1, 0.9, 1.0])
def test_contexts_are_the_class_s_with_that_probability_and_else_any_other(aligned: float) -> None:
    labels = np.arange(COUNT) % 10
    contexts = draw_contexts(labels, 10, aligned, np.random.default_rng(draws.SHIFT))
    away = (contexts - labels) % 10
    for step, share in enumerate([aligned, *[(1 - aligned) / 9] * 9]):
        # Six standard deviations: one draw in 10^9 is further off.
        assert abs((away == step).mean() - share) <= 6 * math.sqrt(share * (1 - share) / COUNT)


def filled(images: Bytes, contexts: np.ndarray, rng: np.random.Generator) -> Bytes:
    return np.broadcast_to(contexts[:, None, None, None], images.shape).astype(np.uint8)


def raw(train: int) -> RawData:
    def split(count: int) -> Split:
        return Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.arange(count) % 3)

    return RawData(split(train), split(40), ("a", "b", "c"), Preprocessing(255.0, (0.5,), (0.5,)))


def test_training_and_test_are_biased_alike_and_a_further_test_is_not() -> None:
    data = with_context(raw(90), filled, ("x", "y", "z"), aligned=1.0, seed=draws.SHIFT)
    assert data.groups == ("x", "y", "z")
    unbiased = data.tests["unbiased"]
    for split in (data.train, data.test):
        assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels)
    assert data.test.groups is None
    assert data.train.groups is not None
    assert torch.equal(data.train.groups, data.train.labels)
    assert unbiased.groups is not None
    assert torch.equal(unbiased.images[:, 0, 0, 0].long(), unbiased.groups)
    assert torch.equal(unbiased.labels, data.test.labels)
    assert not torch.equal(unbiased.groups, unbiased.labels)


def test_what_is_drawn_is_a_function_of_the_seed_and_of_the_part() -> None:
    def drawn(train: int, seed: int) -> RawData:
        return with_context(raw(train), filled, ("x", "y", "z"), aligned=0.5, seed=seed)

    one = drawn(90, 0)
    assert torch.equal(one.train.images, drawn(90, 0).train.images)
    assert torch.equal(one.test.images, drawn(60, 0).test.images)
    assert not torch.equal(one.train.images, drawn(90, 1).train.images)


def test_values_beyond_the_range_of_bytes_are_cut_off() -> None:
    assert to_bytes(np.array([-0.1, 0.0, 0.5, 1.0, 1.1])).tolist() == [0, 0, 128, 255, 255]
