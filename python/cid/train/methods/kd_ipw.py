"""Plain distillation of samples weighted by inverse propensities."""

from __future__ import annotations

from dataclasses import dataclass

from cid.train.methods import register
from cid.train.methods._propensity import PropensityWeighted
from cid.train.methods.kd import KD


@register
@dataclass(frozen=True)
class WeightedKD(PropensityWeighted, KD):
    """As `kd`, of samples that count as `cid.propensity` says."""

    name = "kd-ipw"
