"""The lineage of logits: of which layer's output they are a view or an average."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What leaves the values of logits as they are, and in their order.
_VIEWS = (
    torch.clone, torch.dequantize, torch.detach, torch.flatten, torch.reshape, torch.squeeze,
    Tensor.bfloat16, Tensor.clone, Tensor.contiguous, Tensor.dequantize, Tensor.detach, Tensor.double, Tensor.flatten,
    Tensor.float, Tensor.half, Tensor.reshape, Tensor.squeeze, Tensor.to, Tensor.type_as, Tensor.view,
)  # fmt: skip
# What makes logits of an image of them; a window may leave out some.
_POOLS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.mean, Tensor.mean)
_WINDOWS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_KINDS: dict[Any, str] = {
    **dict.fromkeys(_VIEWS, "view"),
    **dict.fromkeys(_POOLS, "pool"),
    **dict.fromkeys(_WINDOWS, "window"),
    **dict.fromkeys(_RELUS, "relu"),
}


class Made(NamedTuple):
    """A call of a layer as a lineage knows it.

    Attributes:
        input: What the layer read.
        output: What it yielded.
        since: How many steps there were when it was done.
        version: How often the output had been written by then.
    """

    input: Any
    output: Any
    since: int
    version: int


class Lineage(TorchFunctionMode):
    """Of which tensor another is a view or an average, from what PyTorch computes within the block.

    Args:
        num_classes: C: only what could be logits is looked at.
        products: Linear layers and convolutions whose last calls are kept, from their products: what hooks see, but
            without breaking a graph that is traced.

    Attributes:
        calls: The last call of each of `products`, or None.
    """

    def __init__(self, num_classes: int, products: Sequence[Any] = ()) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weights = [(layer.weight, layer.bias) for layer in products]
        self.calls: list[Made | None] = [None for _ in products]
        # What came of what, by which kind of operation, and its version then.
        self.steps: list[tuple[Tensor, Tensor, str, int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        # As the layers themselves call them: who uses their weights otherwise is not the layer.
        if self.calls and (func is F.linear or func is F.conv2d) and len(args) >= 3:
            for i, (weight, bias) in enumerate(self.weights):
                if args[1] is weight and args[2] is bias:
                    if bias is None and self.calls[i] is not None:  # the second could be anybody's
                        raise RuntimeError(
                            "the weight of a layer without a bias is used twice: a hook must tell by whom"
                        )
                    self.calls[i] = self.made(args[0], output)
        if args and isinstance(output, Tensor) and self.sees(output):
            if func in _KINDS:
                self.steps.append((output, args[0], _KINDS[func], _version(output)))
            elif output is args[0]:
                self.steps.append((output, args[0], "changed", 0))
        return output

    def made(self, input: Any, output: Any) -> Made:
        """A call of a layer that is done now."""
        return Made(input, output, len(self.steps), _version(output))

    def sees(self, tensor: Tensor) -> bool:
        """Whether a tensor could be logits, of a sample or of a position."""
        return tensor.ndim >= 2 and tensor.shape[1] == self.num_classes

    def leads(self, call: Made | None, logits: Tensor) -> bool:
        """Whether logits are a layer's output, or its average over positions, and nothing was done to them besides."""
        if call is None:
            return False
        made, kinds, tensor = call.output, set(), logits
        for result, source, kind, _ in reversed(self.steps[call.since :]):
            if result is tensor:
                kinds.add(kind)
                tensor = source
        if tensor is not made or not self.sees(made) or "changed" in kinds or (kinds - {"view"} and made.ndim == 2):
            return False
        if torch.compiler.is_compiling():
            return "window" not in kinds  # no value can be looked at
        # Changed in place by other names, or through other views.
        versions = {id(made): call.version} | {id(step[0]): step[3] for step in self.steps[call.since :]}
        changed = any(versions[id(value)] != _version(value) for value in (made, logits))
        return not changed and _is_average(made, logits, rectified="relu" in kinds)


def _version(value: Any) -> int:
    """How often a tensor was written, where that is counted."""
    traced = torch.compiler.is_compiling() or not isinstance(value, Tensor) or value.is_inference()
    return 0 if traced else value._version


@torch.no_grad()
def _is_average(made: Tensor, logits: Tensor, *, rectified: bool) -> bool:
    """Whether logits (B, C) are a layer's output, averaged over its positions, up to rounding."""
    if made.ndim == 2 or not made.numel():
        return True
    values = made.dequantize() if made.is_quantized else made
    values = values.relu() if rectified else values
    # A sum of n terms, each rounded, is off by n times the largest at most.
    bound = values[0, 0].numel() * torch.finfo(logits.dtype).eps * values.abs().amax()
    return not bool(((values.double().flatten(2).mean(2) - logits.double()).abs() > bound).any())
