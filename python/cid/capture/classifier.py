"""What a classifier makes of a batch, read off its own forward: a representation, and the logits that it yields."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import cid._checks as check
from cid.capture.calls import Call, apply, buffers_kept, run, uncompiled
from cid.capture.layers import Size, fitting, is_product, listing, size_of, unsized
from cid.capture.lineage import Lineage, Made
from cid.capture.outputs import described, logits_key

Layers = str | tuple[str, ...]


class Classifier:
    """Where a model's representation and logits are found.

    The logits s, shape (B, C), are what the model yields: its output, or the member of a tuple, list or mapping that is
    called `logits`, else the one that a named layer yields, else the first of that shape. The representation f, shape
    (B, D), is what its classifying layer reads; of a 1 x 1 convolution, the mean over the positions; of a single token,
    (B, 1, D), the token.

    On the first batch in each mode it is checked that s is this layer's output, or its average over the positions; not
    where the layers are given as a tuple: f is then what they read, side by side, whatever the model makes of it.

    Args:
        model: A classifier; it is not kept.
        num_classes: C.
        layers: Name of its classifying layer, or a sequence of names. None for the last fitting one.
        role: What errors call the model, and its layers: `"student"` has a `student_layer`.

    Attributes:
        num_classes: C.
        layers: The name, or a tuple of names.
        names: The names, one or several.
        dim: D.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument is out of range, or there is no such layer, or none that fits; the message lists what
            was found.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> classifier = Classifier(model, num_classes=5)
        >>> classifier.layers, classifier.dim
        ('2', 16)
        >>> features, logits = classifier.read(model, torch.randn(8, 20))
        >>> features.shape, logits.shape
        (torch.Size([8, 16]), torch.Size([8, 5]))
    """

    layers: Layers

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        layers: str | Sequence[str] | None = None,
        *,
        role: str | None = None,
    ) -> None:
        check.size("num_classes", num_classes)
        self.num_classes = num_classes
        self._role, self._argument = ("model", "layers") if role is None else (role, f"{role}_layer")
        if not isinstance(model, nn.Module):
            raise TypeError(f"{self._role}: got {type(model).__name__}, accepted: torch.nn.Module")
        lazy = unsized(model)
        if lazy is not None:
            raise ValueError(
                f"{self._role}: {lazy!r} has no size yet, accepted: a model whose layers have theirs; run one batch "
                "through it first"
            )
        self._named = isinstance(layers, str)
        if layers is None:
            found = fitting(model, num_classes)
            if not found:
                raise ValueError(
                    f"{self._role}: no linear layer yields num_classes={num_classes} values; found: {listing(model)}. "
                    f"Name the classifying layer with {self._argument}"
                )
            self.layers = found[-1]
        elif isinstance(layers, str):
            self.layers = layers
        elif isinstance(layers, Sequence) and layers and all(isinstance(name, str) for name in layers):
            self.layers = tuple(layers)
        else:
            raise TypeError(f"{self._argument}: got {layers!r}, accepted: a name, a sequence of names, or None")
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
        """The classifier itself, with nothing left to be checked on a first batch."""
        self._checked_training = self._checked_eval = True
        return self

    def _size_of(self, model: nn.Module, name: str) -> Size:
        argument, named = self._argument, dict(model.named_modules())
        if name not in named:
            raise ValueError(f"{argument}: got {name!r}, accepted: a module of the {self._role}: {listing(model)}")
        size = size_of(named[name], self.num_classes)
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
            if all(is_product(layer) for layer in layers):
                return self._traced(model, layers, x, checked)
            kinds = ", ".join(type(layer).__name__ for layer in layers)
            torch._dynamo.graph_break(
                msg=f"cid captures a {kinds} with hooks, parametrizations or a forward of its own by a hook"
            )
            if not checked:
                first: tuple[Tensor, Tensor] = torch._dynamo.disable(self._first)(model, x)  # type: ignore[no-untyped-call]
                return first
        elif not checked:
            return self._first(model, x)
        return self._parts(*run(model, x, layers, Call))

    def _parts(self, output: Any, calls: Sequence[Call | Made | None]) -> tuple[Tensor, Tensor]:
        made = []
        for name, call in zip(self.names, calls, strict=True):
            if call is None:
                raise RuntimeError(
                    f"{self._role}: its layer {name!r} was not called in the forward; name another layer, or, if the "
                    "model was compiled and is called by itself, too, compile the distiller instead"
                )
            made.append(call)
        features = self.features([call.input for call in made])
        if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] == self.num_classes:
            return features, output
        return features, self._logits(output, made[-1].output)

    def features(self, read: Sequence[Any]) -> Tensor:
        """The representation, of what each layer reads."""
        rows = [self._rows(*each) for each in zip(self.names, self._inputs, read, strict=True)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def _rows(self, name: str, size: tuple[int, bool], features: Any) -> Tensor:
        dim, positions = size
        if not isinstance(features, Tensor):
            raise ValueError(
                f"{self._role}: the input of its layer {name!r} is a {type(features).__name__}, accepted: a tensor"
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
                f"{self._role}: the input of its layer {name!r} has shape {tuple(features.shape)}, accepted: {accepted}"
            )
        rows: Tensor = features
        return rows

    def _logits(self, output: Any, made: Any) -> Tensor:
        key = logits_key(output, self.num_classes, made if self._named else None)
        if key is None:
            raise ValueError(
                f"{self._role}: yields {described(output)}, accepted: logits of shape (B, {self.num_classes}), or a "
                "tuple, list or mapping that has them"
            )
        logits: Tensor = output if isinstance(output, Tensor) else output[key]
        return logits

    def _first(self, model: nn.Module, x: Any) -> tuple[Tensor, Tensor]:
        """Read, and look whether the logits are the layer's: a few microseconds for each operation of the model."""
        put_back = buffers_kept(model)
        lineage, modules = Lineage(self.num_classes), dict(model.named_modules())
        # Not all, which would hold all that the model computes.
        watched = {name: m for name, m in modules.items() if name in self.names or size_of(m, self.num_classes)}
        try:
            # Of what runs compiled the lineage is not seen.
            with uncompiled(model), lineage:
                output, made = run(model, x, [*watched.values()], lineage.made)
            calls = dict(zip(watched, made, strict=True))
            parts = self._parts(output, [calls[name] for name in self.names])
            if isinstance(self.layers, str):
                self._check(model, self.layers, lineage, parts[1], calls)
        except Exception:
            put_back()
            raise
        if model.training:
            self._checked_training = True
        else:
            self._checked_eval = True
        return parts

    def _check(
        self, model: nn.Module, name: str, lineage: Lineage, logits: Tensor, calls: Mapping[str, Made | None]
    ) -> None:
        """Raise an error unless the logits are made by the layer, and by nothing after it."""
        makers = [other for other, made in calls.items() if lineage.leads(made, logits)]
        if name not in makers:
            # Of those within each other the innermost, which has the weight; the model itself is no part of it.
            hint = f"It is that of {makers[-1]!r}: name this. " if makers and makers[-1] else ""
            raise ValueError(self._refusal(model, name, hint))

    def _refusal(self, model: nn.Module, name: str, hint: str = "") -> str:
        found, argument = tuple(fitting(model, self.num_classes)), self._argument
        return (
            f"{self._role}: what it yields is not the output of its layer {name!r} (or the mean of that over the "
            f"positions of an image), accepted as {argument}: a layer whose output it is. {self.num_classes} values "
            f"come of {', '.join(map(repr, found)) or 'no linear layer'}. {hint}Or give names of layers as a tuple, "
            f"say {argument}={found or (name,)!r}: what these read, side by side, is then the representation, and "
            "what the model yields are its logits, whatever it makes them of"
        )

    def _traced(self, model: nn.Module, layers: list[Any], x: Any, checked: bool) -> tuple[Tensor, Tensor]:
        """Read in what `torch.compile` traces, without a break of the graph."""
        lineage = Lineage(self.num_classes, layers)
        with lineage:
            output = apply(model, x)
        parts = self._parts(output, lineage.calls)
        if not checked and not lineage.leads(lineage.calls[0], parts[1]):
            raise ValueError(self._refusal(model, self.names[0]))
        return parts
