"""Relational distillation: Park et al. 2019."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cid.train.methods import register
from cid.train.methods._features import RepresentationMethod
from cid.train.methods._losses import unit
from cid.train.settings import at_least, setting

if TYPE_CHECKING:
    from torch import Tensor

    from cid.train.data import Batch
    from cid.train.methods import Training


@register
@dataclass(frozen=True)
class RKD(RepresentationMethod):
    """`ce + kd_weight * kd + rkd_distance * distance + rkd_angle * angle`: how samples lie to each other.

    Both terms are means of Huber's loss of differences, `h(d) = d^2 / 2` up to 1 and `|d| - 1/2` beyond: of the
    distances between all pairs of representations, in means of those above 0; and of the cosines of the angles at j
    between i and k, of all triples. The latter are B^3: of batches of up to some hundred samples.

    Source: W. Park, D. Kim, Y. Lu and M. Cho, "Relational Knowledge Distillation", CVPR 2019, with its weights for
    CIFAR-100.
    """

    name = "rkd"
    terms = ("ce", "kd", "distance", "angle")

    rkd_distance: float = setting(25.0, "weight of the distances", rule=at_least(0))
    rkd_angle: float = setting(50.0, "weight of the angles", rule=at_least(0))

    def compilable(self, training: Training) -> bool:
        """Never: in bfloat16 on a CPU gradients are NaN by PyTorch 2.15's compiler, of finite losses."""
        return False

    def compare(
        self, training: Training, batch: Batch, ours: Tensor, theirs: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """How distances and angles differ."""
        from torch.nn.functional import smooth_l1_loss

        distance = smooth_l1_loss(distances(ours), distances(theirs))
        angle = smooth_l1_loss(cosines(ours), cosines(theirs))
        return self.rkd_distance * distance + self.rkd_angle * angle, {"distance": distance, "angle": angle}


def distances(x: Tensor) -> Tensor:
    """Between all pairs of rows, (B, B), in means of those above 0."""
    from torch import cdist, finfo

    found = cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    count = found.detach().gt(0).sum().clamp_min(1)
    return found / (found.sum() / count).clamp_min(finfo(found.dtype).tiny)


def cosines(x: Tensor) -> Tensor:
    """Of the angles at row j between rows i and k: (B, B, B), by j, i, k; 0 where two of them are one."""
    directions = unit(x[None] - x[:, None], dim=2)
    return directions @ directions.mT
