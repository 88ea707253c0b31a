"""Watches the losses of an epoch without waiting for the device at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cid._errors import NonFiniteError
from cid.train.methods import StepOutput


@dataclass
class LossMonitor:
    """Sums of the losses, hits and the first step whose loss was not finite; all stay on the device.

    Args:
        device: where the losses are.
    """

    device: torch.device
    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    _bad_step: Tensor = field(init=False)
    _bad_values: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._bad_step = torch.full((), -1, device=self.device)

    def add(self, step: int, output: StepOutput, target: Tensor) -> None:
        """Takes in one step; the terms before the loss, so that a bad term is named rather than the sum."""
        values = {**output.terms, "loss": output.loss.detach()}
        first = (self._bad_step < 0) & ~torch.isfinite(values["loss"])
        self._bad_step = torch.where(first, step, self._bad_step)
        for name, value in values.items():
            self._bad_values[name] = torch.where(first, value, self._bad_values.get(name, torch.zeros_like(value)))
            self._count(name, value.float())
        if output.logits is not None:
            self._count("hits", (output.logits.argmax(1) == target).sum().float())
            self.samples += len(target)

    def _count(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps[name] = self.steps.get(name, 0) + 1

    def check(self) -> None:
        """Waits for the device and looks.

        Raises:
            NonFiniteError: a loss was not finite; names the step and the term.
        """
        step = int(self._bad_step)
        if step < 0:
            return
        value, name = next(
            (number, name) for name, tensor in self._bad_values.items() if not math.isfinite(number := float(tensor))
        )
        raise NonFiniteError(f"step {step}: {name} is {value}")

    def means(self) -> dict[str, float]:
        """The mean of each loss over the steps, and the accuracy in training where logits were seen."""
        means = {name: float(total) / self.steps[name] for name, total in self.sums.items() if name != "hits"}
        if self.samples:
            means["train_accuracy"] = float(self.sums["hits"]) / self.samples
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; float32 passes through JSON unchanged."""
        return {
            "sums": {name: float(total) for name, total in self.sums.items()},
            "steps": self.steps,
            "samples": self.samples,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.sums = {name: torch.tensor(total, device=self.device) for name, total in state["sums"].items()}
        self.steps = dict(state["steps"])
        self.samples = state["samples"]
