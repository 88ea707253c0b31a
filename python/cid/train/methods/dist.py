"""Distillation from a stronger teacher, by correlations in place of a divergence: Huang et al. 2022."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cid.train.methods import LogitsMethod, _shared, register
from cid.train.methods._losses import cross_entropy
from cid.train.settings import at_least, setting

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class DIST(LogitsMethod):
    r"""`ce + dist_beta * inter + dist_gamma * intra`, of how the two softened predictions correlate.

    With P, Q (B, C) the softmax of the student's and the teacher's logits over T, and r Pearson's correlation,

        inter = T^2 mean_i (1 - r(P[i], Q[i]))        over the classes, for each sample
        intra = T^2 mean_j (1 - r(P[:, j], Q[:, j]))  over the batch's samples, for each class

    Source: T. Huang, S. You, F. Wang, C. Qian and C. Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS
    2022; the factor T^2 is its code's.
    """

    name = "dist"
    terms = ("ce", "inter", "intra")

    temperature: float = _shared.temperature()
    dist_beta: float = setting(2.0, "weight of the correlations over classes", rule=at_least(0))
    dist_gamma: float = setting(2.0, "weight of the correlations over samples", rule=at_least(0))

    def loss(
        self, logits: Tensor, teacher: Tensor, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its terms; a weight counts samples in `ce` and `inter`."""
        p, q = ((each / self.temperature).softmax(1) for each in (logits, teacher))
        ce = cross_entropy(logits, target, weight)
        scale, apart = self.temperature**2, 1 - correlation(p, q)
        inter = scale * (apart if weight is None else weight * apart).mean()
        intra = scale * (1 - correlation(p.T, q.T)).mean()
        return ce + self.dist_beta * inter + self.dist_gamma * intra, {"ce": ce, "inter": inter, "intra": intra}


def correlation(p: Tensor, q: Tensor) -> Tensor:
    """Pearson's correlation of each row of p with that of q; 0 where one is constant."""
    from torch.nn.functional import cosine_similarity

    return cosine_similarity(p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True), eps=1e-8)
