"""Random crops and mirrorings of a batch of images, on the device that has them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


def shift_and_flip(images: Tensor, pad: int, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """Crops of the images, each padded by `pad` black pixels, some of them mirrored.

    Args:
        images: (B, channels, H, W).
        pad: pixels of padding on each side.
        rows: (B,) int64, first row of each crop, 0 to 2 pad.
        columns: (B,) int64, first column of each crop.
        flips: (B,) bool, whether to mirror left and right.
    """
    channels, height, width = images.shape[1:]
    padded = nn.functional.pad(images, (pad,) * 4).flatten(2)
    down, right = (torch.arange(size, device=images.device) for size in (height, width))
    right = torch.where(flips[:, None], right.flip(0), right)
    # One place for each pixel, the same in all channels: crop and mirror are one gather.
    places = (rows[:, None] + down)[:, :, None] * (width + 2 * pad) + (columns[:, None] + right)[:, None]
    return padded.gather(2, places.flatten(1)[:, None].expand(-1, channels, -1)).view(images.shape)


class Augmentation(NamedTuple):
    """Where each of some images is cropped, and whether it is mirrored; see `shift_and_flip`."""

    rows: Tensor
    columns: Tensor
    flips: Tensor

    @classmethod
    def draw(cls, count: int, *, pad: int, flip: bool, generator: torch.Generator) -> Augmentation:
        """Draws the augmentation of `count` images; without `flip`, none is mirrored."""
        rows, columns = torch.randint(2 * pad + 1, (2, count), generator=generator)
        return cls(rows, columns, torch.rand(count, generator=generator) < (0.5 if flip else 0.0))

    def at(self, index: Tensor | slice) -> Augmentation:
        """The augmentation of the images at `index`."""
        return Augmentation(*(each[index] for each in self))

    def to(self, device: torch.device) -> Augmentation:
        """The augmentation on a device."""
        return Augmentation(*(each.to(device) for each in self))
