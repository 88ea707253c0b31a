"""Distillation around two models that stay as they are."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

import cid._checks as check
from cid._across import EXCHANGE, is_sharded, uncompiled
from cid.balance import AUTO, Balance
from cid.capture import Classifier, Layers
from cid.functional import CIDOutput
from cid.head import FoldedHead
from cid.losses import CIDLoss, ignored_by_ddp
from cid.student import InterventionalStudent, with_head
from cid.teacher import ask_teacher, teacher_outputs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Distiller", "InterventionalStudent", "teacher_outputs"]


class Distiller(nn.Module):
    """A student, its teacher and the loss between them, around any two classifiers.

    The logits s are what a model yields: a tensor (B, C), or in a tuple, list or mapping the member called `logits`,
    else the first of that shape (where the layer is named: the one that it makes). The representation f is what its
    classifying layer reads: the last linear layer or 1 x 1 convolution that yields `num_classes` values, or the one
    that is named. Of a convolution f is the mean over the positions, whether the model pools before it or after it.
    Both are captured while the model runs, by a hook that is there only then, or in what `torch.compile` traces: no
    model is edited, and its own forward is called.

    On the first batch in training and in eval mode it is checked that a model yields what this layer yields, as it is
    or averaged over the positions. A model that averages two heads, or goes on to log-probabilities, is refused, before
    anything has changed. Name its layers as a tuple then: `student_layer=("head", "head_dist")` makes f what these
    read, side by side, and s is what the model yields, whatever it makes it of. Where both read the same tensor, it is
    there twice: `("head",)` is enough.

    The teacher's parameters stop requiring gradients; it runs in eval mode and without gradients, whatever `train()` is
    called.

    It takes the student's place in a training loop: `distiller(x, target)` yields the losses, `distiller(x)` the logits
    that the student predicts with. A batch x that is a mapping is passed on by name, `model(**x)`, as Hugging Face's
    models take theirs.

    With `process_group` the batches of several ranks are parts of one, see `cid.CIDLoss`: within
    `DistributedDataParallel`, or sharded by `fully_shard`, the distiller trains as one process does with the whole
    batch. Without, each rank has batches of its own, and `DistributedDataParallel` needs `find_unused_parameters=True`
    where there are warm-up epochs, whose loss does not reach the head. `torch.nn.DataParallel` loses what its replicas
    gather.

    Args:
        student: A module that takes the batch x.
        teacher: Another; may be larger, of another architecture and feature size. None where its outputs are at hand:
            each call is given them.
        num_classes: C.
        beta: Weight of the sample representation; see `cid.CIDLoss`, as for all that follow. Or `"auto"`: as the
            gradients of the first batches tell, see `cid.balance.Balance`.
        gamma: Weight of the class representation, or `"auto"`.
        temperature: T.
        alpha: Weight of ce and kd.
        warmup_epochs: E0.
        context_momentum: mu of the bank.
        steps_per_turn: N, for a loop that counts steps: N of them are an epoch, and `epoch_end` is not needed.
        differentiable_context: Whether gradients flow through the marginal context.
        ignore_index: A label that marks a sample as unlabelled.
        label_smoothing: How much of ce goes to all classes alike, from 0 to 1.
        student_layer: Name of the student's classifying layer, where it is not the last fitting one, or a tuple.
        teacher_layer: Name of the teacher's classifying layer, or a tuple.
        teacher_dim: Dt, the size of the teacher's features; with `teacher=None` alone.
        process_group: The ranks whose batches are parts of one; see `cid.CIDLoss`.
        pairs: "all", or "local" for class representations of each rank's samples alone.
        backend: See `cid.functional`.

    Attributes:
        student_model: The student as given.
        teacher_model: The teacher as given, or None.
        criterion: The `cid.CIDLoss`, with the weights as they are by now.
        balance: What chooses those that are `"auto"`; None where both are given.

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

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        num_classes: int,
        beta: float | str,
        gamma: float | str,
        temperature: float = 4.0,
        alpha: float = 1.0,
        warmup_epochs: int = 20,
        context_momentum: float = 0.0,
        steps_per_turn: int | None = None,
        differentiable_context: bool = False,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        student_layer: str | Sequence[str] | None = None,
        teacher_layer: str | Sequence[str] | None = None,
        teacher_dim: int | None = None,
        process_group: "ProcessGroup | None" = None,
        pairs: str = "all",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"student: got {type(student).__name__}, accepted: torch.nn.Module")
        if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in student.modules()):
            raise ValueError(
                "student: is wrapped in DistributedDataParallel, which would leave head and adapter of each rank to "
                "themselves, accepted: the model in it (its .module); wrap the Distiller instead"
            )
        if teacher is not None and not isinstance(teacher, nn.Module):
            raise TypeError(f"teacher: got {type(teacher).__name__}, accepted: torch.nn.Module or None")
        if (teacher is None) == (teacher_dim is None):
            raise ValueError(
                f"teacher_dim: got {teacher_dim}, accepted: the size of the teacher's features where teacher is None, "
                "and None where it is a module"
            )
        if teacher is None and teacher_layer is not None:
            raise ValueError(f"teacher_layer: got {teacher_layer!r}, accepted: None where teacher is None")
        self._student = Classifier(student, num_classes, student_layer, role="student")
        self._teacher = None
        if teacher is not None:
            self._teacher = Classifier(teacher, num_classes, teacher_layer, role="teacher")
            teacher_dim = self._teacher.dim
        assert teacher_dim is not None
        self.criterion = CIDLoss(
            self._student.dim,
            teacher_dim,
            num_classes,
            beta=_number("beta", beta),
            gamma=_number("gamma", gamma),
            temperature=temperature,
            alpha=alpha,
            warmup_epochs=warmup_epochs,
            context_momentum=context_momentum,
            steps_per_turn=steps_per_turn,
            differentiable_context=differentiable_context,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            process_group=process_group,
            pairs=pairs,
            backend=backend,
        )
        # See CIDLoss: these are gathered by each rank for itself.
        self._ddp_params_and_buffers_to_ignore = ignored_by_ddp(
            "criterion", self.criterion._ddp_params_and_buffers_to_ignore
        )
        for name, module in student.named_modules():
            if isinstance(module, FoldedHead):
                raise ValueError(
                    f"student: its layer {name.removesuffix('.intervention')!r} has an interventional head already, "
                    "accepted: a student without one, as Distiller.student(head=False) gives it"
                )
        if teacher is not None and any(p.requires_grad for p in set(student.parameters()) & set(teacher.parameters())):
            raise ValueError(
                "teacher: shares parameters that are trained with the student, accepted: parameters of its own"
            )
        parameter = next(student.parameters(), None)
        if parameter is not None:
            self.criterion.to(parameter.device, parameter.dtype)
        self.balance = Balance(alpha, beta, gamma) if AUTO in (beta, gamma) else None
        self.register_load_state_dict_post_hook(_take_weights)  # type: ignore[no-untyped-call]
        self.student_model = student
        self.teacher_model = None if teacher is None else teacher.requires_grad_(False).eval()

    @property
    def student_layer(self) -> Layers:
        """The name of the student's classifying layer, or a tuple of names."""
        return self._student.layers

    @property
    def teacher_layer(self) -> Layers | None:
        """The name of the teacher's classifying layer, or a tuple of names; None where there is no teacher."""
        return None if self._teacher is None else self._teacher.layers

    def train(self, mode: bool = True) -> "Distiller":
        """Set the mode of the student and the criterion; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher_model is not None:
            self.teacher_model.eval()
        return self

    @overload
    def forward(
        self, x: Any, target: Tensor, teacher: tuple[Tensor, Tensor] | None = None, weight: Tensor | None = None
    ) -> CIDOutput: ...

    @overload
    def forward(self, x: Any, target: None = None) -> Tensor: ...

    def forward(
        self,
        x: Any,
        target: Tensor | None = None,
        teacher: tuple[Tensor, Tensor] | None = None,
        weight: Tensor | None = None,
    ) -> CIDOutput | Tensor:
        """The losses of a batch, or, without labels, what the student predicts.

        Args:
            x: What both models take. A teacher whose parameters are of another type gets it in that.
            target: Labels, int64, shape (B,), or the share of each class, as mixup makes it, shape (B, C). None: see
                `predict`, here with gradients.
            teacher: The teacher's features (B, Dt) and logits (B, C) of this very batch, augmented as the student sees
                it, in place of running the teacher; see `cid.cache`.
            weight: How many times the kd, ce and sample of each sample count, a float type, shape (B,); see
                `cid.functional`.

        Raises:
            ValueError: There is no teacher, neither here nor in the distiller; on the first batch, a model yields other
                logits than those of its layer (the message lists its layers); or see `cid.CIDLoss`.
        """
        if target is None:
            return self._predict(x)
        if self.balance is None or self.balance.settled or not self.training:
            return self._losses(x, target, teacher, weight)
        why = 'cid.Distiller chooses weights that are "auto" by its first batches'
        return uncompiled(why, self._first_losses, self.balance, x, target, teacher, weight)

    def _losses(
        self, x: Any, target: Tensor, teacher: tuple[Tensor, Tensor] | None, weight: Tensor | None
    ) -> CIDOutput:
        criterion, heard = self.criterion, self._heard(x, teacher)
        if criterion.across is None or not self.training:
            output: CIDOutput = criterion(*self._student.read(self.student_model, x), *heard, target, weight)
            return output
        exchange = uncompiled(EXCHANGE, criterion.begin, heard[0], target)  # on its way while the student runs
        read = self._student.read(self.student_model, x)
        return uncompiled(EXCHANGE, criterion.losses, (*read, *heard, target, weight), exchange)

    def _first_losses(
        self, balance: Balance, x: Any, target: Tensor, teacher: tuple[Tensor, Tensor] | None, weight: Tensor | None
    ) -> CIDOutput:
        """The losses of one of the batches that choose the weights, by the weights as they are with it."""
        if is_sharded(self):
            raise RuntimeError(
                'beta, gamma: got "auto", and the parameters are sharded (fully_shard), accepted: numbers, as an '
                "unsharded distiller chooses them"
            )
        heard = self._heard(x, teacher)

        def run() -> tuple[Tensor, Sequence[Tensor]]:
            features, logits = self._student.read(self.student_model, x)
            return features, self.criterion.terms(features, logits, *heard, target, weight)

        balance.observe(self.student_model, run, self.criterion.across)
        _take_weights(self)
        return self._losses(x, target, heard, weight)

    def _heard(self, x: Any, teacher: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The teacher's features and logits: those given, or its own."""
        if teacher is None:
            return self.ask_teacher(x)
        check.shape("teacher[0]", check.tensor("teacher[0]", teacher[0]), ("B", self.criterion.adapter.out_features))
        return teacher

    def ask_teacher(self, x: Any) -> tuple[Tensor, Tensor]:
        """The teacher's features (B, Dt) and logits (B, C) of a batch, as `forward` takes them for `teacher`.

        For a loop that changes them first (`cid.propensity.logit_adjustment`).

        Args:
            x: As for `forward`.

        Raises:
            ValueError: There is no teacher; or, on the first batch, it yields other logits than those of its layer.

        Example:
            >>> student, teacher = nn.Linear(8, 3), nn.Linear(8, 3)
            >>> distiller = Distiller(student, teacher, num_classes=3, beta=1.0, gamma=1.0, warmup_epochs=0)
            >>> x, target = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
            >>> features, logits = distiller.ask_teacher(x)
            >>> distiller(x, target, teacher=(features, logits + 0.1)).loss.shape
            torch.Size([])
        """
        if self.teacher_model is None or self._teacher is None:
            raise ValueError("teacher: not given, accepted: (features, logits), as the distiller has no teacher")
        return ask_teacher(self._teacher, self.teacher_model, x)

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
        features, logits = self._student.read(self.student_model, x)
        return logits if self.warming_up else self.criterion.predict(features, logits)

    def student(self, *, head: bool = True, fold: bool = True) -> nn.Module:
        """The student as it is now, in eval mode, as a module that shares nothing with the training.

        A copy of `student_model` that yields the interventional logits z in place of its own logits s, by a
        `cid.FoldedHead` attached to its classifying layer (the last of several) as `intervention`. So it is called as
        the model is and returns what the model returns, with z for s. The weights keep their names. `torch.compile`,
        `torch.export` and `torch.onnx.export` take it.

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
        if is_sharded(self):
            raise RuntimeError(
                "student: its parameters, or the head's, are sharded (fully_shard), accepted: whole ones. Gather them "
                "with torch.distributed.checkpoint.state_dict.get_model_state_dict(distiller, "
                "options=StateDictOptions(full_state_dict=True)), load that into a Distiller that was not sharded, and "
                "call its student()"
            )
        model = _copy(self.student_model).eval()
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


def _number(name: str, weight: float | str) -> float:
    """A weight as it is given; 0 until it is chosen, where it is to be."""
    if isinstance(weight, str) and weight != AUTO:
        raise ValueError(f"{name}: got {weight!r}, accepted: a finite number of at least 0, or {AUTO!r}")
    return 0.0 if isinstance(weight, str) else weight


def _take_weights(distiller: nn.Module, _incompatible_keys: object = None) -> None:
    """Have the criterion weigh as the balance tells, if there is one."""
    assert isinstance(distiller, Distiller)
    if distiller.balance is not None:
        distiller.criterion.beta, distiller.criterion.gamma = distiller.balance.weights


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy, also where a layer keeps a tensor that was computed: the old `torch.nn.utils.weight_norm` does."""
    memo = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo)
