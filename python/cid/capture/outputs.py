"""What a model yields, and where its logits are in it."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def logits_key(output: Any, num_classes: int, made: Any = None) -> Any:
    """Where the logits (B, C) are in what a model yields: their key or index, 0 of a tensor, None if nowhere.

    In a mapping (or a named tuple) those called `logits` are taken. Else of several the one that is `made`, or the
    first.
    """
    if isinstance(output, Tensor):
        return 0 if _fits(output, num_classes) else None
    if isinstance(output, Mapping):
        keys = [key for key, value in output.items() if _fits(value, num_classes)]
        return "logits" if "logits" in keys else _chosen(keys, output, made)
    if isinstance(output, tuple | list):
        keys = [key for key, value in enumerate(output) if _fits(value, num_classes)]
        named = getattr(output, "_fields", ())
        if "logits" in named and named.index("logits") in keys:
            return named.index("logits")
        return _chosen(keys, output, made)
    return None


def _chosen(keys: list[Any], output: Any, made: Any) -> Any:
    return next((key for key in keys if output[key] is made), keys[0] if keys else None)


def _fits(value: Any, num_classes: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == num_classes


def with_logits(output: Any, num_classes: int, z: Callable[[Tensor], Tensor]) -> Any:
    """What a model yields, with z(s) in the place of its logits s."""
    key = logits_key(output, num_classes)
    if isinstance(output, Tensor):
        return z(output)
    if isinstance(output, tuple):
        members = [z(value) if i == key else value for i, value in enumerate(output)]
        return type(output)(*members) if hasattr(output, "_fields") else type(output)(members)
    output = copy.copy(output)
    output[key] = z(output[key])
    return output


def described(output: Any) -> str:
    """The type and the shapes of what a model yields, for an error's message."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    members = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    shapes = [str(tuple(value.shape)) for value in members if isinstance(value, Tensor)]
    return f"a {type(output).__name__}" + (f" with tensors of shapes {', '.join(shapes)}" if shapes else "")
