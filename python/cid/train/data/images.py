"""Labelled images in memory, and how they become a network's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """Images (N, channels, height, width), uint8, and labels (N,), int64.

    `groups`, (N,) int64, says which group (a context, say) each image is of, where that is known. Reports show it; no
    method is given it.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor | None = None

    @classmethod
    def from_numpy(cls, images: Bytes, labels: NDArray[np.integer]) -> Split:
        """A copy of images and labels."""
        return cls(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The split on a device."""
        return self._each(lambda values: values.to(device))

    def take(self, index: Tensor) -> Split:
        """The samples at `index`."""
        return self._each(lambda values: values[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Split:
        groups = None if self.groups is None else change(self.groups)
        return replace(self, images=change(self.images), labels=change(self.labels), groups=groups)


@dataclass(frozen=True)
class Preprocessing:
    """How bytes become a network's input: `(bytes / scale - mean) / std`, by channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Normalize(nn.Module):
    """Maps images with values in 0..1, (B, channels, height, width), to a network's input."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalises by channel."""
        return (images - self.mean) / self.std
