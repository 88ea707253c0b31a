"""Mixing of the samples of a batch, and of their labels: mixup and CutMix.

Sources:
    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cid.train.sections import DataConfig


@dataclass(frozen=True)
class Mixing:
    """Samples 2i and 2i + 1 of a batch, each mixed with the other; of an odd number the last stays as it is.

    What is drawn is a function of a seed and i: ranks that share a batch in pairs mix as one process does.

    Attributes:
        classes: how many there are.
        mixup: of the Beta(a, a) that the share of the other image is drawn from, where all pixels are mixed.
        cutmix: of that of the area that is the other's. Where both are given, each pair is mixed by one of them, drawn.
    """

    classes: int
    mixup: float | None = None
    cutmix: float | None = None

    @classmethod
    def of(cls, config: DataConfig, classes: int) -> Mixing | None:
        """That of a configuration, if it has one."""
        return cls(classes, config.mixup, config.cutmix) if config.mixes else None

    def mix(
        self, inputs: Tensor, labels: Tensor, seed: tuple[int, ...], first: int, count: int
    ) -> tuple[Tensor, Tensor]:
        """The mixed inputs, and the share of each class in each, (B, classes).

        Args:
            inputs: (B, channels, height, width), normalised.
            labels: (B,).
            seed: of the whole batch.
            first: the place of the first of these samples in the whole batch, even.
            count: samples of the whole batch.
        """
        pairs = len(labels) // 2
        drawn = self._draw(seed, count // 2, (inputs.shape[2], inputs.shape[3]))[first // 2 :][:pairs]
        others = drawn.to(inputs.device, inputs.dtype)
        target = nn.functional.one_hot(labels, self.classes).to(inputs.dtype)
        one, other = inputs[0 : 2 * pairs : 2], inputs[1 : 2 * pairs : 2]
        mixed = torch.stack((one.lerp(other, others), other.lerp(one, others)), 1).flatten(0, 1)
        shares = others.mean((2, 3))
        one, other = target[0 : 2 * pairs : 2], target[1 : 2 * pairs : 2]
        mixed_target = torch.stack((one.lerp(other, shares), other.lerp(one, shares)), 1).flatten(0, 1)
        return torch.cat((mixed, inputs[2 * pairs :])), torch.cat((mixed_target, target[2 * pairs :]))

    def _draw(self, seed: tuple[int, ...], pairs: int, size: tuple[int, int]) -> Tensor:
        """How much of each pixel is the other image's, (pairs, 1, height, width)."""
        rng = np.random.default_rng((*seed, 2))  # of more parts than what else is drawn from this seed
        cut = rng.random(pairs) < 0.5 if self.mixup and self.cutmix else np.full(pairs, self.cutmix is not None)
        alpha = np.where(cut, self.cutmix or 1.0, self.mixup or 1.0)
        share = rng.beta(alpha, alpha)
        inside = []
        for length in size:
            # The box has this share of the area; what is beyond the edge of the image is lost.
            half, middle = np.sqrt(share) * length / 2, rng.random(pairs) * length
            low, high = np.round(middle - half), np.round(middle + half)
            place = np.arange(length)
            inside.append((low[:, None] <= place) & (place < high[:, None]))
        box = inside[0][:, :, None] & inside[1][:, None, :]
        drawn = np.where(cut[:, None, None], box, share[:, None, None]).astype(np.float32)
        return torch.from_numpy(drawn)[:, None]
