"""The bank of class contexts, gathered over one epoch and used in the next."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

import cid._checks as check
import cid.functional as F
from cid._across import Across
from cid._mirror import Mirror


class ContextBank(Mirror):
    r"""One context a class: the mean of its samples' features over an epoch, weighted by the teacher's belief.

    .. math:: M_k = \sum_{i: y_i = k} w_i f_i \Big/ \sum_{i: y_i = k} w_i

    `update` gathers a batch; `epoch_end` turns the bank, :math:`M \leftarrow \mu M + (1 - \mu) M_{new}`. A row of
    zeros, as all are at first, is replaced whole; a class of which nothing was gathered keeps its row. All state is in
    buffers.

    For a loop that counts steps, `steps_per_turn=N` makes N updates one epoch: the next `update` turns the bank first,
    and `epoch_end` does nothing. Between the two the bank is still the one trained with, as an evaluation wants it.
    Take it for data without an end, or with epochs so long that the student outgrows its contexts. N should let each
    class be seen: several times C / B for batches of B, since a class that was not seen keeps its row. The count is the
    host's, which `torch.compile` takes for other code each time: compile the models, not what counts.

    Under `torch.distributed` the ranks' sums are added when the bank turns: those of `process_group`, or of the default
    group where there is one. `DistributedDataParallel` must not
    broadcast the sums before that: wrapped around `cid.CIDLoss` or `cid.Distiller` it is told so; elsewhere pass
    `broadcast_buffers=False`.

    Args:
        num_classes: C.
        dim: D, the size of the student's representation.
        momentum: mu, from 0 to 1; 0 in the paper.
        steps_per_turn: N, where steps and not calls of `epoch_end` turn the bank. Each `update` is a step, so a loop
            that accumulates gradients over k batches takes k steps for one of its optimizer.
        temperature: T of the weights, from 1e-30 to 1e30.
        ignore_index: A label that marks a sample as unlabelled: it is not gathered.
        process_group: The ranks whose sums are added; None for those of the default group.
        backend: See `cid.functional`.
        device: Where the buffers are made.
        dtype: Their type. Sums over an epoch need float32 at least: `.half()` leaves the buffers as they are.

    Attributes:
        context: M, shape (C, D).
        numerator: The sum of w f gathered so far, shape (C, D).
        denominator: The sum of w gathered so far, shape (C,).
        steps: The number of steps since the bank turned; only with `steps_per_turn`.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> bank = ContextBank(num_classes=2, dim=3)
        >>> bank.update(torch.ones(4, 3), torch.zeros(4, 2), torch.tensor([0, 0, 0, 0]))
        >>> bank.epoch_end()
        >>> bank.context
        tensor([[1., 1., 1.],
                [0., 0., 0.]])

    Source: Deng and Zhang 2021.
    """

    _count = "steps"

    context: Tensor
    numerator: Tensor
    denominator: Tensor
    steps: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        momentum: float = 0.0,
        steps_per_turn: int | None = None,
        temperature: float = 4.0,
        ignore_index: int = -100,
        process_group: "dist.ProcessGroup | None" = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check.size("num_classes", num_classes)
        check.size("dim", dim)
        check.number("momentum", momentum, low=0.0, high=1.0)
        if steps_per_turn is not None:
            check.size("steps_per_turn", steps_per_turn)
        check.temperature(temperature)
        check.integer("ignore_index", ignore_index)
        self.momentum = momentum
        self.steps_per_turn = steps_per_turn
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.backend = backend
        self._across = None if process_group is None else Across(process_group)
        self.register_buffer("context", torch.zeros(num_classes, dim, device=device, dtype=dtype))
        self.register_buffer("numerator", torch.zeros(num_classes, dim, device=device, dtype=dtype))
        self.register_buffer("denominator", torch.zeros(num_classes, device=device, dtype=dtype))
        if steps_per_turn is not None:
            self.register_buffer("steps", torch.zeros((), device=device, dtype=torch.int64))
        # A step must not read a buffer, which on a GPU waits for the device: a copy on the host decides.
        self._steps = 0
        self._keep()
        self.register_load_state_dict_post_hook(_read_steps)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, features: Tensor, teacher_logits: Tensor, target: Tensor) -> None:
        """Gather a batch.

        Args:
            features: f, the student's representations, shape (B, D); read as detached.
            teacher_logits: q, shape (B, C).
            target: Labels, int64, shape (B,), or shares, shape (B, C).

        Raises:
            TypeError: An argument has a wrong type or dtype.
            ValueError: An argument has a wrong shape, device or value. Nothing has been gathered.
        """
        self.turn_if_due()
        weights = F.context_weights(
            teacher_logits,
            target,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            backend=self.backend,
        )
        F.accumulate_context(
            features,
            weights,
            target,
            self.numerator,
            self.denominator,
            ignore_index=self.ignore_index,
            backend=self.backend,
        )
        self.count_step()

    def epoch_end(self) -> None:
        """Turn the bank; with `steps_per_turn`, which turns it in its own time, do nothing."""
        if self.steps_per_turn is None:
            self.turn()

    def turn_if_due(self) -> bool:
        """Turn the bank if `steps_per_turn` steps have gone into it, and tell whether it turned.

        For who gathers without `update` (see `context_sums` in `cid.functional.cid_loss`): call this before the step
        and `count_step` after it.
        """
        self._notice()
        due = self.steps_per_turn is not None and self._steps >= self.steps_per_turn
        if due:
            self.turn()
        return due

    def count_step(self) -> None:
        """Count a step that was gathered; without `steps_per_turn`, do nothing."""
        if self.steps_per_turn is not None:
            self._set_steps(self._steps + 1)

    def _set_steps(self, steps: int) -> None:
        self._steps = steps
        self.steps.fill_(steps)
        self._keep()

    def _read(self, all_changed: bool) -> None:
        self._steps = int(self.steps)

    @torch.no_grad()
    def turn(self) -> None:
        """What was gathered becomes the context, and gathering starts anew."""
        if dist.is_available() and dist.is_initialized():
            group = None if self._across is None else self._across.group
            dist.all_reduce(self.numerator, group=group)
            dist.all_reduce(self.denominator, group=group)
        weight = self.denominator[:, None]
        seen = weight != 0  # a NaN counts: it must show in the losses, not vanish here
        gathered = self.numerator / torch.where(seen, weight, 1.0)
        # A class's first context has no predecessor to be mixed with.
        first = (self.context == 0).all(1, keepdim=True)
        turned = torch.where(first, gathered, torch.lerp(gathered, self.context, self.momentum))
        self.context.copy_(torch.where(seen, turned, self.context))
        self.numerator.zero_()
        self.denominator.zero_()
        if self.steps_per_turn is not None:
            self._set_steps(0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ContextBank":
        """Follow `.to()` to any device and to any type that can hold an epoch's sums."""
        wide = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, before in wide.items():
            after = self._buffers[name]
            if after is not None and after.dtype not in (torch.float32, torch.float64):
                self._buffers[name] = before.to(after.device)
        self._keep()
        return self

    def extra_repr(self) -> str:
        """The sizes and options."""
        classes, dim = self.context.shape
        text = f"num_classes={classes}, dim={dim}, momentum={self.momentum}"
        return text if self.steps_per_turn is None else f"{text}, steps_per_turn={self.steps_per_turn}"


def _read_steps(module: nn.Module, _incompatible_keys: object) -> None:
    """Bring the host's count of steps up to what was loaded."""
    assert isinstance(module, ContextBank)
    module._notice()
