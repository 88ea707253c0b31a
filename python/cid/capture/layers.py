"""The layers of a model: their sizes, and which of them classify."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn


class _Size(NamedTuple):
    """What a classifying layer reads and yields; whether it does so at each position of an image."""

    inputs: int
    outputs: int
    positions: bool


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _declared_size(layer: nn.Module) -> _Size | None:
    """The size of a linear layer or a 1 x 1 convolution, also a quantised one, by its attributes."""
    if not hasattr(layer, "weight"):
        return None
    for inputs, outputs, positions in (("in_features", "out_features", False), ("in_channels", "out_channels", True)):
        read, made = getattr(layer, inputs, None), getattr(layer, outputs, None)
        if isinstance(read, int) and isinstance(made, int):
            kernel = getattr(layer, "kernel_size", None) if positions else ()
            whole = kernel is not None and all(extent == 1 for extent in kernel)
            return _Size(read, made, positions) if whole else None
    return None


def _size(layer: nn.Module, num_classes: int) -> _Size | None:
    """The size of any layer: that of its first weight with a row for each class, if it declares none."""
    size = _declared_size(layer)
    if size is None:
        for weight in layer.parameters():
            if weight.ndim >= 2 and weight.shape[0] == num_classes and weight.shape[2:].numel() == 1:
                return _Size(weight.shape[1], num_classes, weight.ndim > 2)
    return size


def _declared(model: nn.Module) -> Iterator[tuple[str, _Size]]:
    """All layers that classify by a product; of one that holds others (a low-rank update), itself alone."""
    outer = None
    for name, layer in model.named_modules():
        size = _declared_size(layer)
        if size is not None and (outer is None or not name.startswith(outer)):
            yield name, size
            outer = f"{name}." if name else ""


def _fitting(model: nn.Module, num_classes: int) -> list[str]:
    return [name for name, size in _declared(model) if size.outputs == num_classes]


def _listing(model: nn.Module) -> str:
    layers = [f"{name!r} ({size.inputs} -> {size.outputs})" for name, size in _declared(model)]
    return ", ".join(layers) or "no linear layer at all"


def _is_a_product(layer: nn.Module) -> bool:
    """Whether a layer does what `torch.nn.Linear` or `torch.nn.Conv2d` does, and nothing else."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) in (nn.Linear, nn.Conv2d) and not hooked and "forward" not in layer.__dict__
