"""Distillation around two models that stay as they are."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cid import _checks
from cid.functional import CIDOutput
from cid.head import FoldedHead, InterventionalHead
from cid.losses import CIDLoss

# RemovableHandle draws its ids from an unguarded counter; replicas run in threads of one process.
_registration = threading.Lock()


@contextmanager
def _captured(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The (input, output) pairs of `layer` in the forwards within the block; nothing stays on the layer afterwards."""
    calls: list[tuple[Tensor, Tensor]] = []
    if not torch.compiler.is_dynamo_compiling():
        capture: AbstractContextManager[object] = _hook(layer, calls)
    elif _is_a_product(layer):
        capture = _Products(cast(nn.Linear, layer), calls)
    else:
        torch._dynamo.graph_break(
            msg=f"cid captures a {type(layer).__name__} with hooks, parametrizations or a forward of its own by a hook"
        )
        capture = _hook(layer, calls)
    with capture:
        yield calls


def _is_a_product(layer: nn.Module) -> bool:
    """Whether a layer does what `torch.nn.Linear` does, and nothing else."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) is nn.Linear and not hooked and "forward" not in layer.__dict__


@contextmanager
def _hook(layer: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # Replicas of one layer share their hooks: keep what this very one computes.
        if module is layer:
            calls.append((next(iter((*args, *kwargs.values()))), output))

    with _registration:
        handle = layer.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        with _registration:
            handle.remove()


class _Products(TorchFunctionMode):
    """Keeps input and output of a linear layer's products: what a hook sees, but without breaking a graph."""

    def __init__(self, layer: nn.Linear, calls: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.weight, self.bias, self.calls = layer.weight, layer.bias, calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        # As the layer itself calls it: who uses its weight otherwise is not the layer.
        if func is F.linear and len(args) == 3 and args[1] is self.weight and args[2] is self.bias:
            if self.bias is None and self.calls:  # the second could be anybody's
                raise RuntimeError("the weight of a layer without a bias is used twice: a hook must tell by whom")
            self.calls.append((args[0], output))
        return output


def _features_and_logits(model: nn.Module, layer_name: str, x: Any, role: str) -> tuple[Tensor, Tensor]:
    """Input and output of the model's classifying layer for the batch `x`; of its last call, if it is used twice."""
    # Looked up at each call, not kept: a replica has a layer of its own under the same name.
    with _captured(model.get_submodule(layer_name)) as calls:
        model(**x) if isinstance(x, Mapping) else model(x)
    if not calls:
        raise RuntimeError(
            f"{role}: its layer {layer_name!r} was not called in the forward; name another layer, or, if the model was "
            "compiled and is called by itself, too, compile the distiller instead"
        )
    features, logits = calls[-1]
    if features.ndim != 2:
        raise ValueError(
            f"{role}: the input of its layer {layer_name!r} has shape {tuple(features.shape)}, accepted: (B, D)"
        )
    return features, logits


@torch.no_grad()
def _ask_teacher(teacher: nn.Module, layer_name: str, x: Any) -> tuple[Tensor, Tensor]:
    """The teacher's features and logits, in eval mode."""
    # Also where somebody called train() on the teacher, or on a part of it, behind our back.
    if any(module.training for module in teacher.modules()):
        teacher.eval()
    return _features_and_logits(teacher, layer_name, x, "teacher")


def teacher_outputs(
    teacher: nn.Module, x: Any, *, num_classes: int, teacher_layer: str | None = None
) -> tuple[Tensor, Tensor]:
    """What a `Distiller` reads off a teacher: the features (B, Dt) and the logits (B, C) of a batch.

    The teacher runs, and stays, in eval mode, without gradients. See `cid.cache` for keeping what this yields.

    Args:
        teacher: A classifier.
        x: The batch that it takes.
        num_classes: C.
        teacher_layer: Name of its classifying layer, where it is not the last fitting `torch.nn.Linear`.

    Raises:
        ValueError: The teacher has no fitting layer, or not one that reads rows; the message lists what was found.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
        >>> [value.shape for value in teacher_outputs(teacher, torch.randn(8, 20), num_classes=5)]
        [torch.Size([8, 64]), torch.Size([8, 5])]
    """
    return _ask_teacher(teacher, _classifying_layer(teacher, teacher_layer, num_classes, "teacher"), x)


def _classifying_layer(model: nn.Module, layer_name: str | None, num_classes: int, role: str) -> str:
    """The name of the last linear layer that yields `num_classes` values, or of the one that the user named."""
    if layer_name is not None:
        named = dict(model.named_modules())
        if layer_name not in named:
            raise ValueError(f"{role}_layer: got {layer_name!r}, accepted: a module of the {role}: {_listing(model)}")
        layer = named[layer_name]
        if not isinstance(getattr(layer, "in_features", None), int) or not hasattr(layer, "out_features"):
            raise ValueError(
                f"{role}_layer: {layer_name!r} is a {type(layer).__name__}, accepted: a layer with in_features and "
                "out_features, as torch.nn.Linear has"
            )
        if layer.out_features != num_classes:
            raise ValueError(
                f"{role}_layer: {layer_name!r} yields {layer.out_features} values, accepted: num_classes={num_classes}"
            )
        return layer_name
    fitting = [name for name, layer in _linear_layers(model) if layer.out_features == num_classes]
    if not fitting:
        raise ValueError(
            f"{role}: no linear layer yields num_classes={num_classes} values; found: {_listing(model)}. "
            f"Name the classifying layer with {role}_layer"
        )
    return fitting[-1]


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _listing(model: nn.Module) -> str:
    layers = [f"{name!r} ({layer.in_features} -> {layer.out_features})" for name, layer in _linear_layers(model)]
    return ", ".join(layers) or "no linear layer at all"


class InterventionalStudent(nn.Module):
    """A distilled student with its parts side by side: what a run saves, and what `fold` makes a model to ship of.

    It maps an input to the interventional logits z, and stands on its own, with copies of the student, the head and the
    contexts as they were; see `Distiller.student`.

    Attributes:
        model: The student.
        layer_name: Its classifying layer.
        head: Its `InterventionalHead`.
        context: M, shape (C, Ds), a buffer.
    """

    context: Tensor

    def __init__(self, model: nn.Module, layer_name: str, head: InterventionalHead, context: Tensor) -> None:
        super().__init__()
        self.model = model
        self.layer_name = layer_name
        self.head = head
        self.register_buffer("context", context)

    def forward(self, x: Any) -> Tensor:
        """The interventional logits z of a batch, shape (B, C)."""
        features, logits = _features_and_logits(self.model, self.layer_name, x, "student")
        z: Tensor = self.head(features, logits, self.context)
        return z

    def fold(self) -> nn.Module:
        """A copy of the model whose classifying layer yields z, by a `cid.FoldedHead`; see `Distiller.student`."""
        return with_head(copy.deepcopy(self.model), self.layer_name, self.head.fold(self.context))


def with_head(model: nn.Module, layer_name: str, head: FoldedHead) -> nn.Module:
    """Attach a folded head to a model's classifying layer, in place: what the layer yields becomes z."""
    layer = model.get_submodule(layer_name)
    layer.add_module("intervention", head)
    # A hook, not another layer in its place: the layer keeps its type, its weights their names, and whoever else holds
    # the layer gets z as well.
    layer.register_forward_hook(_intervene)
    return model


def _intervene(layer: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
    """Without state, so that it can be copied, replicated, compiled, exported and called from several threads."""
    z: Tensor = cast(nn.Module, layer.intervention)(args[0], logits)
    return z


class Distiller(nn.Module):
    """A student, its teacher and the loss between them, around any two classifiers.

    Input and output of each model's last `torch.nn.Linear` that yields `num_classes` values are captured while it runs,
    by a hook that is there only then, or in what `torch.compile` traces: no model is edited, and its own forward is
    called. The teacher's parameters stop requiring gradients; it runs in eval mode and without gradients, whatever
    `train()` is called. Of a model that does more with that layer's output, as averaging two heads, the layer alone is
    distilled.

    It takes the student's place in a training loop: `distiller(x, target)` yields the losses, `distiller(x)` the logits
    that the student predicts with. A batch x that is a mapping is passed on by name, `model(**x)`, as Hugging Face's
    models take theirs.

    `DistributedDataParallel` around it needs `find_unused_parameters=True` where there are warm-up epochs, whose loss
    does not reach the head. `torch.nn.DataParallel` loses what its replicas gather.

    Args:
        student: A module that takes the batch x.
        teacher: Another; may be larger, of another architecture and feature size. None where its outputs are at hand:
            each call is given them.
        num_classes: C.
        beta: Weight of the sample representation; see `cid.CIDLoss`, as for all that follow.
        gamma: Weight of the class representation.
        temperature: T.
        alpha: Weight of ce and kd.
        warmup_epochs: E0.
        context_momentum: mu of the bank.
        steps_per_turn: N, for a loop that counts steps: N of them are an epoch, and `epoch_end` is not needed.
        differentiable_context: Whether gradients flow through the marginal context.
        ignore_index: A label that marks a sample as unlabelled.
        student_layer: Name of the student's classifying layer, where it is not the last fitting `torch.nn.Linear`.
        teacher_layer: Likewise.
        teacher_dim: Dt, the size of the teacher's features; with `teacher=None` alone.
        backend: See `cid.functional`.

    Attributes:
        student_model: The student as given.
        teacher_model: The teacher as given, or None.
        criterion: The `cid.CIDLoss`.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument is out of range, a model has no fitting layer (the message lists what was found), or the
            teacher, whose parameters stop being trained, shares some with the student.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> student = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> teacher = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
        >>> distiller = Distiller(student, teacher, num_classes=5, beta=10.0, gamma=1.0, warmup_epochs=1)
        >>> optimizer = torch.optim.SGD(distiller.param_groups(weight_decay=5e-4), lr=0.05, momentum=0.9)
        >>> x, y = torch.randn(8, 20), torch.arange(8) % 5
        >>> for epoch in range(2):
        ...     optimizer.zero_grad()
        ...     distiller(x, y).loss.backward()
        ...     optimizer.step()
        ...     distiller.epoch_end()
        >>> distiller.student()(x).shape
        torch.Size([8, 5])
    """

    # See CIDLoss: these are gathered by each rank for itself.
    _ddp_params_and_buffers_to_ignore = tuple(f"criterion.{name}" for name in CIDLoss._ddp_params_and_buffers_to_ignore)

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        num_classes: int,
        beta: float,
        gamma: float,
        temperature: float = 4.0,
        alpha: float = 1.0,
        warmup_epochs: int = 20,
        context_momentum: float = 0.0,
        steps_per_turn: int | None = None,
        differentiable_context: bool = False,
        ignore_index: int = -100,
        student_layer: str | None = None,
        teacher_layer: str | None = None,
        teacher_dim: int | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"student: got {type(student).__name__}, accepted: torch.nn.Module")
        if teacher is not None and not isinstance(teacher, nn.Module):
            raise TypeError(f"teacher: got {type(teacher).__name__}, accepted: torch.nn.Module or None")
        if (teacher is None) == (teacher_dim is None):
            raise ValueError(
                f"teacher_dim: got {teacher_dim}, accepted: the size of the teacher's features where teacher is None, "
                "and None where it is a module"
            )
        if teacher is None and teacher_layer is not None:
            raise ValueError(f"teacher_layer: got {teacher_layer!r}, accepted: None where teacher is None")
        _checks.size("num_classes", num_classes)
        self.student_layer = _classifying_layer(student, student_layer, num_classes, "student")
        self.teacher_layer = teacher_layer
        if teacher is not None:
            self.teacher_layer = _classifying_layer(teacher, teacher_layer, num_classes, "teacher")
            teacher_dim = _in_features(teacher, self.teacher_layer)
        assert teacher_dim is not None
        self.criterion = CIDLoss(
            _in_features(student, self.student_layer),
            teacher_dim,
            num_classes,
            beta=beta,
            gamma=gamma,
            temperature=temperature,
            alpha=alpha,
            warmup_epochs=warmup_epochs,
            context_momentum=context_momentum,
            steps_per_turn=steps_per_turn,
            differentiable_context=differentiable_context,
            ignore_index=ignore_index,
            backend=backend,
        )
        if hasattr(student.get_submodule(self.student_layer), "intervention"):
            raise ValueError(
                f"student: its layer {self.student_layer!r} has an interventional head already, accepted: a student "
                "without one, as Distiller.student(head=False) gives it"
            )
        if teacher is not None and any(p.requires_grad for p in set(student.parameters()) & set(teacher.parameters())):
            raise ValueError(
                "teacher: shares parameters that are trained with the student, accepted: parameters of its own"
            )
        parameter = next(student.parameters(), None)
        if parameter is not None:
            self.criterion.to(parameter.device, parameter.dtype)
        self.student_model = student
        self.teacher_model = None if teacher is None else teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Distiller":
        """Set the mode of the student and the criterion; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher_model is not None:
            self.teacher_model.eval()
        return self

    @overload
    def forward(self, x: Any, target: Tensor, teacher: tuple[Tensor, Tensor] | None = None) -> CIDOutput: ...

    @overload
    def forward(self, x: Any, target: None = None) -> Tensor: ...

    def forward(
        self, x: Any, target: Tensor | None = None, teacher: tuple[Tensor, Tensor] | None = None
    ) -> CIDOutput | Tensor:
        """The losses of a batch, or, without labels, what the student predicts.

        Args:
            x: What both models take.
            target: Labels, int64, shape (B,). None: see `predict`, here with gradients.
            teacher: The teacher's features (B, Dt) and logits (B, C) of this very batch, augmented as the student sees
                it, in place of running the teacher; see `cid.cache`.

        Raises:
            ValueError: There is no teacher, neither here nor in the distiller; or see `cid.CIDLoss`.
        """
        if target is None:
            return self._predict(x)
        if teacher is None:
            if self.teacher_model is None or self.teacher_layer is None:
                raise ValueError("teacher: not given, accepted: (features, logits), as the distiller has no teacher")
            teacher = _ask_teacher(self.teacher_model, self.teacher_layer, x)
        else:
            _checks.shape(
                "teacher[0]", _checks.tensor("teacher[0]", teacher[0]), ("B", self.criterion.adapter.out_features)
            )
        student = _features_and_logits(self.student_model, self.student_layer, x, "student")
        output: CIDOutput = self.criterion(*student, *teacher, target)
        return output

    @property
    def warming_up(self) -> bool:
        """Whether the current epoch is one of the warm-up: the head is untrained."""
        return self.criterion.warming_up

    def epoch_end(self) -> None:
        """Turn the bank of contexts and count the epoch; call it after the epoch's evaluation.

        With `steps_per_turn`, which does so in its own time, do nothing.
        """
        self.criterion.epoch_end()

    @torch.no_grad()
    def predict(self, x: Any) -> Tensor:
        """The logits that the student predicts with, shape (B, C), without gradient, in its current mode.

        These are the interventional z; in the warm-up epochs, in which the head is untrained, the student's own s.
        """
        return self._predict(x)

    def _predict(self, x: Any) -> Tensor:
        features, logits = _features_and_logits(self.student_model, self.student_layer, x, "student")
        return logits if self.warming_up else self.criterion.predict(features, logits)

    def student(self, *, head: bool = True, fold: bool = True) -> nn.Module:
        """The student as it is now, in eval mode, as a module that shares nothing with the training.

        A copy of `student_model` whose classifying layer yields the interventional logits z in place of its own logits
        s, by a `cid.FoldedHead` attached to it as `intervention`. So it is called as the model is and returns what the
        model returns, with z for s; a forward that goes on behind the layer goes on with z. The weights keep their
        names. `torch.compile`, `torch.export` and `torch.onnx.export` take it.

        Args:
            head: False for a plain copy, which predicts with s: for those who can't change the network.
            fold: False for a `cid.InterventionalStudent`, which keeps head and contexts as they were trained.

        Example:
            >>> student, teacher = nn.Linear(8, 3), nn.Linear(8, 3)
            >>> distiller = Distiller(student, teacher, num_classes=3, beta=1.0, gamma=1.0, warmup_epochs=0)
            >>> x = torch.randn(2, 8)
            >>> torch.allclose(distiller.student()(x), distiller.predict(x), atol=1e-6)
            True
            >>> torch.equal(distiller.student(head=False)(x), student(x))
            True
        """
        model = copy.deepcopy(self.student_model).eval()
        if not head:
            return model
        if fold:
            folded = self.criterion.head.fold(self.criterion.bank.context)
            return with_head(model, self.student_layer, folded.eval())
        return InterventionalStudent(
            model,
            self.student_layer,
            copy.deepcopy(self.criterion.head),
            self.criterion.bank.context.clone(),
        ).eval()

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """What an optimizer trains: the student and the head with `weight_decay`, the adapter without."""
        student = [parameter for parameter in self.student_model.parameters() if parameter.requires_grad]
        head, adapter = self.criterion.param_groups(weight_decay)
        return [{"params": student + head["params"], "weight_decay": weight_decay}, adapter]


def _in_features(model: nn.Module, layer_name: str) -> int:
    size = model.get_submodule(layer_name).in_features
    assert isinstance(size, int)
    return size
