"""Plain distillation: Hinton et al. 2015."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cid.train.methods import LogitsMethod, _shared, register
from cid.train.methods._losses import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class KD(LogitsMethod):
    """Plain distillation: `alpha * (ce + kd)`, which is CID's loss without what is new in CID."""

    name = "kd"
    terms = ("ce", "kd")
    takes_shares = True

    alpha: float = _shared.alpha()
    temperature: float = _shared.temperature()

    def loss(
        self, logits: Tensor, teacher: Tensor, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its terms."""
        from cid.functional import kd_loss

        ce = cross_entropy(logits, target, weight)
        kd = kd_loss(logits, teacher, weight=weight, temperature=self.temperature)
        return self.alpha * (ce + kd), {"ce": ce, "kd": kd}
