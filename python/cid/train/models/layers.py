"""Layers that the families share."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def conv_norm(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    """A convolution that keeps the image's size but for its stride, and batch normalisation."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def pool_and_classify(width: int, classes: int) -> list[nn.Module]:
    """The mean over the image, and the classifier."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def stages(block: Callable[[int, int, int], nn.Module], first: int, widths: list[int], blocks: int) -> list[nn.Module]:
    """`blocks` blocks of each width; each stage but the first starts with stride 2."""
    layers: list[nn.Module] = []
    inputs = first
    for stage, width in enumerate(widths):
        for i in range(blocks):
            layers.append(block(inputs, width, 2 if stage and not i else 1))
            inputs = width
    return layers


def initialise(model: nn.Module) -> nn.Module:
    """He's initialisation for the convolutions, as is usual for these networks."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
