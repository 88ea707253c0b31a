"""A batch in parts, whose gradients add up to one step: for networks of which only a part fits into memory."""

from __future__ import annotations

from torch import Tensor

from cid.train.data import Batch
from cid.train.ranks import FEWEST, Ranks


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` parts of about one size: fewer where a part would be too small for batch normalisation.

    The share of each is such that the sum of `share` times a mean over its samples is that over the batch.
    """
    samples = len(batch.target)
    count = min(count, samples // FEWEST)
    if count <= 1:
        return [batch]
    return [_part(batch, Ranks(number, count).part(samples)) for number in range(count)]


def _part(batch: Batch, part: slice) -> Batch:
    def cut(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[part]

    teacher = batch.teacher and (batch.teacher[0][part], batch.teacher[1][part])
    target = batch.target[part]
    return Batch(
        batch.inputs[part],
        target,
        batch.indices[part],
        teacher,
        cut(batch.weight),
        cut(batch.logit_adjustment),
        batch.share * len(target) / len(batch.target),
    )
