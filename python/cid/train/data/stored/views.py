"""How a decoded image becomes pixels of one size: at random for training, the same each time for scoring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from cid.train.data.decoding import to_pixels
from cid.train.data.images import Bytes
from cid.train.sections import DataConfig

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Views:
    """The options of `DataConfig` that look at one image at a time.

    Attributes:
        resize: side of the square to resize to; with `crop`, the shorter side before an image is scored.
        crop: side of the random resized crop, and of the middle that is scored.
        randaugment: how many operations, and how strong.
    """

    resize: int | None = None
    crop: int | None = None
    randaugment: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: DataConfig) -> Views:
        """Those of a configuration."""
        return cls(config.resize, config.crop, config.randaugment)

    @property
    def random(self) -> bool:
        """Whether a training image is another each time."""
        return self.crop is not None or bool(self.randaugment)

    @property
    def needs(self) -> tuple[str, ...]:
        """Modules that take seconds to import, where these views are drawn."""
        return ("torchvision.transforms.v2",) if self.random else ()

    def train(self, image: Image, seed: int) -> Bytes:
        """A view that is a function of the image and the seed, where views are random."""
        if self.crop is None and self.resize is not None:
            image = self._square(image)
        # The transforms draw from PyTorch's own generator, which is the networks', too, where there are no workers.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return to_pixels(self._train(image))

    def score(self, image: Image) -> Bytes:
        """The view that networks are scored by."""
        if self.crop is None:
            return to_pixels(image, None if self.resize is None else (self.resize, self.resize))
        return to_pixels(self._middle(image))

    def _square(self, image: Image) -> Image:
        from PIL.Image import Resampling

        assert self.resize is not None
        return image.resize((self.resize, self.resize), Resampling.BILINEAR)

    # Of Pillow images: RandAugment takes twice as long on tensors.
    @cached_property
    def _train(self) -> Callable[[Image], Image]:
        from torchvision.transforms import v2

        steps: list[Any] = [] if self.crop is None else [v2.RandomResizedCrop(self.crop, antialias=True)]
        if self.randaugment:
            number, magnitude = self.randaugment
            steps.append(v2.RandAugment(number, magnitude))
        return _compose(steps)

    @cached_property
    def _middle(self) -> Callable[[Image], Image]:
        from torchvision.transforms import v2

        assert self.crop is not None
        # As 256 is to 224, unless it is given.
        shorter = self.resize or round(self.crop * 8 / 7)
        return _compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(self.crop)])


def _compose(steps: list[Any]) -> Callable[[Image], Image]:
    from torchvision.transforms import v2

    composed: Callable[[Image], Image] = v2.Compose(steps)
    return composed
