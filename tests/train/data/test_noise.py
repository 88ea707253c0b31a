import torch

from cid.train.data import Split
from cid.train.data.noise import with_wrong_labels
from tests import draws


def test_a_share_of_the_labels_is_drawn_from_all_classes() -> None:
    split = Split(torch.zeros(1000, 1, 1, 1, dtype=torch.uint8), torch.full((1000,), 2))
    noisy = with_wrong_labels(split, 0.3, 5, (draws.SHIFT,))
    wrong = int((noisy.labels != 2).sum())
    assert wrong < 300  # some are drawn right
    assert abs(wrong - 240) < 6 * (300 * 0.8 * 0.2) ** 0.5
    assert set(noisy.labels.tolist()) == set(range(5))
    assert (split.labels == 2).all()
    assert noisy.images is split.images
    assert torch.equal(with_wrong_labels(split, 0.3, 5, (draws.SHIFT,)).labels, noisy.labels)
    assert not torch.equal(with_wrong_labels(split, 0.3, 5, (draws.SHIFT + 1,)).labels, noisy.labels)


def test_no_share_is_no_noise() -> None:
    split = Split(torch.zeros(9, 1, 1, 1, dtype=torch.uint8), torch.arange(9))
    assert torch.equal(with_wrong_labels(split, 0.0, 9, (0,)).labels, split.labels)
