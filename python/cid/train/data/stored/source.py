"""Where stored images come from: an image for each number."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


class Source(Protocol):
    """Images with random access.

    Worker processes get a copy each, but of tensors: what is large is best kept in these, which are shared.
    """

    def __len__(self) -> int:
        """How many images there are."""

    def __getitem__(self, index: int) -> Image:
        """An image, decoded; of any size, of three channels of bytes or one."""

    def name(self, index: int) -> str:
        """What messages call it."""

    def fingerprint(self) -> str:
        """What changes when the images do, so far as that is known without reading them."""


class Names:
    """Many short texts in two tensors: a Python string each would be four times as large, and counted in each process.

    Args:
        names: the texts, as the operating system has them.
    """

    def __init__(self, names: Iterable[bytes]) -> None:
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name
            ends.append(len(text))
        self._text = torch.frombuffer(text or bytearray(1), dtype=torch.uint8)
        self._ends = torch.frombuffer(ends, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        start, stop = self._ends[index : index + 2].tolist()
        return self._text[start:stop].numpy().tobytes()

    def digest(self) -> str:
        """Of all of them."""
        return digest_of(self._text, self._ends)


def digest_of(*tensors: Tensor) -> str:
    """Of the values of some tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.numpy().data)
    return found.hexdigest()


class InMemory:
    """Images that lie in memory, (N, channels, height, width), uint8, of three channels or one."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image:
        from PIL import Image

        pixels = self._images[index].numpy().transpose(1, 2, 0)
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))

    def name(self, index: int) -> str:
        """Its number."""
        return f"image {index}"

    def fingerprint(self) -> str:
        """Of all pixels."""
        return digest_of(self._images)
