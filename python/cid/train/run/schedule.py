"""Learning-rate schedules and optimizers by name.

A schedule is a pure function of the progress, so nothing of it needs to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from cid.train.sections import OptimConfig

MILESTONES = (150 / 240, 180 / 240, 210 / 240)
ONECYCLE_RISE = 0.3


def _step(progress: float) -> float:
    """A tenth at each of the paper's milestones."""
    return float(0.1 ** sum(progress >= milestone for milestone in MILESTONES))


def _cosine(progress: float) -> float:
    """From 1 to 0, along half a cosine."""
    return (1 + math.cos(math.pi * progress)) / 2


def _onecycle(progress: float) -> float:
    """Up from 1/25 over the first 30%, then down to 0, both along half a cosine (Smith and Topin 2019)."""
    if progress < ONECYCLE_RISE:
        return 1 - 24 / 25 * _cosine(progress / ONECYCLE_RISE)
    return _cosine((progress - ONECYCLE_RISE) / (1 - ONECYCLE_RISE))


# From the part of the steps that is done, 0 to below 1, to the factor of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "step": _step,
    "cosine": _cosine,
    "onecycle": _onecycle,
    "constant": lambda progress: 1.0,
}

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], Optimizer]] = {
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr),
}


def make_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    """The optimizer that the configuration names, over groups with their own weight decay."""
    return OPTIMIZERS[config.optimizer](groups, config.lr)


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The learning rate at `progress`, the part of all steps that is done."""
    return config.lr * SCHEDULES[config.schedule](progress)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
