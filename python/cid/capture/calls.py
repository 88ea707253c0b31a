"""The calls of layers while a model runs."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from cid.capture.lineage import _Lineage


def _call(model: nn.Module, x: Any) -> Any:
    return model(**x) if isinstance(x, Mapping) else model(x)


class _Call(NamedTuple):
    """One call of a layer: what it read and yielded, how much of the lineage came before, and the output's version."""

    features: Any
    output: Any
    since: int = 0
    version: int = 0


# RemovableHandle draws its ids from an unguarded counter; replicas run in threads of one process.
_registration = threading.Lock()


def _run(
    model: nn.Module, x: Any, layers: Sequence[nn.Module], lineage: "_Lineage | None" = None
) -> tuple[Any, list[list[_Call]]]:
    """What a model yields, and the calls of layers meanwhile; nothing stays on the layers afterwards."""
    calls: list[list[_Call]] = []
    handles = []
    with _registration:
        for layer in layers:
            calls.append([])
            handles.append(layer.register_forward_hook(_keeper(layer, calls[-1], lineage), with_kwargs=True))
    try:
        return _call(model, x), calls
    finally:
        with _registration:
            for handle in handles:
                handle.remove()


def _keeper(layer: nn.Module, calls: list[_Call], lineage: "_Lineage | None") -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # Replicas of one layer share their hooks: keep what this very one computes.
        if module is layer:
            features = args[0] if args else next(iter(kwargs.values()), None)
            since = 0 if lineage is None else len(lineage.steps)
            calls.append(_Call(features, output, since, 0 if lineage is None else _version(output)))

    return hook


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    compiled = compiled or any(isinstance(module, torch._dynamo.OptimizedModule) for module in model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


def _version(value: Any) -> int:
    """How often a tensor was written, where that is counted."""
    traced = torch.compiler.is_compiling() or not isinstance(value, Tensor) or value.is_inference()
    return 0 if traced else value._version
