"""Batches of a split, augmented on the device.

Images stay bytes (uint8, channels first) until a batch is made of them: then they are cropped and flipped, scaled to
0..1 and normalised by fixed numbers of the data set, so that every network of a run, and a teacher of an earlier one,
sees the same inputs. What is random in an epoch is a function of (seed, epoch) alone: a resumed run draws it again, and
so does each of several ranks, which then takes its part of every batch.
With fixed views the augmentation is a function of (view seed, view, sample), and epoch e shows view e mod V: what a
teacher said of a view once is right in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cid.cache import TeacherCache
from cid.train.data.augmentation import Augmentation, shift_and_flip
from cid.train.data.images import Normalize, Preprocessing, Split
from cid.train.data.mixing import Mixing
from cid.train.data.seeds import mix_seed
from cid.train.ranks import ALONE, FEWEST, Ranks


@dataclass(frozen=True)
class EpochPlan:
    """Everything random about the batches of one epoch, drawn at once.

    Attributes:
        order: the samples, on the device of the images; on the CPU where these are stored.
        samples: the samples on the CPU, where a cache of the teacher's outputs is read.
        augmentation: of the samples in this order.
        seed: what else is random is drawn from, of each sample or step.
        view: which of the fixed views this is; None where views are not fixed.
    """

    order: Tensor
    samples: Tensor
    augmentation: Augmentation
    seed: tuple[int, ...]
    view: int | None


class Batch(NamedTuple):
    """What a method takes of some samples.

    Attributes:
        inputs: the network's input.
        target: the labels, int64; of mixed samples the share of each class, (B, C).
        indices: which samples of the split these are, int64, on the device of the inputs.
        teacher: the teacher's features and logits, if they are cached.
        weight: how often each sample counts, (B,), if the method asked for weights.
        logit_adjustment: what is to be added to the teacher's logits, (B, C), if the method asked for that.
        share: how often their mean counts in the mean of the ranks' means, which is that of the samples of all.
    """

    inputs: Tensor
    target: Tensor
    indices: Tensor
    teacher: tuple[Tensor, Tensor] | None = None
    weight: Tensor | None = None
    logit_adjustment: Tensor | None = None
    share: float = 1.0

    def adjusted(self, logits: Tensor) -> Tensor:
        """The teacher's logits, (B, C), as a method is to take them."""
        return logits if self.logit_adjustment is None else logits + self.logit_adjustment


class Batches:
    """Training batches of one split.

    A last batch of less than two samples a rank is left out (batch normalisation has no variance of one); one that is
    short otherwise is used.

    Args:
        split: the images, on the device that computes.
        preprocessing: how to feed a network.
        batch_size: samples in a batch, of all ranks.
        pad: padding of the random crop, 0 for none.
        flip: whether to mirror at random.
        seed: of the order and the augmentation.
        views: how many fixed views there are of each image; None draws new ones in each epoch.
        view_seed: of the fixed views.
        cache: the teacher's outputs on these views, which batches then have.
        weights: how often each sample of the split counts, (N,), which batches then have.
        logit_adjustments: what is to be added to the teacher's logits of each, (N, C), which batches then have.
        mixing: how pairs of samples are mixed, if they are.
        ranks: the processes that share each batch.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        pad: int,
        flip: bool,
        seed: int,
        views: int | None = None,
        view_seed: int = 0,
        cache: TeacherCache | None = None,
        weights: Tensor | None = None,
        logit_adjustments: Tensor | None = None,
        mixing: Mixing | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._split = split
        self._scale = preprocessing.scale
        self._device = device = split.device
        self._normalize = Normalize(preprocessing).to(device)
        self._batch_size = batch_size
        self._pad = pad
        self._flip = flip
        self._seed = seed
        self._views = views
        self._view_seed = view_seed
        self._cache = cache
        self._mixing = mixing
        self.ranks = ranks
        self.weights = None if weights is None else weights.to(device)
        self._logit_adjustments = None if logit_adjustments is None else logit_adjustments.to(device)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self._split), self._batch_size)
        return full + (rest >= FEWEST * self.ranks.size)

    def plan(self, epoch: int) -> EpochPlan:
        """Draws an epoch. On the CPU, so that every device sees the same batches."""
        generator = torch.Generator().manual_seed(mix_seed(self._seed, epoch))
        order = torch.randperm(len(self._split), generator=generator)
        view: int | None
        seed: tuple[int, ...]
        if self._views is None:
            view, augmentation, seed = None, self._draw(generator), (self._seed, epoch, 0)
        else:
            view = epoch % self._views
            augmentation, seed = self.view(view).at(order), self._seed_of(view)
        there = order.to(self._device) if self._split.in_memory else order
        return EpochPlan(there, order, augmentation.to(self._device), seed, view)

    def view(self, number: int) -> Augmentation:
        """Draws a fixed view of every sample, in the order of the split."""
        return self._draw(torch.Generator().manual_seed(mix_seed(*self._seed_of(number))))

    def _seed_of(self, view: int) -> tuple[int, ...]:
        # Of three parts, so that no order of an epoch comes from the same numbers.
        return self._view_seed, view, 1

    def _draw(self, generator: torch.Generator) -> Augmentation:
        return Augmentation.draw(len(self._split), pad=self._pad, flip=self._flip, generator=generator)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """This rank's part of the batches of an epoch, from that of step `first` on."""
        return self._batches(self.plan(number), range(first, self.steps))

    def batch(self, plan: EpochPlan, step: int) -> Batch:
        """This rank's part of one step of a plan."""
        (batch,) = self._batches(plan, range(step, step + 1))
        return batch

    def _batches(self, plan: EpochPlan, steps: range) -> Iterator[Batch]:
        parts = (plan.order[self._part(step)[0]] for step in steps)
        for step, (images, indices) in zip(steps, self._split.read(parts, plan.seed), strict=True):
            yield self._batch(plan, step, images, indices)

    def _part(self, step: int) -> tuple[slice, int]:
        """Which samples of the order are this rank's in a step, and how many all ranks have."""
        start = step * self._batch_size
        count = min(self._batch_size, len(self._split) - start)
        own = self.ranks.part(count)
        return slice(start + own.start, start + own.stop), count

    def _batch(self, plan: EpochPlan, step: int, images: Tensor, indices: Tensor | slice) -> Batch:
        part, count = self._part(step)
        assert isinstance(indices, Tensor)
        indices = indices.to(self._device, non_blocking=True)
        inputs, target = self._inputs(images, plan.augmentation.at(part)), self._split.labels[indices]
        if self._mixing is not None:
            first = part.start - step * self._batch_size
            inputs, target = self._mixing.mix(inputs, target, (*plan.seed, step), first, count)
        weight = None if self.weights is None else self.weights[indices]
        adjustment = None if self._logit_adjustments is None else self._logit_adjustments[indices]
        teacher = None if plan.view is None else self._cached(plan.samples[part], plan.view)
        share = self.ranks.size * (part.stop - part.start) / count
        return Batch(inputs, target, indices, teacher, weight, adjustment, share)

    def _cached(self, samples: Tensor, view: int) -> tuple[Tensor, Tensor] | None:
        """The teacher's features and logits, on the device of the images, if there is a cache."""
        if self._cache is None:
            return None
        features, logits = self._cache[samples, view]
        device = self._device
        on_gpu = device.type == "cuda"  # where a blocking copy would wait for the steps before
        return features.to(device, non_blocking=on_gpu), logits.to(device, non_blocking=on_gpu)

    def in_view(self, number: int, samples: range) -> Iterator[Tensor]:
        """The inputs of a range of samples, in order, in one of the fixed views."""
        augmentation = self.view(number).to(self._device)
        starts = range(samples.start, samples.stop, self._batch_size)
        parts = [slice(start, min(start + self._batch_size, samples.stop)) for start in starts]
        for part, (images, _) in zip(parts, self._split.read(parts, self._seed_of(number)), strict=True):
            yield self._inputs(images, augmentation.at(part))

    def _inputs(self, images: Tensor, augmentation: Augmentation) -> Tensor:
        if self._pad or self._flip:
            images = shift_and_flip(images, self._pad, *augmentation)
        return self._normalized(images)

    def _normalized(self, images: Tensor) -> Tensor:
        inputs: Tensor = self._normalize(images.float().div_(self._scale))
        return inputs

    def in_order(self) -> Iterator[tuple[slice | None, Tensor, Tensor]]:
        """Samples in order, not augmented, for scoring: which of the split they are, the inputs and the labels.

        Of several ranks each has other batches, and all have as many, so that sharded networks run together: one that
        has none left gets the last again, as None.
        """
        count = len(self)
        starts = range(0, count, self._batch_size)
        rounds = -(-len(starts) // self.ranks.size)
        own = range(self.ranks.rank, rounds * self.ranks.size, self.ranks.size)

        def part(number: int) -> slice:
            start = starts[min(number, len(starts) - 1)]
            return slice(start, min(start + self._batch_size, count))

        for number, (images, indices) in zip(own, self._split.read(map(part, own)), strict=True):
            yield part(number) if number < len(starts) else None, self._normalized(images), self._split.labels[indices]

    def __len__(self) -> int:
        return len(self._split)
