"""Similarity-preserving distillation: Tung and Mori 2019."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cid.train.methods import register
from cid.train.methods._features import MapsMethod
from cid.train.methods._losses import unit
from cid.train.settings import at_least, setting

if TYPE_CHECKING:
    from torch import Tensor

    from cid.train.methods import Training
    from cid.train.methods._maps import Pair


@register
@dataclass(frozen=True)
class SP(MapsMethod):
    """`ce + kd_weight * kd + sp_gamma * sp`: which samples of a batch are alike to each network.

    The similarities `G(F)` (B, B) of maps F are the products of the samples' activations, each row of length 1;
    `sp = mean (G(S) - G(T))^2`, of the last pair of layers.

    Source: F. Tung and G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
    """

    name = "sp"
    terms = ("ce", "kd", "sp")

    sp_gamma: float = setting(3000.0, "weight of the similarities", rule=at_least(0))

    def compare(self, training: Training, pairs: list[Pair]) -> tuple[Tensor, dict[str, Tensor]]:
        """The distance of the similarities."""
        ours, theirs = map(similarities, pairs[-1])
        sp = (ours - theirs).square().mean()
        return self.sp_gamma * sp, {"sp": sp}


def similarities(maps: Tensor) -> Tensor:
    """How alike samples (B, ...) are, (B, B), each row of length 1."""
    rows = maps.flatten(1)
    return unit(rows @ rows.T)
