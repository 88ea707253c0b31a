"""Data sets with a bias of known strength: a context in each image that, in training, goes with its class.

What learns from the training part can take the context for the class. How much it did shows in the test `unbiased`,
where contexts are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from cid.train.data.dataset import RawData
from cid.train.data.images import Bytes, Split

Indices = NDArray[np.int64]
# One for each of ten classes.
COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "magenta": (1.0, 0.0, 1.0),
    "cyan": (0.0, 1.0, 1.0),
    "orange": (1.0, 0.5, 0.0),
    "violet": (0.5, 0.0, 1.0),
    "teal": (0.0, 0.5, 0.5),
    "grey": (0.6, 0.6, 0.6),
}
# Images (N, channels, H, W), the context of each (N,) and a source of random numbers, to images with these contexts.
Render = Callable[[Bytes, Indices, np.random.Generator], Bytes]


def with_context(raw: RawData, render: Render, contexts: tuple[str, ...], *, aligned: float, seed: int) -> RawData:
    """The data set with a context in each image, and the further test `unbiased`.

    Training and test images have the context of their class with probability `aligned`, else one of the others, each
    as likely; those of `unbiased` each context alike. The groups of the training part and of `unbiased` are the
    contexts; the biased test has none, as its groups would be little more than its classes.

    Args:
        raw: the data set without.
        render: puts contexts into images.
        contexts: their names, one for each class.
        aligned: the share of images whose context is that of their class.
        seed: of all that is drawn.
    """

    def drawn(split: Split, part: int, aligned: float) -> Split:
        rng = np.random.default_rng((seed, part))  # of the part, so that none depends on the size of another
        groups = draw_contexts(split.labels.numpy(), len(contexts), aligned, rng)
        images = render(split.images.numpy(), groups, rng)
        return Split(torch.from_numpy(images), split.labels, torch.from_numpy(groups))

    return replace(
        raw,
        train=drawn(raw.train, 0, aligned),
        test=replace(drawn(raw.test, 1, aligned), groups=None),
        tests={"unbiased": drawn(raw.test, 2, 1 / len(contexts))},
        groups=contexts,
    )


def draw_contexts(labels: Indices, count: int, aligned: float, rng: np.random.Generator) -> Indices:
    """A context for each label (N,): its own with probability `aligned`, else one of the `count - 1` others."""
    other = (labels + rng.integers(1, count, len(labels))) % count
    return np.where(rng.random(len(labels)) < aligned, labels, other)


def to_bytes(values: NDArray[np.floating]) -> Bytes:
    """Values of 0..1, what is beyond cut off, as bytes."""
    found: Bytes = np.rint(255 * values.clip(0, 1)).astype(np.uint8)
    return found
