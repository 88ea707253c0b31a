"""A batch in parts, whose gradients add up to one step: for networks of which only a part fits into memory."""

from __future__ import annotations

from torch import Tensor

from cid.train.data import Batch
from cid.train.ranks import ALONE, FEWEST, Ranks


def micro_batches(batch: Batch, count: int, ranks: Ranks = ALONE) -> list[tuple[Batch, float]]:
    """The batch in `count` parts of about one size, and of each how much it is of the whole batch, of all ranks.

    They are fewer where a part would be too small for batch normalisation, on any rank: all have as many. The share of
    each is such that the sum of `share` times a mean over its samples, in the mean over the ranks, is that over the
    batch.
    """
    samples = len(batch.target)
    whole = round(ranks.size * samples / batch.share)
    sizes = [_length(Ranks(rank, ranks.size).part(whole)) for rank in range(ranks.size)] if count > 1 else [samples]
    count = min(count, min(sizes) // FEWEST)
    if count <= 1:
        return [(batch, 1.0)]
    numbers = [Ranks(number, count) for number in range(count)]
    return [
        (_part(batch, number.part(samples)), sum(_length(number.part(size)) for size in sizes) / whole)
        for number in numbers
    ]


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length


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
