"""The residual networks of CIFAR (He et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from cid._errors import ConfigError
from cid.train.models.layers import conv_norm, initialise, pool_and_classify, stages
from cid.train.models.spec import NAMED_BY, InputSpec


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_norm(inputs, outputs, stride), nn.ReLU(), *conv_norm(outputs, outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(inputs, outputs, stride, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return nn.functional.relu(self.body(x) + self.shortcut(x))


def build_resnet(depth: int, spec: InputSpec) -> nn.Module:
    """The residual network of He et al. 2016 for CIFAR: 6n + 2 layers of 16, 32 and 64 channels."""
    if depth < 8 or depth % 6 != 2:
        raise ConfigError(f"{NAMED_BY}: got 'resnet{depth}', accepted: a depth of 6n + 2, from 8 up")
    return initialise(
        nn.Sequential(
            *conv_norm(spec.channels, 16),
            nn.ReLU(),
            *stages(BasicBlock, 16, [16, 32, 64], (depth - 2) // 6),
            *pool_and_classify(64, spec.classes),
        )
    )
