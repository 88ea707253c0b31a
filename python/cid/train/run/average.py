"""The exponential moving average of a network in training (EMA): the weights that are scored, kept and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cid.train.methods import Training
from cid.train.sharding import own_part, part_like

STATISTICS = ("running_mean", "running_var")  # of batch normalisation


class Average:
    """Averages what is trained, and the running statistics of batch normalisation, which belong to those weights.

    All else is the training's own: counts, and the contexts of method cid, which are of the epoch before and so a mean
    over steps already.

    The decay rises to what is asked for, as `(1 + t) / (10 + t)` at step t, so that the first weights, which nothing
    has trained, are soon forgotten.

    Args:
        training: the network, with its loss; what does not require gradients is not averaged.
        decay: how much of the average stays in a step.
    """

    def __init__(self, training: Training, decay: float) -> None:
        self._decay = decay
        saved = training.trained_state()  # of which a teacher's is no part
        trained = {name: value for name, value in training.named_parameters() if value.requires_grad}
        statistics = {
            name: value
            for name, value in training.named_buffers()
            if name in saved and name.rpartition(".")[2] in STATISTICS
        }
        self._live = {**trained, **statistics}
        self._means = {name: _wide(value.detach()).clone() for name, value in self._live.items()}

    def update(self, step: int) -> None:
        """Takes in the weights after a step, the steps counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for name, mean in self._means.items():
            means, values = by_type.setdefault(mean.dtype, ([], []))
            means.append(own_part(mean))
            values.append(_wide(own_part(self._live[name].detach())))
        for means, values in by_type.values():
            get_ema_multi_avg_fn(decay)(means, values, None)  # type: ignore[no-untyped-call]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the network has the averages."""
        own = {name: value.detach().clone() for name, value in self._live.items()}
        self._write(self._means)
        try:
            yield
        finally:
            self._write(own)

    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self._live.items():
            value.detach().copy_(values[name])

    def state(self) -> dict[str, Tensor]:
        """The averages by the names of what they are of, in parts where these are."""
        return self._means

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state` gave, or the same made whole.

        Raises:
            KeyError: one is missing.
            RuntimeError: one is of another shape.
        """
        for name, mean in self._means.items():
            mean.copy_(part_like(state[name], mean))


def _wide(value: Tensor) -> Tensor:
    """In which small changes add up."""
    return value if value.dtype == torch.float64 else value.float()
