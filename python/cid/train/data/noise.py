"""Labels that are wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cid.train.data.images import Split


def with_wrong_labels(split: Split, share: float, classes: int, seed: tuple[int, ...]) -> Split:
    """The split with `share` of its labels replaced by a class drawn at random from all, the right one included."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(split))[: round(share * len(split))]
    labels = split.labels.clone()
    labels[torch.from_numpy(chosen)] = torch.from_numpy(rng.integers(0, classes, len(chosen)))
    return replace(split, labels=labels)
