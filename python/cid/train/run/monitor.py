"""Watches the losses of an epoch without waiting for the device at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cid._errors import NonFiniteError
from cid.train.methods import StepOutput
from cid.train.ranks import ALONE, Ranks


@dataclass
class LossMonitor:
    """Sums of the losses, hits and the first step whose loss was not finite; all stay on the device.

    Args:
        device: where the losses are.
        ranks: whose losses these are: their means are those of all.
    """

    device: torch.device
    ranks: Ranks = ALONE
    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    samples: float = 0
    _bad_step: Tensor = field(init=False)
    _bad_values: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._bad_step = torch.full((), -1, device=self.device)

    def add(self, step: int, output: StepOutput, target: Tensor, *, factor: float = 1.0, part: float = 1.0) -> None:
        """Takes in one step; the terms before the loss, so that a bad term is named rather than the sum.

        Args:
            step: its number.
            output: of these samples.
            target: their labels.
            factor: how many times the values count, in the mean over the ranks.
            part: of the step that this is.
        """
        values = {**output.terms, "loss": output.loss.detach()}
        first = (self._bad_step < 0) & ~torch.isfinite(values["loss"])
        self._bad_step = torch.where(first, step, self._bad_step)
        for name, value in values.items():
            self._bad_values[name] = torch.where(first, value, self._bad_values.get(name, torch.zeros_like(value)))
            self._count(name, factor * value.float(), part)
        if output.logits is not None:
            labels = target.argmax(1) if target.is_floating_point() else target  # of mixed samples, the largest share
            self._count("hits", (output.logits.argmax(1) == labels).sum().float(), part)
            self.samples += len(target)

    def _count(self, name: str, value: Tensor, part: float) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps[name] = self.steps.get(name, 0) + part

    def check(self) -> None:
        """Waits for the device and looks, for all ranks.

        Raises:
            NonFiniteError: a loss was not finite, on one of them; names the step and the term.
        """
        if int(self.ranks.sum((self._bad_step >= 0).int())) and (found := self.ranks.first_of(self._found())):
            raise NonFiniteError(found)

    def _found(self) -> str | None:
        """What was not finite."""
        step = int(self._bad_step)
        if step < 0:
            return None
        value, name = next(
            (number, name) for name, tensor in self._bad_values.items() if not math.isfinite(number := float(tensor))
        )
        here = "" if self.ranks.size == 1 else f" on rank {self.ranks.rank}"
        return f"step {step}{here}: {name} is {value}"

    def means(self) -> dict[str, float]:
        """The mean of each loss over the steps, and the accuracy in training where logits were seen."""
        state = self.state()
        sums, steps = state["sums"], state["steps"]
        means = {name: total / steps[name] for name, total in sums.items() if name != "hits"}
        if state["samples"]:
            means["train_accuracy"] = sums["hits"] / state["samples"]
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: of the losses the mean of all ranks; float32 passes through JSON unchanged."""
        sums, samples = {name: float(total) for name, total in self.sums.items()}, self.samples
        if self.ranks.size > 1:
            of_all = torch.tensor(self.ranks.every([*sums.values(), samples]), dtype=torch.float64)
            *totals, samples = of_all.sum(0).tolist()
            sums = {
                name: total if name == "hits" else total / self.ranks.size
                for name, total in zip(sums, totals, strict=True)
            }
        return {"sums": sums, "steps": self.steps, "samples": samples}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.sums = {name: torch.tensor(total, device=self.device) for name, total in state["sums"].items()}
        self.steps = dict(state["steps"])
        self.samples = state["samples"] / self.ranks.size
        if "hits" in self.sums:
            self.sums["hits"] /= self.ranks.size
