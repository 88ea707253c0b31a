"""Scikit-learn's digits, plain and on coloured grounds: they come with the package, and a run of them takes seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from cid.train.data.augmentation import shift_and_flip
from cid.train.data.bias import COLOURS, Indices, to_bytes, with_context
from cid.train.data.dataset import RawData
from cid.train.data.images import Bytes, Preprocessing, Split
from cid.train.data.seeds import mix_seed
from cid.train.sections import DataConfig

TEST_PART = 1 / 3
MARGIN = 2
SCORED_PLACES = 4
SCALE = 16.0  # the digits' highest value

DIMMED = 0.6  # so that white shows on every ground
NOISE = 0.05  # standard deviation
COLOURED = Preprocessing(255.0, (0.52, 0.504, 0.52), (0.33, 0.327, 0.33))


def read_digits(config: DataConfig) -> RawData:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8, each on a canvas of 12 x 12; a fixed third is for the test.

    The images that are scored lie anywhere on their canvas, at four places each, so that a network has to ignore the
    place; training images lie in the middle, and the augmentation moves them.
    """
    raw = _read()
    return replace(
        raw,
        train=_on_canvas(raw.train),
        test=_on_canvas(raw.test),
        preprocessing=Preprocessing(scale=SCALE, mean=(0.136,), std=(0.293,)),
        scored=_at_several_places,
    )


def read_coloured_digits(config: DataConfig) -> RawData:
    """Scikit-learn's digits, 8 x 8, in white on coloured grounds, with noise; those of the test are those of `digits`.

    In the training part and in the test the ground has the class's colour with probability `--rho`, else one of all ten
    drawn at random; in the test `unbiased` the colour is always drawn so.
    """
    assert config.rho is not None
    raw = _read()
    aligned = config.rho + (1 - config.rho) / len(raw.classes)
    raw = with_context(raw, _on_grounds, tuple(COLOURS), aligned=aligned, seed=config.data_seed)
    return replace(raw, preprocessing=COLOURED)


def _read() -> RawData:
    """The digits, 8 x 8, values 0 to 16; a fixed third is for the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    everything = Split.from_numpy(digits.images.astype(np.uint8)[:, None], digits.target)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(mix_seed(len(everything))))
    held_out = round(TEST_PART * len(order))
    return RawData(
        train=everything.take(order[held_out:]),
        test=everything.take(order[:held_out]),
        classes=tuple(map(str, range(10))),
        preprocessing=Preprocessing(scale=SCALE, mean=(0.0,), std=(1.0,)),
    )


def _on_canvas(split: Split) -> Split:
    return replace(split, kept=nn.functional.pad(split.images, (MARGIN,) * 4))


def _on_grounds(images: Bytes, colours: Indices, rng: np.random.Generator) -> Bytes:
    """The digits in white, each on its ground, in three channels of bytes."""
    ink = images / SCALE
    ground = DIMMED * np.array(list(COLOURS.values()))[colours, :, None, None]
    noise = rng.normal(scale=NOISE, size=(len(images), 3, *images.shape[2:]))
    return to_bytes(ink + (1 - ink) * ground + noise)


def _at_several_places(split: Split, generator: torch.Generator) -> Split:
    """The split with each image at `SCORED_PLACES` places of its canvas."""
    split = split.take(torch.arange(len(split)).repeat_interleave(SCORED_PLACES))
    rows, columns = torch.randint(2 * MARGIN + 1, (2, len(split)), generator=generator)
    still = torch.zeros(len(split), dtype=torch.bool)
    return replace(split, kept=shift_and_flip(split.images, MARGIN, rows, columns, still))
