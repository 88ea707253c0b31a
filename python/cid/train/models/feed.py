"""What a network does to the inputs of a data set before it reads them, where it was made for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cid.train.data import Preprocessing
from cid.train.models.spec import InputSpec, Native

Size = tuple[int, int]


@dataclass(frozen=True)
class Feed:
    """`resized(inputs * scale + shift)`, by channel: from one normalisation to another, without a detour by images.

    Attributes:
        scale: of each channel that the network reads; a single channel of the inputs goes to all of them.
        shift: of each.
        size: height and width that the network reads.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    size: Size

    @classmethod
    def plain(cls, channels: int, size: Size) -> Feed:
        """One that leaves the values as they are."""
        return cls((1.0,) * channels, (0.0,) * channels, size)

    @classmethod
    def between(cls, given: Preprocessing, native: Native, size: Size) -> Feed:
        """From the data set's normalisation to that of a model's own configuration, if it has one."""
        if native.mean is None or native.std is None:
            return cls.plain(native.channels, size)
        return cls.plain(native.channels, size).after(given, Preprocessing(1.0, native.mean, native.std))

    def after(self, given: Preprocessing, expected: Preprocessing) -> Feed:
        """The same for inputs of `given`, where those of `expected` were meant."""
        count = len(self.scale)
        theirs = zip(_each(given.mean, count), _each(given.std, count), strict=True)
        ours = zip(_each(expected.mean, count), _each(expected.std, count), strict=True)
        scale, shift = [], []
        for own, offset, (mean, std), (own_mean, own_std) in zip(self.scale, self.shift, theirs, ours, strict=True):
            scale.append(own * std / own_std)
            shift.append(own * (mean - own_mean) / own_std + offset)
        return Feed(tuple(scale), tuple(shift), self.size)

    def changes(self, spec: InputSpec) -> bool:
        """Whether it does anything to inputs of this spec."""
        return self != Feed.plain(spec.channels, spec.size)


def _each(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    return values * count if len(values) == 1 else values


def attach(network: nn.Module, feed: Feed) -> nn.Module:
    """Puts a feed before a network, in place: its layers and its weights keep their names."""
    for name, values in (("_feed_scale", feed.scale), ("_feed_shift", feed.shift)):
        network.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
    network._feed = feed  # type: ignore[assignment]  # no module, but what describes this one
    network.register_forward_pre_hook(_fed)
    return network


def feed_of(network: nn.Module) -> Feed | None:
    """The feed before a network, or before the one that is within it."""
    found = (vars(module).get("_feed") for module in network.modules())
    return next((feed for feed in found if isinstance(feed, Feed)), None)


def _fed(network: Any, inputs: tuple[Tensor]) -> Tensor:
    x: Tensor = inputs[0] * network._feed_scale + network._feed_shift
    size = network._feed.size
    if tuple(x.shape[2:]) == size:
        return x
    smaller = size[0] < x.shape[2] or size[1] < x.shape[3]
    return interpolate(x, size, mode="bilinear", antialias=smaller)
