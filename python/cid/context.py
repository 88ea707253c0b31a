"""The bank of class contexts, gathered over one epoch and used in the next."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cid import _checks
from cid import functional as F


class ContextBank(nn.Module):
    r"""One context a class: the mean of its samples' features over an epoch, weighted by the teacher's belief.

    .. math:: M_k = \sum_{i: y_i = k} w_i f_i \Big/ \sum_{i: y_i = k} w_i

    `update` gathers a batch; `epoch_end` turns the bank, :math:`M \leftarrow \mu M + (1 - \mu) M_{new}`. A row of
    zeros, as all are at first, is replaced whole; a class of which nothing was gathered keeps its row. All state is in
    buffers.

    Under `torch.distributed` the ranks' sums are added when the bank turns. `DistributedDataParallel` must not
    broadcast the sums before that: wrapped around `cid.CIDLoss` or `cid.Distiller` it is told so; elsewhere pass
    `broadcast_buffers=False`.

    Args:
        num_classes: C.
        dim: D, the size of the student's representation.
        momentum: mu, from 0 to 1; 0 in the paper.
        temperature: T of the weights, from 1e-30 to 1e30.
        ignore_index: A label that marks a sample as unlabelled: it is not gathered.
        backend: See `cid.functional`.
        device: Where the buffers are made.
        dtype: Their type. Sums over an epoch need float32 at least: `.half()` leaves the buffers as they are.

    Attributes:
        context: M, shape (C, D).
        numerator: The sum of w f gathered so far, shape (C, D).
        denominator: The sum of w gathered so far, shape (C,).

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

    context: Tensor
    numerator: Tensor
    denominator: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        momentum: float = 0.0,
        temperature: float = 4.0,
        ignore_index: int = -100,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.size("num_classes", num_classes)
        _checks.size("dim", dim)
        _checks.number("momentum", momentum, low=0.0, high=1.0)
        _checks.temperature(temperature)
        _checks.integer("ignore_index", ignore_index)
        self.momentum = momentum
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.backend = backend
        self.register_buffer("context", torch.zeros(num_classes, dim, device=device, dtype=dtype))
        self.register_buffer("numerator", torch.zeros(num_classes, dim, device=device, dtype=dtype))
        self.register_buffer("denominator", torch.zeros(num_classes, device=device, dtype=dtype))

    @torch.no_grad()
    def update(self, features: Tensor, teacher_logits: Tensor, target: Tensor) -> None:
        """Gather a batch.

        Args:
            features: f, the student's representations, shape (B, D); read as detached.
            teacher_logits: q, shape (B, C).
            target: Labels, int64, shape (B,).

        Raises:
            TypeError: An argument has a wrong type or dtype.
            ValueError: An argument has a wrong shape, device or value. Nothing has been gathered.
        """
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

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Turn the bank: what was gathered becomes the context, and gathering starts anew."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.numerator)
            dist.all_reduce(self.denominator)
        weight = self.denominator[:, None]
        seen = weight != 0  # a NaN counts: it must show in the losses, not vanish here
        gathered = self.numerator / torch.where(seen, weight, 1.0)
        # A class's first context has no predecessor to be mixed with.
        first = (self.context == 0).all(1, keepdim=True)
        turned = torch.where(first, gathered, torch.lerp(gathered, self.context, self.momentum))
        self.context.copy_(torch.where(seen, turned, self.context))
        self.numerator.zero_()
        self.denominator.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ContextBank":
        """Follow `.to()` to any device and to any type that can hold an epoch's sums."""
        wide = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in wide.items():
            after = self._buffers[name]
            if after is not None and after.dtype not in (torch.float32, torch.float64):
                self._buffers[name] = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        """The sizes and options."""
        classes, dim = self.context.shape
        return f"num_classes={classes}, dim={dim}, momentum={self.momentum}"
