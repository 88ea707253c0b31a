"""Networks by name: small CNNs, the residual networks of CIFAR, wide ones, bags of patches, and timm's.

A new family is a file here, a line of `MODELS`, and a word in the help of `--teacher`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

from cid._errors import ConfigError
from cid.train.models.cnn import build_cnn
from cid.train.models.convnet import build_convnet
from cid.train.models.patches import build_patches
from cid.train.models.resnet import build_resnet
from cid.train.models.spec import NAMED_BY, InputSpec
from cid.train.models.timm import build_timm
from cid.train.models.wide_resnet import build_wide_resnet

__all__ = ["MODELS", "InputSpec", "build_model", "count_parameters"]

Builder = Callable[[re.Match[str], InputSpec], nn.Module]
# By how a name is written: its pattern, and what builds the network.
MODELS: dict[str, tuple[str, Builder]] = {
    "cnn-W": (r"cnn-([1-9]\d*)", lambda found, spec: build_cnn(int(found[1]), spec)),
    "convnet-W": (r"convnet-([1-9]\d*)", lambda found, spec: build_convnet(int(found[1]), spec)),
    "resnetD": (r"resnet(\d+)", lambda found, spec: build_resnet(int(found[1]), spec)),
    "wrn-D-K": (r"wrn-(\d+)-(\d+)", lambda found, spec: build_wide_resnet(int(found[1]), int(found[2]), spec)),
    "patches-W": (r"patches-([1-9]\d*)", lambda found, spec: build_patches(int(found[1]), spec)),
    "timm:NAME": (r"timm:(.+)", lambda found, spec: build_timm(found[1], spec)),
}


def build_model(name: str, spec: InputSpec) -> nn.Module:
    """A network with fresh weights from the global random state.

    Its weights lie channels-last, which its maps then do, too: processors and GPUs convolve faster so.

    Raises:
        ConfigError: no such network.
    """
    for pattern, build in MODELS.values():
        if found := re.fullmatch(pattern, name):
            return build(found, spec).to(memory_format=torch.channels_last)
    raise ConfigError(f"{NAMED_BY}: got {name!r}, accepted: {', '.join(MODELS)}")


def count_parameters(model: nn.Module) -> int:
    """How many values the parameters of a network hold."""
    return sum(parameter.numel() for parameter in model.parameters())
