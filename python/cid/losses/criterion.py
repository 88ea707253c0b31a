"""All terms of interventional distillation as a module, with what is trained with them and the schedule."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import cid._checks as check
from cid._across import EXCHANGE, PAIRS, Across, Exchange, uncompiled
from cid._mirror import Mirror
from cid.backends.options import CIDInputs, CIDOptions
from cid.context import ContextBank
from cid.functional import CIDOutput
from cid.functional.criterion import cid_loss_of
from cid.head import InterventionalHead

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Features and logits of student and teacher, target and weight: what `CIDLoss.forward` takes.
Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]
HEAD = ("head.weight", "head.bias")


class CIDLoss(Mirror):
    r"""Comprehensive interventional distillation: all terms, what is trained with them, and the schedule.

    .. math:: \alpha (\mathrm{ce} + \mathrm{kd}) + \beta \, \mathrm{sample} + \gamma \, \mathrm{class}

    In the first `warmup_epochs` epochs there is no ce. The last of them, and every later one, gathers the contexts (in
    training mode) that the next epoch uses. Call `epoch_end` after each epoch, and after its evaluation, which uses the
    bank that the epoch was trained with. With `warmup_epochs=0` ce counts from the first step, with the bank as it
    stands (zeros, if none was loaded).

    In a loop that counts steps, `steps_per_turn=N` makes an epoch of this schedule of N steps, that is forwards in
    training mode: the next one ends the epoch first, `epoch_end` does nothing, and warm-up takes `warmup_epochs * N`
    steps. With as many steps as an epoch has, that is the same training. See `cid.ContextBank` for when to use it.

    The parameters of this module are trained with the student: give `param_groups` to the optimizer.

    With `process_group` the batches of its ranks are parts of one, in training mode: the mean of the ranks' losses has
    the value and the gradients that one process has of the whole batch, and the mean of each term its value. Labelled
    samples are counted, and pairs of a class compared, over all ranks, whose parts may be of any sizes. Each rank sends
    its labels and its features, f and t, and computes class of all. This is for `DistributedDataParallel`, and whatever
    else takes the mean of the ranks' gradients. The head is made the same on all ranks here and takes the mean of its
    gradients by itself, so that warm-up epochs need no `find_unused_parameters`. All ranks make their modules and their
    steps in the same order. In eval mode each has the losses of its own samples.

    Args:
        student_dim: Ds, the size of the input of the student's last linear layer.
        teacher_dim: Dt, the teacher's.
        num_classes: C.
        beta: Weight of the sample representation; no default, since the right one depends on the pair of models (the
            paper takes 8 to 65).
        gamma: Weight of the class representation; the paper takes 0.1 to 2.
        temperature: T of the softened logits, the context weights and the intervention.
        alpha: Weight of ce and kd.
        warmup_epochs: E0; 20 of 240 in the paper.
        context_momentum: mu of the bank.
        steps_per_turn: N, where steps and not calls of `epoch_end` count the epochs.
        differentiable_context: Whether gradients flow through the marginal context into the student's logits.
        ignore_index: A label that marks a sample as unlabelled: it counts in kd and sample alone.
        label_smoothing: From 0 to 1: how much of ce goes to all classes alike; see `cid.functional.cid_loss`.
        process_group: The ranks whose batches are parts of one; None where each rank's batch is one.
        pairs: "all", or "local" for class representations of each rank's samples alone: nothing but counts is exchanged
            in a step then, and class is the mean of the ranks', which see fewer pairs.
        backend: See `cid.functional`.

    Attributes:
        adapter: The linear layer from Ds to Dt; the method wants it without weight decay.
        head: The `InterventionalHead`.
        bank: The `ContextBank`.
        epoch: The number of epochs that have ended, a buffer.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> criterion = CIDLoss(16, 32, num_classes=5, beta=10.0, gamma=1.0, warmup_epochs=1)
        >>> f, t = torch.randn(8, 16, requires_grad=True), torch.randn(8, 32)
        >>> s, q, y = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5), torch.arange(8) % 5
        >>> for epoch in range(2):
        ...     out = criterion(f, s, t, q, y)
        ...     out.loss.backward()
        ...     print(f"epoch {epoch}: ce {'counts' if out.logits is not None else 'waits'}")
        ...     criterion.epoch_end()
        epoch 0: ce waits
        epoch 1: ce counts
        >>> criterion.predict(f, s).shape
        torch.Size([8, 5])

    Source: Deng and Zhang 2021.
    """

    _count = "epoch"

    epoch: Tensor
    # DistributedDataParallel would overwrite each rank's sums with those of rank 0 before every step; and the counts,
    # which each rank keeps by itself, would have to be read again.
    _ddp_params_and_buffers_to_ignore: tuple[str, ...] = ("epoch", "bank.numerator", "bank.denominator", "bank.steps")

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        num_classes: int,
        *,
        beta: float,
        gamma: float,
        temperature: float = 4.0,
        alpha: float = 1.0,
        warmup_epochs: int = 20,
        context_momentum: float = 0.0,
        steps_per_turn: int | None = None,
        differentiable_context: bool = False,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        process_group: "ProcessGroup | None" = None,
        pairs: str = "all",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check.size("student_dim", student_dim)
        check.size("teacher_dim", teacher_dim)
        for name, factor in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            check.number(name, factor, low=0.0)
        check.integer("warmup_epochs", warmup_epochs)
        check.number("warmup_epochs", warmup_epochs, low=0)
        check.number("context_momentum", context_momentum, low=0.0, high=1.0)
        check.number("label_smoothing", label_smoothing, low=0.0, high=1.0)
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.alpha = alpha
        self.warmup_epochs = warmup_epochs
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.backend = backend
        self.adapter = nn.Linear(student_dim, teacher_dim)
        self.head = InterventionalHead(
            student_dim, num_classes, temperature=temperature, differentiable=differentiable_context, backend=backend
        )
        self.bank = ContextBank(
            num_classes,
            student_dim,
            momentum=context_momentum,
            steps_per_turn=steps_per_turn,
            temperature=temperature,
            ignore_index=ignore_index,
            process_group=process_group,
            backend=backend,
        )
        check.choice("pairs", pairs, PAIRS)
        self.across = None if process_group is None else Across(process_group, pairs)
        if self.across is not None:
            self.across.same(*self.head.parameters())
            self._ddp_params_and_buffers_to_ignore = (*self._ddp_params_and_buffers_to_ignore, *HEAD)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self._set_epoch(0)
        self._keep()
        self.register_load_state_dict_post_hook(_read_epoch)  # type: ignore[no-untyped-call]

    @property
    def warming_up(self) -> bool:
        """Whether the current epoch is one of the warm-up, without ce."""
        self._notice()
        return self._warming_up

    def forward(
        self,
        student_features: Tensor,
        student_logits: Tensor,
        teacher_features: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
    ) -> CIDOutput:
        """The losses of a batch; in training mode its contexts are gathered too.

        Args:
            student_features: f, shape (B, Ds): the input of the student's last linear layer.
            student_logits: s, shape (B, C), its output.
            teacher_features: t, shape (B, Dt).
            teacher_logits: q, shape (B, C).
            target: Labels, int64, shape (B,), or the share of each class, a float type, shape (B, C); see
                `cid.functional`.
            weight: How many times the kd, ce and sample of each sample count, a float type, shape (B,); see
                `cid.functional`. Class and the contexts are not weighed.

        Raises:
            TypeError: An argument has a wrong type or dtype.
            ValueError: An argument has a wrong shape, device or value; nothing has been gathered.
        """
        given = student_features, student_logits, teacher_features, teacher_logits, target, weight
        if self.across is None or not self.training:
            return self.losses(given)
        exchange = uncompiled(EXCHANGE, self.begin, teacher_features, target)
        return uncompiled(EXCHANGE, self.losses, given, exchange)

    def begin(self, teacher_features: Tensor, target: Tensor) -> Exchange:
        """Start a step of several ranks with what is known before the student runs; `losses` ends it."""
        assert self.across is not None
        return self.across.begin(teacher_features, target, self.ignore_index)

    def losses(self, given: Given, exchange: Exchange | None = None) -> CIDOutput:
        """`forward` of its arguments, which are, where `exchange` was begun, a part of what several ranks have."""
        adapter, head, bank = self.adapter, self.head, self.bank  # each look costs a microsecond
        self._notice()
        if self._warming_up:  # else the contexts tell how many classes there are
            check.shape("student_logits", check.tensor("student_logits", given[1]), ("B", head.num_classes))
        counting = self.training and bank.steps_per_turn is not None
        if counting and bank.turn_if_due():
            self._count_epoch()
        context = None if self._warming_up else bank.context
        sums = (bank.numerator, bank.denominator) if self.training and self._gathering else None
        inputs = CIDInputs(*given, adapter.weight, adapter.bias, head.weight, head.bias, context, sums)
        options = self._options(self.alpha, self.beta, self.gamma)
        try:
            if exchange is None:
                output = cid_loss_of(inputs, options, self.backend)
            else:
                output = self._of_ranks(inputs, options, exchange)
        except ValueError:
            # The function names weights, too: where a shape is the fault, say it of what was passed here.
            self._check_shapes(*given[:4])
            raise
        if counting:
            bank.count_step()
        return output

    def _options(self, alpha: float, beta: float, gamma: float) -> CIDOptions:
        return CIDOptions(
            alpha, beta, gamma, self.temperature, self.head.differentiable, self.ignore_index, self.label_smoothing
        )

    def _of_ranks(self, inputs: CIDInputs, options: CIDOptions, exchange: Exchange) -> CIDOutput:
        """The losses of a part of what several ranks have."""
        assert self.across is not None
        whole = exchange.whole(inputs.student_features, inputs.target, self.ignore_index)
        if inputs.context is not None:
            weight, bias = map(self.across.averaging, (inputs.head_weight, inputs.head_bias))
            inputs = inputs._replace(head_weight=weight, head_bias=bias)
        return cid_loss_of(inputs, options, self.backend, whole)

    def terms(
        self,
        student_features: Tensor,
        student_logits: Tensor,
        teacher_features: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """kd, sample and class of a batch, unweighted, each with gradients of its own; nothing is gathered.

        For looking at what each does to the student. `forward` has them all at once, in less time.

        Args and errors: as of `forward`.

        Example:
            >>> criterion = CIDLoss(16, 32, num_classes=5, beta=10.0, gamma=1.0)
            >>> f, t = torch.randn(8, 16, requires_grad=True), torch.randn(8, 32)
            >>> s, q, y = torch.randn(8, 5), torch.randn(8, 5), torch.arange(8) % 5
            >>> kd, sample, class_ = criterion.terms(f, s, t, q, y)
            >>> torch.autograd.grad(sample, f)[0].shape
            torch.Size([8, 16])
        """
        self._check_shapes(student_features, student_logits, teacher_features, teacher_logits)

        given = student_features, student_logits, teacher_features, teacher_logits, target, weight
        adapter, head = self.adapter, self.head
        inputs = CIDInputs(*given, adapter.weight, adapter.bias, head.weight, head.bias, None, None)

        def alone(alpha: float, beta: float, gamma: float) -> Tensor:
            options = self._options(alpha, beta, gamma)
            if self.across is None:
                return cid_loss_of(inputs, options, self.backend).loss
            return self._of_ranks(inputs, options, self.begin(teacher_features, target)).loss

        return alone(1.0, 0.0, 0.0), alone(0.0, 1.0, 0.0), alone(0.0, 0.0, 1.0)

    def _check_shapes(
        self, student_features: Tensor, student_logits: Tensor, teacher_features: Tensor, teacher_logits: Tensor
    ) -> None:
        check.shape("student_features", student_features, ("B", self.head.dim))
        check.shape("student_logits", student_logits, (len(student_features), self.head.num_classes))
        check.shape("teacher_features", teacher_features, (len(student_features), self.adapter.out_features))
        check.shape("teacher_logits", teacher_logits, (len(student_features), self.head.num_classes))

    def predict(self, student_features: Tensor, student_logits: Tensor) -> Tensor:
        """The interventional logits z, shape (B, C), with which the student predicts after training."""
        z: Tensor = self.head(student_features, student_logits, self.bank.context)
        return z

    def epoch_end(self) -> None:
        """Turn the bank and count the epoch; with `steps_per_turn`, which does so in its own time, do nothing."""
        if self.bank.steps_per_turn is None:
            self._notice()
            self.bank.turn()
            self._count_epoch()

    def _count_epoch(self) -> None:
        self._set_epoch(self._epoch + 1)
        self.epoch.fill_(self._epoch)
        self._keep()

    def _set_epoch(self, epoch: int) -> None:
        # The schedule must not read a buffer, which on a GPU waits for the device: a copy on the host decides. And a
        # forward looks at no number that changes: torch.compile would make a graph for each.
        self._epoch = epoch
        self._warming_up = epoch < self.warmup_epochs
        self._gathering = epoch >= self.warmup_epochs - 1

    def _beside(self) -> tuple[Tensor, ...]:
        return self.bank.context, self.bank.numerator, self.bank.denominator

    def _read(self, all_changed: bool) -> None:
        epoch = int(self.epoch)
        if all_changed and self.bank.context.any():
            # Where all is written at once, it may be an average of training states: its epoch is a mean, rounded down,
            # and says nothing. That some of them were past the warm-up, and their heads trained, the contexts say.
            epoch = max(epoch, self.warmup_epochs)
        self._set_epoch(epoch)

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The parameters for an optimizer: the head with `weight_decay`, the adapter without.

        Example:
            >>> criterion = CIDLoss(16, 32, 5, beta=10.0, gamma=1.0)
            >>> optimizer = torch.optim.SGD(criterion.param_groups(5e-4), lr=0.05)
            >>> [group["weight_decay"] for group in optimizer.param_groups]
            [0.0005, 0.0]
        """
        check.number("weight_decay", weight_decay, low=0.0)
        return [
            {"params": list(self.head.parameters()), "weight_decay": weight_decay},
            {"params": list(self.adapter.parameters()), "weight_decay": 0.0},
        ]

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"alpha={self.alpha}, beta={self.beta}, gamma={self.gamma}, temperature={self.temperature}, "
            f"warmup_epochs={self.warmup_epochs}"
        )


def _read_epoch(module: nn.Module, _incompatible_keys: object) -> None:
    """Bring the host's count of epochs up to what was loaded, which is no average."""
    assert isinstance(module, CIDLoss)
    module._set_epoch(int(module.epoch))
    module._keep()


def ignored_by_ddp(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """What `DistributedDataParallel` is to leave alone in a module `name`, by the names of the module that holds it.

    Also where that is compiled by `torch.compile`: then they begin with `_orig_mod`.
    """
    own = [f"{name}.{one}" for one in names if not one.startswith("_orig_mod.")]
    return (*own, *(f"_orig_mod.{one}" for one in own))
