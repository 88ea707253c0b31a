"""A small convolutional network that looks at the whole image before it halves it."""

from __future__ import annotations

from torch import nn

from cid.train.models.layers import conv_norm, pool_and_classify
from cid.train.models.spec import InputSpec


def build_convnet(width: int, spec: InputSpec) -> nn.Module:
    """Three convolutions of W, 2W, 4W channels, the last two halving the image, then the mean over it."""
    return nn.Sequential(
        *conv_norm(spec.channels, width),
        nn.ReLU(),
        *conv_norm(width, 2 * width, stride=2),
        nn.ReLU(),
        *conv_norm(2 * width, 4 * width, stride=2),
        nn.ReLU(),
        *pool_and_classify(4 * width, spec.classes),
    )
