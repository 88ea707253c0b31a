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

    A step is the teacher's forward, where it is asked, and the student's forward and backward, on a batch of noise.

    Raises:
        ConfigError: a network is unknown.
    """
    student = build_model(config.models.student, spec).to(device)
    teacher = None if config.models.teacher_cache else _teacher(config, spec).to(device).eval()
    inputs = torch.randn(config.optim.batch_size // config.optim.accumulate, spec.channels, *spec.size, device=device)

    def seconds(dtype: torch.dtype | None) -> float:
        return _seconds(lambda: _step(student, teacher, inputs, dtype), device)

    seconds(None)  # what fails here has nothing to do with bfloat16
    try:
        seconds(torch.bfloat16)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # there is no such thing on this device
        return FULL
    began = time.perf_counter()
    times: list[tuple[float, float]] = []
    while len(times) < ROUNDS and not (times and time.perf_counter() - began > SECONDS):
        times.append((seconds(None), seconds(torch.bfloat16)))
    full, half = map(statistics.median, zip(*times, strict=True))
    return HALF if full >= WORTH * half else FULL


def _teacher(config: Config, spec: InputSpec) -> nn.Module:
    return build_model(config.models.teacher, spec, size=config.models.teacher_size)


def _step(student: nn.Module, teacher: nn.Module | None, inputs: torch.Tensor, dtype: torch.dtype | None) -> None:
    with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype is not None):
        if teacher is not None:
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
