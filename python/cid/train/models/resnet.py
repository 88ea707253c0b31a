"""Networks by name: a small CNN, the residual networks of CIFAR, wide ones, and timm's."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from cid._errors import ConfigError


@dataclass(frozen=True)
class InputSpec:
    """What a network reads and yields."""

    channels: int
    size: tuple[int, int]
    classes: int


def _conv_norm(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def _pool_and_classify(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def small_cnn(width: int, spec: InputSpec) -> nn.Module:
    """Three convolutions of W, 2W, 2W channels, the first two halving the image, then the mean over it."""
    return nn.Sequential(
        *_conv_norm(spec.channels, width, stride=2),
        nn.ReLU(),
        *_conv_norm(width, 2 * width, stride=2),
        nn.ReLU(),
        *_conv_norm(2 * width, 2 * width),
        nn.ReLU(),
        *_pool_and_classify(2 * width, spec.classes),
    )


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_norm(inputs, outputs, stride), nn.ReLU(), *_conv_norm(outputs, outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(inputs, outputs, stride, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return nn.functional.relu(self.body(x) + self.shortcut(x))


class WideBlock(nn.Module):
    """Normalise, rectify, convolve, twice, beside a shortcut (Zagoruyko and Komodakis 2016, without dropout)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(
            *_conv_norm(inputs, outputs, stride), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        )
        same = inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        active = self.entry(x)
        # Where the shape changes, the shortcut starts after the shared normalisation.
        body: Tensor = self.body(active)
        return body + (x if self.shortcut is None else self.shortcut(active))


def _stages(block: Callable[[int, int, int], nn.Module], first: int, widths: list[int], blocks: int) -> list[nn.Module]:
    """`blocks` blocks a width; each stage but the first starts with stride 2."""
    layers: list[nn.Module] = []
    inputs = first
    for stage, width in enumerate(widths):
        for i in range(blocks):
            layers.append(block(inputs, width, 2 if stage and not i else 1))
            inputs = width
    return layers


def _initialise(model: nn.Module) -> nn.Module:
    """He's initialisation for the convolutions, as is usual for these networks."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def resnet(depth: int, spec: InputSpec) -> nn.Module:
    """The residual network of He et al. 2016 for CIFAR: 6n + 2 layers of 16, 32 and 64 channels."""
    if depth < 8 or depth % 6 != 2:
        raise ConfigError(f"--teacher or --student: got 'resnet{depth}', accepted: a depth of 6n + 2, from 8 up")
    return _initialise(
        nn.Sequential(
            *_conv_norm(spec.channels, 16),
            nn.ReLU(),
            *_stages(BasicBlock, 16, [16, 32, 64], (depth - 2) // 6),
            *_pool_and_classify(64, spec.classes),
        )
    )


def wide_resnet(depth: int, factor: int, spec: InputSpec) -> nn.Module:
    """The wide residual network WRN-d-k: 6n + 4 layers of 16k, 32k and 64k channels."""
    if depth < 10 or depth % 6 != 4 or factor < 1:
        raise ConfigError(
            f"--teacher or --student: got 'wrn-{depth}-{factor}', accepted: a depth of 6n + 4, from 10 up, and a "
            "factor from 1 up"
        )
    width = 64 * factor
    return _initialise(
        nn.Sequential(
            nn.Conv2d(spec.channels, 16, 3, padding=1, bias=False),
            *_stages(WideBlock, 16, [16 * factor, 32 * factor, width], (depth - 4) // 6),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *_pool_and_classify(width, spec.classes),
        )
    )


def timm_model(name: str, spec: InputSpec) -> nn.Module:
    """A model of timm, with fresh weights: nothing is downloaded."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"--teacher or --student: 'timm:{name}' needs timm: pip install timm") from error
    if name not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ConfigError(f"--teacher or --student: got 'timm:{name}', accepted: a name of timm.list_models(){hint}")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=spec.classes, in_chans=spec.channels)
    return model


Builder = Callable[[re.Match[str], InputSpec], nn.Module]
MODELS: dict[str, Builder] = {
    r"cnn-([1-9]\d*)": lambda found, spec: small_cnn(int(found[1]), spec),
    r"resnet(\d+)": lambda found, spec: resnet(int(found[1]), spec),
    r"wrn-(\d+)-(\d+)": lambda found, spec: wide_resnet(int(found[1]), int(found[2]), spec),
    r"timm:(.+)": lambda found, spec: timm_model(found[1], spec),
}


def build_model(name: str, spec: InputSpec) -> nn.Module:
    """A network with fresh weights from the global random state.

    Raises:
        ConfigError: no such network.
    """
    for pattern, build in MODELS.items():
        if found := re.fullmatch(pattern, name):
            return build(found, spec)
    raise ConfigError(f"--teacher or --student: got {name!r}, accepted: cnn-W, resnetD, wrn-D-K or timm:NAME")


def count_parameters(model: nn.Module) -> int:
    """Trainable values."""
    return sum(parameter.numel() for parameter in model.parameters())
