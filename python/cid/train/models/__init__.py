"""Networks by name: small CNNs, the residual networks of CIFAR, wide ones, bags of patches, and what libraries publish.

A new family is a file here, a line of `MODELS`, and a word in the help of `--teacher`; a new library, one of
`LIBRARIES`. Every network maps a batch of a data set's inputs to logits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cid._errors import ConfigError
from cid.train.data import Preprocessing
from cid.train.models.cnn import build_cnn
from cid.train.models.convnet import build_convnet
from cid.train.models.feed import Feed, attach
from cid.train.models.hf import HF
from cid.train.models.patches import build_patches
from cid.train.models.resnet import build_resnet
from cid.train.models.spec import NAMED_BY, InputSpec, Library, Native
from cid.train.models.timm import TIMM
from cid.train.models.torchvision import TORCHVISION
from cid.train.models.wide_resnet import build_wide_resnet

__all__ = ["LIBRARIES", "MODELS", "InputSpec", "bare_model", "build_model", "count_parameters", "library_of"]

Builder = Callable[[re.Match[str], InputSpec], nn.Module]
# By how a name is written: its pattern, and what builds the network.
MODELS: dict[str, tuple[str, Builder]] = {
    "cnn-W": (r"cnn-([1-9]\d*)", lambda found, spec: build_cnn(int(found[1]), spec)),
    "convnet-W": (r"convnet-([1-9]\d*)", lambda found, spec: build_convnet(int(found[1]), spec)),
    "resnetD": (r"resnet(\d+)", lambda found, spec: build_resnet(int(found[1]), spec)),
    "wrn-D-K": (r"wrn-(\d+)-(\d+)", lambda found, spec: build_wide_resnet(int(found[1]), int(found[2]), spec)),
    "patches-W": (r"patches-([1-9]\d*)", lambda found, spec: build_patches(int(found[1]), spec)),
}
# By what a name begins with, and a colon.
LIBRARIES: dict[str, Library] = {"timm": TIMM, "torchvision": TORCHVISION, "hf": HF}


def library_of(name: str) -> tuple[Library, str] | None:
    """The library that a network's name names, and what it calls the network."""
    prefix, _, own = name.partition(":")
    return (LIBRARIES[prefix], own) if own and prefix in LIBRARIES else None


def bare_model(name: str, spec: InputSpec, config: dict[str, Any] | None = None) -> nn.Module:
    """A network with fresh weights from the global random state, which reads what it is made for.

    Its weights lie channels-last, which its maps then do, too: processors and GPUs convolve faster so.

    Args:
        name: of the network.
        spec: what it is to read and yield; a library's may read other channels and another size.
        config: of a model of Transformers, where its folder is not to be asked.

    Raises:
        ConfigError: no such network.
    """
    if (found := library_of(name)) is not None:
        library, own = found
        return library.build(own, spec, config).to(memory_format=torch.channels_last)
    for pattern, build in MODELS.values():
        if match := re.fullmatch(pattern, name):
            return build(match, spec).to(memory_format=torch.channels_last)
    accepted = [*MODELS, *(f"{library}:NAME" for library in LIBRARIES)]
    raise ConfigError(f"{NAMED_BY}: got {name!r}, accepted: {', '.join(accepted)}")


def build_model(
    name: str, spec: InputSpec, *, size: int | None = None, given: Preprocessing | None = None
) -> nn.Module:
    """A network with fresh weights from the global random state, for the inputs of a data set.

    A library's model that takes no images of their size reads them in its own; where it reads three channels, one goes
    to all.

    Args:
        name: of the network.
        spec: what the inputs are, and how many classes there are.
        size: of the square to which the network brings them; None for that.
        given: how the inputs are normalised, where the network is to read them as its own configuration says.

    Raises:
        ConfigError: no such network, or one that does not take such inputs.
    """
    square = None if size is None else (size, size)
    found = library_of(name)
    if found is None:
        network = bare_model(name, replace(spec, size=square or spec.size))
        feed = Feed.plain(spec.channels, square or spec.size)
        return attach(network, feed) if feed.changes(spec) else network
    library, own = found
    network = bare_model(name, spec if given is None else replace(spec, channels=3))
    native = library.native(own, network)
    if spec.channels not in (1, native.channels):
        raise ConfigError(
            f"{NAMED_BY}: {name!r} reads {native.channels} channels, and images here have {spec.channels}"
        )
    feed = feed_for(name, network, native, spec, size=square, given=given)
    return attach(network, feed) if feed.changes(spec) else network


def feed_for(
    name: str,
    network: nn.Module,
    native: Native,
    spec: InputSpec,
    *,
    size: tuple[int, int] | None,
    given: Preprocessing | None,
) -> Feed:
    """What is to be done to inputs before a library's model.

    Raises:
        ConfigError: it does not take such inputs.
    """
    sizes = (spec.size, native.size) if size is None else (size,)
    for each in sizes:
        if _takes(network, native.channels, each):
            return Feed.plain(native.channels, each) if given is None else Feed.between(given, native, each)
    tried = " or ".join(f"{height} x {width}" for height, width in dict.fromkeys(sizes))
    raise ConfigError(
        f"{NAMED_BY}: {name!r} takes no images of {tried}; others are given by --teacher-size or --resize"
    )


@torch.no_grad()
def _takes(network: nn.Module, channels: int, size: tuple[int, int]) -> bool:
    """Whether a network takes images of a size: it says so itself, as no configuration does reliably."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        network(torch.zeros(1, channels, *size, device=next(network.parameters()).device))
    except Exception:  # each library has its own for it
        return False
    finally:
        for module in training:
            module.training = True
    return True


def count_parameters(model: nn.Module) -> int:
    """How many values the parameters of a network hold."""
    return sum(parameter.numel() for parameter in model.parameters())
