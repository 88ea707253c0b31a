"""Scikit-learn's digits: they come with the package, and a run of them takes seconds."""

from __future__ import annotations

import numpy as np
import torch

from cid.train.data.augmentation import shift_and_flip
from cid.train.data.dataset import RawData
from cid.train.data.images import Preprocessing, Split
from cid.train.data.seeds import mix_seed
from cid.train.sections import DataConfig

TEST_PART = 1 / 3
MARGIN = 2
SCORED_PLACES = 4


def read_digits(config: DataConfig) -> RawData:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8, each on a canvas of 12 x 12; a fixed third is for the test.

    The images that are scored lie anywhere on their canvas, at four places each, so that a network has to ignore the
    place; training images lie in the middle, and the augmentation moves them.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    margin = (MARGIN, MARGIN)
    images = np.pad(digits.images.astype(np.uint8), ((0, 0), margin, margin))[:, None]
    everything = Split.from_numpy(images, digits.target)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(mix_seed(len(everything))))
    held_out = round(TEST_PART * len(order))
    return RawData(
        train=everything.take(order[held_out:]),
        test=everything.take(order[:held_out]),
        classes=tuple(map(str, range(10))),
        preprocessing=Preprocessing(scale=16.0, mean=(0.136,), std=(0.293,)),
        scored=_at_several_places,
    )


def _at_several_places(split: Split, generator: torch.Generator) -> Split:
    """The split with each image at `SCORED_PLACES` places of its canvas."""
    split = split.take(torch.arange(len(split)).repeat_interleave(SCORED_PLACES))
    rows, columns = torch.randint(2 * MARGIN + 1, (2, len(split)), generator=generator)
    still = torch.zeros(len(split), dtype=torch.bool)
    return Split(shift_and_flip(split.images, MARGIN, rows, columns, still), split.labels)
