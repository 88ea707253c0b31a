"""Labelled images, in memory or stored, and how they become a network's input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from cid.train.data.stored.images import StoredImages

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """Images (N, channels, height, width), uint8, in memory or read as they are needed, and labels (N,), int64.

    `groups`, (N,) int64, says which group (a context, say) each image is of, where that is known. Reports show it; no
    method is given it.
    """

    kept: Tensor | StoredImages
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
        return replace(self._labelled(lambda values: values.to(device)), kept=self.kept.to(device))

    def take(self, index: Tensor) -> Split:
        """The samples at `index`."""
        return replace(self._labelled(lambda values: values[index]), kept=self.kept[index])

    @property
    def in_memory(self) -> bool:
        """Whether the images are."""
        return isinstance(self.kept, Tensor)

    @property
    def images(self) -> Tensor:
        """All of them, which only those have that are in memory."""
        if not isinstance(self.kept, Tensor):
            raise TypeError("images: are not in memory, accepted: `read` and `pixels`")
        return self.kept

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.kept.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the images are, or are wanted."""
        return self.kept.device

    @property
    def unreadable(self) -> dict[str, str]:
        """Stored images, of this split or others of the data set, that were met and could not be read, and why."""
        return {} if isinstance(self.kept, Tensor) else self.kept.storage.unreadable

    def read(
        self, parts: Iterable[Tensor | slice], seed: tuple[int, ...] | None = None
    ) -> Iterator[tuple[Tensor, Tensor | slice]]:
        """Batches of images, and which of the split they are: as asked, unless one was replaced that can't be read.

        Args:
            parts: which of the split; where its images are stored, on the CPU.
            seed: what random views of stored images are drawn from; None for those that networks are scored by.
        """
        kept = self.kept
        if isinstance(kept, Tensor):
            return ((kept[part], part) for part in parts)
        return kept.read(parts, seed)

    def pixels(self, index: Tensor | slice) -> Tensor:
        """The images at `index`, as networks are scored by them, at once."""
        return self.kept[index] if isinstance(self.kept, Tensor) else self.kept.pixels(index)

    def _labelled(self, change: Callable[[Tensor], Tensor]) -> Split:
        groups = None if self.groups is None else change(self.groups)
        return replace(self, labels=change(self.labels), groups=groups)


@dataclass(frozen=True)
class Preprocessing:
    """How bytes become a network's input: `(bytes / scale - mean) / std`, by channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


# ImageNet's mean and deviation, as usual for photographs.
PHOTOGRAPHS = Preprocessing(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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
