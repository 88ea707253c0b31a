"""The terms that Liger-Kernel has too, by the same definitions, from logits to gradient.

Its divergences take logarithms of probabilities, so PyTorch's `log_softmax` goes before them. All of them wait for the
device in their backward, as they look at the gradient that comes in.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cid.bench.eager import TEMPERATURE
from cid.bench.terms import Step

OVERWRITES = frozenset({"cross-entropy"})
"""Terms whose gradient it writes over the logits."""


def installed() -> bool:
    """Whether it can be imported, which takes seconds."""
    return importlib.util.find_spec("liger_kernel") is not None


def steps(beta: float = 0.5) -> Mapping[str, Step]:
    """The terms' steps by name.

    Args:
        beta: the teacher's share in kd-js.
    """
    from liger_kernel.transformers import LigerCrossEntropyLoss, LigerJSD, LigerKLDIVLoss

    def softened(loss: torch.nn.Module) -> Step:
        def step(s: Tensor, q: Tensor) -> Tensor:
            value: Tensor = loss(F.log_softmax(s / TEMPERATURE, 1), F.log_softmax(q / TEMPERATURE, 1))
            return value * TEMPERATURE**2

        return step

    return {
        "kd": softened(LigerKLDIVLoss(reduction="batchmean", log_target=True)),
        "kd-reverse": softened(LigerJSD(beta=1.0)),
        "kd-js": softened(LigerJSD(beta=beta)),
        "cross-entropy": LigerCrossEntropyLoss(),
    }
