"""The samples of a batch by class, found on the device: what the class term and the context sums share."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton.rows import launch

_TILE = 128


class Groups(NamedTuple):
    """The samples of a batch sorted by label, those of one class in their own order; all of shape (B,) but `pairs`."""

    label: Tensor
    """The label at each place, int64."""
    order: Tensor
    """The sample at each place, int64."""
    start: Tensor
    """The first place of its class, int32."""
    end: Tensor
    """The place after its last; that of `start`, the place itself, where the sample is in no class."""
    pairs: Tensor
    """Counts, int32, whose sum is the number of classes with two samples or more."""


def group(target: Tensor, ignore_index: int) -> Groups:
    """Group samples by label; one that is negative or `ignore_index` is in no class.

    Args:
        target: Labels, (B,), int64, of any size.
        ignore_index: Label of the samples that have none.
    """
    samples = len(target)
    label, order = torch.sort(target, stable=True)
    # Two tensors and not one, in which where the second begins, and so what is compiled, would depend on B.
    start, end = (torch.empty_like(target, dtype=torch.int32) for _ in range(2))
    tiles = triton.cdiv(samples, _TILE)
    pairs = target.new_empty(tiles, dtype=torch.int32)
    if tiles:
        launch(
            _bounds_kernel,
            (tiles,),
            label,
            start,
            end,
            pairs,
            samples,
            samples.bit_length(),
            ignore_index,
            TILE=_TILE,
        )
    return Groups(label, order, start, end, pairs)


@triton.jit(do_not_specialize=["samples", "steps", "ignore_index"])
def _bounds_kernel(label_ptr, start_ptr, end_ptr, pairs_ptr, samples, steps, ignore_index, TILE: tl.constexpr):
    place = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = place < samples
    label = tl.load(label_ptr + place, mask=inside, other=-1)
    in_class = (label >= 0) & (label != ignore_index)
    start = tl.where(in_class, _search(label_ptr, label, samples, steps, AFTER=False), place)
    end = tl.where(in_class, _search(label_ptr, label, samples, steps, AFTER=True), place)
    tl.store(start_ptr + place, start, mask=inside)
    tl.store(end_ptr + place, end, mask=inside)
    tl.store(pairs_ptr + tl.program_id(0), tl.sum(((start == place) & (end - start > 1)).to(tl.int32), 0))


@triton.jit
def _search(label_ptr, label, samples, steps, AFTER: tl.constexpr):
    """The number of labels that are less than each of `label`, or, with `AFTER`, no greater."""
    low = tl.zeros_like(label).to(tl.int32)
    high = low + samples
    for _ in range(steps):
        middle = (low + high) // 2
        there = tl.load(label_ptr + middle, mask=low < high, other=0)
        if AFTER:
            before = there <= label
        else:
            before = there < label
        before &= low < high
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
def count_classes(pairs_ptr, tiles, BLOCK: tl.constexpr):
    """The number of classes with two samples or more, at least 1 as it divides."""
    counts = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, tiles, BLOCK):
        at = first + tl.arange(0, BLOCK)
        counts += tl.load(pairs_ptr + at, mask=at < tiles, other=0)
    return tl.maximum(tl.sum(counts, 0), 1)
