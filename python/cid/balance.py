"""Weights of sample and class that follow from the first batches: each term pulls at the student as told, beside kd."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cid._across import Across
from cid.capture import buffers_kept, uncompiled

AUTO = "auto"
BATCHES = 8
# How hard sample and class pull at first, beside alpha * kd; docs/choosing.md has what chose them.
SHARES = (4.0, 0.25)
SCALE = 1024.0  # of all terms, whose ratios count: under autocast float16 has no gradients below 6e-8


class Balance(nn.Module):
    r"""Beta and gamma of the gradients that the terms have in the student, summed up over the first batches.

    .. math::
        \beta = \alpha \, r_\mathrm{sample} \frac{\sum \| \nabla \mathrm{kd} \|}{\sum \| \nabla \mathrm{sample} \|}
        \qquad
        \gamma = \alpha \, r_\mathrm{class} \frac{\sum \| \nabla \mathrm{kd} \|}{\sum \| \nabla \mathrm{class} \|}

    Gradients are those in the parameters of the student that make its representation: not in its classifying layer,
    which sample and class do not use. From the first batch on the weights are those of the batches until then, after
    `BATCHES` of them they stay. They are part of the state: a training that goes on keeps them.

    Args:
        alpha: Weight of kd.
        beta: A number, which stays, or "auto".
        gamma: Likewise.

    Attributes:
        batches: How many were summed.
        weights: (beta, gamma), those given or chosen: 0 before the first batch, and where a term has no gradient.
        settled: Whether they will stay.

    Example:
        >>> student = nn.Linear(4, 2)
        >>> def run():
        ...     f = student(torch.ones(3, 4))
        ...     return f, (6 * f.mean(), 2 * f.mean(), 3 * f.mean())
        >>> balance = Balance(alpha=1.0)
        >>> balance.observe(student, run)
        >>> [round(weight, 4) for weight in balance.weights]
        [12.0, 0.5]
    """

    def __init__(self, alpha: float, beta: float | str = AUTO, gamma: float | str = AUTO) -> None:
        super().__init__()
        self.alpha = alpha
        self._given = beta, gamma
        self.set_extra_state(torch.zeros(4))

    # Numbers of the host, which no `.half()` rounds, and no step waits for a device to look at.
    def get_extra_state(self) -> Tensor:
        """The sums of the norms of kd's, sample's and class's gradients, and the number of batches; shape (4,)."""
        return torch.tensor([*self._norms, self.batches], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what `get_extra_state` gave."""
        *self._norms, batches = state.tolist()
        self.batches = int(batches)
        kd, *others = self._norms
        beta, gamma = (
            weight if not isinstance(weight, str) else self.alpha * share * kd / norm if norm else 0.0
            for weight, share, norm in zip(self._given, SHARES, others, strict=True)
        )
        self.weights = beta, gamma
        self.settled = self.batches >= BATCHES

    def observe(
        self,
        student: nn.Module,
        run: Callable[[], tuple[Tensor, Sequence[Tensor]]],
        across: Across | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            student: What is trained.
            run: Runs it on the batch; returns its representation, and kd, sample and class. The student's buffers are
                as they were afterwards.
            across: The ranks of which the batch is a part of one.
        """
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        put_back = buffers_kept(student)
        try:
            with torch.enable_grad(), uncompiled(student):
                norms = gradient_norms(*run(), parameters, across)
        finally:
            put_back()
        if across is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(norms)  # each rank has other samples, and all take the same weights
        if torch.isfinite(norms).all():  # else the loss is not either, which is for who trains to see
            seen = torch.cat([norms.cpu().double(), torch.ones(1, dtype=torch.float64)])
            self.set_extra_state(self.get_extra_state() + seen)


def gradient_norms(
    features: Tensor, terms: Sequence[Tensor], parameters: Sequence[nn.Parameter], across: Across | None = None
) -> Tensor:
    """`SCALE` times the norm of each term's gradient in the parameters that the features depend on, a value a term."""
    found = torch.zeros(len(terms), device=features.device)
    if not features.requires_grad:
        return found
    reached = torch.autograd.grad(features.sum(), parameters, retain_graph=True, allow_unused=True)
    body = [parameter for parameter, gradient in zip(parameters, reached, strict=True) if gradient is not None]
    for i, term in enumerate(terms):
        gradients = torch.autograd.grad(SCALE * term, body, retain_graph=True, allow_unused=True)
        whole = [each.float() for each in gradients if each is not None]
        if across is not None and whole:
            whole = [across.mean(torch.cat([each.flatten() for each in whole]))]
        norms = [torch.linalg.vector_norm(each) for each in whole]
        found[i] = torch.stack(norms).square().sum().sqrt() if norms else 0.0
    return found
