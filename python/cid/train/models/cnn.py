"""A small convolutional network, for images of few pixels."""

from __future__ import annotations

from torch import nn

from cid.train.models.layers import conv_norm, pool_and_classify
from cid.train.models.spec import InputSpec


def build_cnn(width: int, spec: InputSpec) -> nn.Module:
    """Three convolutions of W, 2W, 2W channels, the first two halving the image, then the mean over it."""
    return nn.Sequential(
        *conv_norm(spec.channels, width, stride=2),
        nn.ReLU(),
        *conv_norm(width, 2 * width, stride=2),
        nn.ReLU(),
        *conv_norm(2 * width, 2 * width),
        nn.ReLU(),
        *pool_and_classify(2 * width, spec.classes),
    )
