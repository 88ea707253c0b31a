"""Data sets as tensors in memory, and batches of them, augmented on the device."""

from cid.train.data.batches import (
    READERS,
    SCORED_PLACES,
    Batch,
    Batches,
    Dataset,
    Normalize,
    Preprocessing,
    Split,
    load_dataset,
    mix_seed,
    shift_and_flip,
)

__all__ = [
    "READERS",
    "SCORED_PLACES",
    "Batch",
    "Batches",
    "Dataset",
    "Normalize",
    "Preprocessing",
    "Split",
    "load_dataset",
    "mix_seed",
    "shift_and_flip",
]
