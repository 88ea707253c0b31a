"""In which precision a run's networks train faster on this machine: measured on them, not guessed by its name."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from cid.train.config import Config
from cid.train.models import InputSpec, build_model

FULL, HALF = "32-true", "bf16-mixed"
# For less bfloat16's few digits are no bargain, nor is a choice that noise could turn.
WORTH = 1.1
ROUNDS = 5
SECONDS = 20.0  # after which a large network has been measured enough


def measured_precision(config: Config, spec: InputSpec, device: torch.device) -> str:
    """`bf16-mixed` where a step of the run's networks is a tenth faster in it, else `32-true`.

    A step is the teacher's forward and the student's forward and backward, on a batch of noise.

    Raises:
        ConfigError: a network is unknown.
    """
    with torch.random.fork_rng(devices=[]):  # what is drawn later does not depend on whether this was asked
        student, teacher = (
            build_model(name, spec).to(device) for name in (config.models.student, config.models.teacher)
        )
        inputs = torch.randn(config.optim.batch_size, spec.channels, *spec.size, device=device)

    def seconds(dtype: torch.dtype | None) -> float:
        return _seconds(lambda: _step(student, teacher.eval(), inputs, dtype), device)

    try:
        seconds(torch.bfloat16)
    except (RuntimeError, TypeError):  # there is no such thing on this device
        return FULL
    seconds(None)
    began = time.perf_counter()
    times: list[tuple[float, float]] = []
    while len(times) < ROUNDS and not (times and time.perf_counter() - began > SECONDS):
        times.append((seconds(None), seconds(torch.bfloat16)))
    full, half = map(statistics.median, zip(*times, strict=True))
    return HALF if full >= WORTH * half else FULL


def _step(student: nn.Module, teacher: nn.Module, inputs: torch.Tensor, dtype: torch.dtype | None) -> None:
    with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype is not None):
        with torch.no_grad():
            teacher(inputs)
        loss = student(inputs).float().square().mean()
    loss.backward()


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
