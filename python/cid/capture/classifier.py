"""What a classifier makes of a batch, read off its own forward: a representation, and the logits that it yields."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Layers = str | tuple[str, ...]


class _Size(NamedTuple):
    """What a classifying layer reads and yields; whether it does so at each position of an image."""

    inputs: int
    outputs: int
    positions: bool


class Classifier:
    """Where a model's representation and logits are found.

    The logits s, shape (B, C), are what the model yields: its output, or the member of a tuple, list or mapping that is
    called `logits`, else the one that a named layer yields, else the first of that shape. The representation f, shape
    (B, D), is what its classifying layer reads; of a 1 x 1 convolution, the mean over the positions; of a single token,
    (B, 1, D), the token.

    That s is this layer's output, or its average over the positions, is looked at on the first batch in each mode. Not
    where the layers are given as a tuple: f is then what they read, side by side, whatever the model makes of it.

    Args:
        model: A classifier; it is not kept.
        layers: Name of its classifying layer, or a sequence of names. None for the last fitting one.
        num_classes: C.
        role: What to call the model in errors, `"student"` or `"teacher"`.

    Attributes:
        layers: The name, or a tuple of names.
        names: The names, one or several.
        dim: D.

    Raises:
        TypeError: `layers` has a wrong type.
        ValueError: There is no such layer, or none that fits; the message lists what was found.
    """

    layers: Layers

    def __init__(self, model: nn.Module, layers: str | Sequence[str] | None, num_classes: int, role: str) -> None:
        self.num_classes = num_classes
        self.role = role
        self._named = isinstance(layers, str)
        lazy = next((name for name, value in _tensors(model) if nn.parameter.is_lazy(value)), None)
        if lazy is not None:
            raise ValueError(
                f"{role}: {lazy!r} has no size yet, accepted: a model whose layers have theirs; run one batch through "
                "it first"
            )
        if layers is None:
            fitting = _fitting(model, num_classes)
            if not fitting:
                raise ValueError(
                    f"{role}: no linear layer yields num_classes={num_classes} values; found: {_listing(model)}. "
                    f"Name the classifying layer with {role}_layer"
                )
            self.layers = fitting[-1]
        elif isinstance(layers, str):
            self.layers = layers
        elif isinstance(layers, Sequence) and layers and all(isinstance(name, str) for name in layers):
            self.layers = tuple(layers)
        else:
            raise TypeError(f"{role}_layer: got {layers!r}, accepted: a name, a sequence of names, or None")
        self.names = (self.layers,) if isinstance(self.layers, str) else self.layers
        sizes = [self._size_of(model, name) for name in self.names]
        self._inputs = [(size.inputs, size.positions) for size in sizes]
        self.dim = sum(size.inputs for size in sizes)
        # Two attributes, not a set: torch.compile guards each by itself.
        self._checked_training = self._checked_eval = not isinstance(self.layers, str)

    @property
    def yields_logits(self) -> bool:
        """Whether what the model yields is the layer's output as it is."""
        return isinstance(self.layers, str) and not self._inputs[0][1]

    def checked(self) -> "Classifier":
        """This, with nothing left to be looked at on the first batch."""
        self._checked_training = self._checked_eval = True
        return self

    def _size_of(self, model: nn.Module, name: str) -> _Size:
        argument, named = f"{self.role}_layer", dict(model.named_modules())
        if name not in named:
            raise ValueError(f"{argument}: got {name!r}, accepted: a module of the {self.role}: {_listing(model)}")
        size = _size(named[name], self.num_classes)
        if size is None:
            raise ValueError(
                f"{argument}: {name!r} is a {type(named[name]).__name__}, accepted: a linear layer, a 1 x 1 "
                f"convolution, or a module with a weight of num_classes={self.num_classes} rows"
            )
        if size.outputs != self.num_classes:
            raise ValueError(
                f"{argument}: {name!r} yields {size.outputs} values, accepted: num_classes={self.num_classes}"
            )
        return size

    def read(self, model: nn.Module, x: Any) -> tuple[Tensor, Tensor]:
        """The representation f (B, D) and the logits s (B, C) of a batch; of a layer's last call, if it has several.

        Raises:
            RuntimeError: A layer was not called.
            ValueError: The model yields no logits, or not those of the layer. Its buffers are as they were.
        """
        # Looked up at each call, not kept: a replica has layers of its own under the same names.
        layers = [model.get_submodule(name) for name in self.names]
        checked = self._checked_training if model.training else self._checked_eval
        if torch.compiler.is_dynamo_compiling():
            if all(_is_a_product(layer) for layer in layers):
                return self._traced(model, layers, x, checked)
            kinds = ", ".join(type(layer).__name__ for layer in layers)
            torch._dynamo.graph_break(
                msg=f"cid captures a {kinds} with hooks, parametrizations or a forward of its own by a hook"
            )
            if not checked:
                first: tuple[Tensor, Tensor] = torch._dynamo.disable(self._first)(model, layers, x)  # type: ignore[no-untyped-call]
                return first
        elif not checked:
            return self._first(model, layers, x)
        return self._parts(*_run(model, x, layers))

    def _parts(self, output: Any, calls: list[list["_Call"]]) -> tuple[Tensor, Tensor]:
        features = []
        for name, made in zip(self.names, calls, strict=True):
            if not made:
                raise RuntimeError(
                    f"{self.role}: its layer {name!r} was not called in the forward; name another layer, or, if the "
                    "model was compiled and is called by itself, too, compile the distiller instead"
                )
            features.append(made[-1].features)
        if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] == self.num_classes:
            return self.features(features), output
        return self.features(features), self._logits(output, calls[-1][-1].output)

    def features(self, read: Sequence[Any]) -> Tensor:
        """The representation, of what each layer reads."""
        rows = [self._rows(*each) for each in zip(self.names, self._inputs, read, strict=True)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def _rows(self, name: str, size: tuple[int, bool], features: Any) -> Tensor:
        dim, positions = size
        if not isinstance(features, Tensor):
            raise ValueError(
                f"{self.role}: the input of its layer {name!r} is a {type(features).__name__}, accepted: a tensor"
            )
        if features.is_quantized:
            features = features.dequantize()
        if positions and features.ndim > 2:
            features = features.flatten(2).mean(2)
        elif features.ndim == 3 and features.shape[1] == 1:  # a single token
            features = features.squeeze(1)
        if features.ndim != 2 or features.shape[1] != dim:
            accepted = f"(B, {dim})" if features.ndim == 2 else "(B, D)"
            raise ValueError(
                f"{self.role}: the input of its layer {name!r} has shape {tuple(features.shape)}, accepted: {accepted}"
            )
        rows: Tensor = features
        return rows

    def _logits(self, output: Any, made: Any) -> Tensor:
        key = logits_key(output, self.num_classes, made if self._named else None)
        if key is None:
            raise ValueError(
                f"{self.role}: yields {_described(output)}, accepted: logits of shape (B, {self.num_classes}), or a "
                "tuple, list or mapping that has them"
            )
        logits: Tensor = output if isinstance(output, Tensor) else output[key]
        return logits

    def _first(self, model: nn.Module, layers: list[nn.Module], x: Any) -> tuple[Tensor, Tensor]:
        """`read`, and whether the logits are the layer's; costs a few microseconds for each operation of the model."""
        kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if model.training]
        lineage, modules = _Lineage(self.num_classes), dict(model.named_modules())
        # Not all, which would hold all that the model computes.
        watched = {name: m for name, m in modules.items() if name in self.names or _size(m, self.num_classes)}
        try:
            # Of what runs compiled the lineage is not seen.
            with _uncompiled(model), lineage:
                output, made = _run(model, x, [*watched.values()], lineage)
            calls = dict(zip(watched, made, strict=True))
            parts = self._parts(output, [calls[name] for name in self.names])
            if isinstance(self.layers, str):
                self._check(model, self.layers, lineage, parts[1], calls)
        except Exception:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)
            raise
        if model.training:
            self._checked_training = True
        else:
            self._checked_eval = True
        return parts

    def _check(
        self, model: nn.Module, name: str, lineage: "_Lineage", logits: Tensor, calls: Mapping[str, list["_Call"]]
    ) -> None:
        """Raise an error unless the logits are made by the layer, and by nothing after it."""
        makers = [other for other, made in calls.items() if made and lineage.leads(made[-1], logits)]
        if name not in makers:
            # Of those within each other the innermost, which has the weight; the model itself is no part of it.
            hint = f"It is that of {makers[-1]!r}: name this. " if makers and makers[-1] else ""
            raise ValueError(self._refusal(model, name, hint))

    def _refusal(self, model: nn.Module, name: str, hint: str = "") -> str:
        fitting, argument = tuple(_fitting(model, self.num_classes)), f"{self.role}_layer"
        return (
            f"{self.role}: what it yields is not the output of its layer {name!r} (or the mean of that over the "
            f"positions of an image), accepted as {argument}: a layer whose output it is. {self.num_classes} values "
            f"come of {', '.join(map(repr, fitting)) or 'no linear layer'}. {hint}Or give names of layers as a tuple, "
            f"say {argument}={fitting or (name,)!r}: what these read, side by side, is then the representation, and "
            "what the model yields are its logits, whatever it makes them of"
        )

    def _traced(self, model: nn.Module, layers: list[Any], x: Any, checked: bool) -> tuple[Tensor, Tensor]:
        """`read` in what `torch.compile` traces, without a break of the graph."""
        lineage = _Lineage(self.num_classes, layers)
        with lineage:
            output = _call(model, x)
        parts = self._parts(output, lineage.calls)
        if not checked and not lineage.leads(lineage.calls[0][-1], parts[1]):
            raise ValueError(self._refusal(model, self.names[0]))
        return parts


def _call(model: nn.Module, x: Any) -> Any:
    return model(**x) if isinstance(x, Mapping) else model(x)


# --- the layers of a model -------------------------------------------------------------------------------------------


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


# --- what a model yields ---------------------------------------------------------------------------------------------


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


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    members = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    shapes = [str(tuple(value.shape)) for value in members if isinstance(value, Tensor)]
    return f"a {type(output).__name__}" + (f" with tensors of shapes {', '.join(shapes)}" if shapes else "")


# --- capturing -------------------------------------------------------------------------------------------------------


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


def _is_a_product(layer: nn.Module) -> bool:
    """Whether a layer does what `torch.nn.Linear` or `torch.nn.Conv2d` does, and nothing else."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) in (nn.Linear, nn.Conv2d) and not hooked and "forward" not in layer.__dict__


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    compiled = compiled or any(isinstance(module, torch._dynamo.OptimizedModule) for module in model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


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


class _Lineage(TorchFunctionMode):
    """Of which tensor another is a view or an average, from what PyTorch computes within the block.

    In a trace it keeps the layers' products as well: what hooks see, but without breaking a graph.
    """

    def __init__(self, num_classes: int, layers: Sequence[Any] = ()) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weights = [(layer.weight, layer.bias) for layer in layers]
        self.calls: list[list[_Call]] = [[] for _ in layers]
        # What came of what, by which kind of operation, and its version then.
        self.steps: list[tuple[Tensor, Tensor, str, int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        # As the layers themselves call them: who uses their weights otherwise is not the layer.
        if self.calls and (func is F.linear or func is F.conv2d) and len(args) >= 3:
            for (weight, bias), made in zip(self.weights, self.calls, strict=True):
                if args[1] is weight and args[2] is bias:
                    if bias is None and made:  # the second could be anybody's
                        raise RuntimeError(
                            "the weight of a layer without a bias is used twice: a hook must tell by whom"
                        )
                    made.append(_Call(args[0], output, len(self.steps)))
        if args and isinstance(output, Tensor) and self.sees(output):
            if func in _KINDS:
                self.steps.append((output, args[0], _KINDS[func], _version(output)))
            elif output is args[0]:
                self.steps.append((output, args[0], "changed", 0))
        return output

    def sees(self, tensor: Tensor) -> bool:
        """Whether a tensor could be logits, of a sample or of a position."""
        return tensor.ndim >= 2 and tensor.shape[1] == self.num_classes

    def leads(self, call: _Call, logits: Tensor) -> bool:
        """Whether logits are a layer's output, or its average over positions, and nothing was done to them besides."""
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
