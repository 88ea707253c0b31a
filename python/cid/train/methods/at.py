"""Attention transfer: Zagoruyko and Komodakis 2017."""

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
class AT(MapsMethod):
    """`ce + kd_weight * kd + at_beta * at`: where in the image each network's maps are large.

    The attention `A(F)` of maps F (B, channels, H, W) is the mean of their squares over the channels, as a vector of
    HW values of length 1; `at = sum over the pairs of layers of mean (A(S) - A(T))^2`, over samples and places.

    Source: S. Zagoruyko and N. Komodakis, "Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer", ICLR 2017. The loss is its code's, which takes the mean of
    the squares where the paper has the norm; so is its weight, for maps of 8 x 8 to 32 x 32: of smaller ones the means
    are larger, and it is too much.
    """

    name = "at"
    terms = ("ce", "kd", "at")

    at_beta: float = setting(1000.0, "weight of the attention", rule=at_least(0))

    def compare(self, training: Training, pairs: list[Pair]) -> tuple[Tensor, dict[str, Tensor]]:
        """The distance of the attentions."""
        from torch import stack

        apart = [attention(pair.student) - attention(pair.teacher) for pair in pairs]
        at = stack([each.square().mean() for each in apart]).sum()
        return self.at_beta * at, {"at": at}


def attention(maps: Tensor) -> Tensor:
    """Where maps (B, channels, H, W) are large: (B, HW), of length 1."""
    return unit(maps.square().mean(1).flatten(1))
