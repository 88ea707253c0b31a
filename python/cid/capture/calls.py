"""What layers read and yield while a model runs its own forward."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from cid.capture.layers import named

Kept = TypeVar("Kept")


class Call(NamedTuple):
    """What a layer read and yielded in one call.

    Attributes:
        input: Its first argument, given by place or by name; None where it takes none.
        output: What it yielded.
    """

    input: Any
    output: Any


def capture(model: nn.Module, x: Any, layers: Sequence[str]) -> tuple[Any, dict[str, Call]]:
    """Run a model on a batch, and keep what the named layers read and yielded meanwhile.

    For losses on what lies between (hints, as FitNets match them), probes, and outputs to be stored. The model runs as
    it is called, `model(x)`, in its own mode, with gradients or without, as the caller has it; they flow through what
    is captured. Hooks are on the layers during this call alone; what other threads compute meanwhile, with the same
    model or with replicas, is kept apart (not within what was compiled).

    Of a layer that is called several times, the last call counts. What is kept are the tensors themselves: one that a
    later operation writes to, as `nn.ReLU(inplace=True)` does, is found as that left it.

    In what `torch.compile` traces, the graph breaks here (`fullgraph=True` says so), and the model is compiled by
    itself, with the hooks in it; by PyTorch 2.10 anew at each call, until it gives up and runs it as it is. A model
    that was compiled and called without hooks before may leave them out still: then its layers were not called, which
    is an error.

    Args:
        model: Any module.
        x: The batch that it takes; a mapping is passed on by name, `model(**x)`.
        layers: Names of modules in it, as `named_modules` has them; `""` is the model itself.

    Returns:
        What the model yields, and a `Call` for each name, in the order of the names.

    Raises:
        TypeError: `model` is no module, or `layers` no sequence of names.
        ValueError: There is no such layer; the message lists those beside it.
        RuntimeError: A layer was not called in the forward. The model has run, and what it keeps (running means, say)
            is as that left it.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> logits, calls = capture(model, torch.randn(8, 20), ["0", "2"])
        >>> logits.shape, calls["0"].output.shape, calls["2"].input.shape
        (torch.Size([8, 5]), torch.Size([8, 16]), torch.Size([8, 16]))
        >>> calls["2"].output is logits
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, accepted: torch.nn.Module")
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(one, str) for one in layers):
        raise TypeError(f"layers: got {layers!r}, accepted: a sequence of names")
    modules = [named(model, name) for name in layers]
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(msg="cid.capture captures layers by hooks")
    output, calls = run(model, x, modules, Call)
    captured = {}
    for name, call in zip(layers, calls, strict=True):
        if call is None:
            raise RuntimeError(
                f"layers: {name!r} was not called in the forward; name another layer, or, if the model was compiled "
                "and is called by itself, too, compile what captures instead"
            )
        captured[name] = call
    return output, captured


# RemovableHandle draws its ids from an unguarded counter; replicas run in threads of one process.
_registration = threading.Lock()


def run(
    model: nn.Module, x: Any, layers: Sequence[nn.Module], keep: Callable[[Any, Any], Kept]
) -> tuple[Any, list[Kept | None]]:
    """What a model yields, and `keep(input, output)` of each layer's last call; None of one that was not called.

    Nothing stays on the layers afterwards.
    """
    calls: list[Kept | None] = [None] * len(layers)
    handles = []
    try:
        with _registration:
            for i, layer in enumerate(layers):
                handles.append(layer.register_forward_hook(_keeper(layer, calls, i, keep), with_kwargs=True))
        return apply(model, x), calls
    finally:
        with _registration:
            for handle in handles:
                handle.remove()


def apply(model: nn.Module, x: Any) -> Any:
    """What a model yields for a batch, which may be a mapping of its arguments."""
    return model(**x) if isinstance(x, Mapping) else model(x)


def _keeper(
    layer: nn.Module, calls: list[Kept | None], i: int, keep: Callable[[Any, Any], Kept]
) -> Callable[..., None]:
    caller = thread()

    # Without an output it is called as another thread's, which has been removed between PyTorch's two looks at it.
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        # Replicas of one layer share their hooks, and one model may serve several threads: keep what this very layer
        # computes for this caller, where that is known.
        if module is layer and (not caller or thread() in (0, caller)):
            calls[i] = keep(args[0] if args else next(iter(kwargs.values()), None), output)

    return hook


def thread() -> int:
    """The thread that calls; 0 in a trace, which can't ask."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def buffers_kept(model: nn.Module) -> Callable[[], None]:
    """What makes a model's buffers again what they are now; in eval mode, where no layer writes to them, nothing."""
    training = any(module.training for module in model.modules())
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if training]

    @torch.no_grad()
    def put_back() -> None:
        for buffer, value in kept:
            buffer.copy_(value)

    return put_back


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run a model, or parts of it, as they are, where they were compiled."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    compiled = compiled or any(isinstance(module, torch._dynamo.OptimizedModule) for module in model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield
