"""Contrastive representation distillation: Tian et al. 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cid.train.methods import Ingredients, register
from cid.train.methods._features import RepresentationMethod
from cid.train.settings import above, at_least, setting

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cid.train.data import Batch
    from cid.train.methods import Training


@register
@dataclass(frozen=True)
class CRD(RepresentationMethod):
    """`ce + kd_weight * kd + crd_beta * crd`: a sample's two representations are told from those of other classes.

    Both are embedded in `crd_dim` dimensions by linear layers that are trained along. `crd` is the sum, over the two
    sides, of noise contrastive losses against what is remembered of the other's embeddings of all training samples: the
    sample's own among `crd_negatives` of other classes (as many as there are samples, where these are fewer).

    Source: Y. Tian, D. Krishnan and P. Isola, "Contrastive Representation Distillation", ICLR 2020. Left out of its
    code's formula is a 1e-7 in a denominator, which adds a constant; the memory begins with random directions.
    """

    name = "crd"
    terms = ("ce", "kd", "crd")
    keeps = "both embeddings"

    crd_beta: float = setting(0.8, "weight of the contrast", rule=at_least(0))
    crd_dim: int = setting(128, "dimensions of the embeddings", rule=at_least(1))
    crd_negatives: int = setting(16384, "samples of other classes that each is held against", rule=at_least(1))
    crd_temperature: float = setting(0.07, "of the products of embeddings", rule=above(0))

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """Both networks, where the representations are found, and the contrast with its memory."""
        from cid.train.methods._contrast import Contrast
        from cid.train.methods._representations import Representations

        networks = super().networks(given)
        found = networks["representations"]
        assert isinstance(found, Representations)
        contrast = Contrast(
            found.student_dim,
            found.teacher_dim,
            given.labels,
            dim=self.crd_dim,
            negatives=min(self.crd_negatives, len(given.labels)),
            temperature=self.crd_temperature,
        )
        return {**networks, "contrast": contrast}

    def compare(
        self, training: Training, batch: Batch, ours: Tensor, theirs: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrast of both sides."""
        crd = training.contrast(batch.indices, ours, theirs)
        return self.crd_beta * crd, {"crd": crd}
