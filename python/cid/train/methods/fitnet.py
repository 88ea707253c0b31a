"""Hints: Romero et al. 2015."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cid.train.methods import Ingredients, register
from cid.train.methods._features import MapsMethod, middle
from cid.train.methods._losses import full
from cid.train.settings import at_least, setting

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cid.train.methods import Training
    from cid.train.methods._maps import Pair


@register
@dataclass(frozen=True)
class FitNet(MapsMethod):
    """`ce + kd_weight * kd + fitnet_beta * hint`: maps in the middle of the student foretell the teacher's.

    `hint = mean (r(S) - T)^2` of the middle one of the pairs of layers (of an even number the first of the two), where
    r is a regressor that is trained along: a 1 x 1 convolution and batch normalisation.

    The paper trains the student up to its layer by the hint alone at first, then the whole by the softened logits; here
    both terms are trained together, as later comparisons do (Tian et al. 2020, whose weight is the default).

    Source: A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta and Y. Bengio, "FitNets: Hints for Thin Deep
    Nets", ICLR 2015.
    """

    name = "fitnet"
    terms = ("ce", "kd", "hint")

    fitnet_beta: float = setting(100.0, "weight of the hint", rule=at_least(0))

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """Both networks, where the maps are found, and the regressor."""
        from torch.nn import BatchNorm2d, Conv2d, Sequential

        from cid.train.methods._maps import Maps

        networks = super().networks(given)
        maps = networks["maps"]
        assert isinstance(maps, Maps)
        ours, theirs = middle(maps.channels)
        regressor = Sequential(Conv2d(ours, theirs, 1, bias=False), BatchNorm2d(theirs))
        return {**networks, "regressor": regressor}

    def compare(self, training: Training, pairs: list[Pair]) -> tuple[Tensor, dict[str, Tensor]]:
        """How far the foretold maps are from the teacher's."""
        ours, theirs = middle(pairs)
        foretold = training.regressor(ours.to(training.regressor[0].weight.dtype))
        hint = (full(foretold) - theirs).square().mean()
        return self.fitnet_beta * hint, {"hint": hint}
