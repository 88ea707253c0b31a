"""The layers of a model: their sizes, and which of them classify."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from torch import nn


class Size(NamedTuple):
    """What a classifying layer reads and yields; whether it does so at each position of an image."""

    inputs: int
    outputs: int
    positions: bool


def named(model: nn.Module, name: str) -> nn.Module:
    """The module of this name; a `ValueError` lists those beside it if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        outer, inner = model, ""
        for part in name.split("."):
            children = {key: child for key, child in outer._modules.items() if child is not None}
            if part not in children:
                break
            outer, inner = children[part], f"{inner}{part}."
        beside = ", ".join(repr(f"{inner}{child}") for child in children) or f"none in {inner[:-1]!r}"
        raise ValueError(f"layers: got {name!r}, accepted: a module of the model: {beside}") from None


def unsized(model: nn.Module) -> str | None:
    """The name of a parameter or buffer that gets its size from the first batch."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    return next((name for name, value in tensors if nn.parameter.is_lazy(value)), None)


def _declared_size(layer: nn.Module) -> Size | None:
    """The size of a linear layer or a 1 x 1 convolution, also a quantised one, by its attributes."""
    if not hasattr(layer, "weight"):
        return None
    for inputs, outputs, positions in (("in_features", "out_features", False), ("in_channels", "out_channels", True)):
        read, made = getattr(layer, inputs, None), getattr(layer, outputs, None)
        if isinstance(read, int) and isinstance(made, int):
            kernel = getattr(layer, "kernel_size", None) if positions else ()
            whole = kernel is not None and all(extent == 1 for extent in kernel)
            return Size(read, made, positions) if whole else None
    return None


def size_of(layer: nn.Module, num_classes: int) -> Size | None:
    """The size of any layer: as declared, else of its first weight with a row for each class."""
    size = _declared_size(layer)
    if size is None:
        for weight in layer.parameters():
            if weight.ndim >= 2 and weight.shape[0] == num_classes and weight.shape[2:].numel() == 1:
                return Size(weight.shape[1], num_classes, weight.ndim > 2)
    return size


def _declared(model: nn.Module) -> Iterator[tuple[str, Size]]:
    """All layers that classify by a product, without those inside one of them (as a low-rank update has)."""
    outer = None
    for name, layer in model.named_modules():
        size = _declared_size(layer)
        if size is not None and (outer is None or not name.startswith(outer)):
            yield name, size
            outer = f"{name}." if name else ""


def fitting(model: nn.Module, num_classes: int) -> list[str]:
    """Names of the layers that yield a value for each class, in the model's order."""
    return [name for name, size in _declared(model) if size.outputs == num_classes]


def listing(model: nn.Module) -> str:
    """The layers that classify, with their sizes, for an error's message."""
    layers = [f"{name!r} ({size.inputs} -> {size.outputs})" for name, size in _declared(model)]
    return ", ".join(layers) or "no linear layer at all"


def is_product(layer: nn.Module) -> bool:
    """Whether a layer does what `torch.nn.Linear` or `torch.nn.Conv2d` does, and nothing else."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) in (nn.Linear, nn.Conv2d) and not hooked and "forward" not in layer.__dict__
