"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from cid._errors import ConfigError
from cid.train.models.layers import conv_norm, initialise, pool_and_classify, stages
from cid.train.models.spec import NAMED_BY, InputSpec


class WideBlock(nn.Module):
    """Normalise, rectify, convolve, twice, beside a shortcut (Zagoruyko and Komodakis 2016, without dropout)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(
            *conv_norm(inputs, outputs, stride), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        )
        same = inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        active = self.entry(x)
        # Where the shape changes, the shortcut starts after the shared normalisation.
        body: Tensor = self.body(active)
        return body + (x if self.shortcut is None else self.shortcut(active))


def build_wide_resnet(depth: int, factor: int, spec: InputSpec) -> nn.Module:
    """The wide residual network WRN-d-k: 6n + 4 layers of 16k, 32k and 64k channels."""
    if depth < 10 or depth % 6 != 4 or factor < 1:
        raise ConfigError(
            f"{NAMED_BY}: got 'wrn-{depth}-{factor}', accepted: a depth of 6n + 4, from 10 up, and a factor from 1 up"
        )
    width = 64 * factor
    return initialise(
        nn.Sequential(
            nn.Conv2d(spec.channels, 16, 3, padding=1, bias=False),
            *stages(WideBlock, 16, [16 * factor, 32 * factor, width], (depth - 4) // 6),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *pool_and_classify(width, spec.classes),
        )
    )
