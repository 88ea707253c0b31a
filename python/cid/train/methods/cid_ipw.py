"""Comprehensive distillation of samples weighted by inverse propensities."""

from __future__ import annotations

from dataclasses import dataclass

from cid.train.methods import register
from cid.train.methods._propensity import PropensityWeighted
from cid.train.methods.cid import CID


@register
@dataclass(frozen=True)
class WeightedCID(PropensityWeighted, CID):
    """As `cid`, of samples that count as `cid.propensity` says: the intervention by weights beside that by the head."""

    name = "cid-ipw"
