"""Options that several methods have: declared here, each is one flag and one key for all of them."""

from __future__ import annotations

from typing import Any

from cid.train.settings import at_least, setting, within


def alpha() -> Any:
    """The weight of the sum `ce + kd`, 1 by default."""
    return setting(1.0, "weight of the labels and the softened logits", rule=at_least(0))


def temperature() -> Any:
    """The temperature T, 4 by default."""
    return setting(4.0, "softens logits and contexts", rule=within(1e-30, 1e30))


def kd_weight() -> Any:
    """The weight of the softened logits beside a comparison of features, 0 by default."""
    return setting(0.0, "weight of the softened logits beside the features that the method compares", rule=at_least(0))


def layers(role: str) -> Any:
    """Names of the layers whose maps are compared; none for the last of each size of map."""
    return setting((), f"layers of the {role} whose maps are compared (default: the last of each size of map)")
