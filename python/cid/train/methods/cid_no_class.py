"""CID without its class representation."""

from __future__ import annotations

from dataclasses import dataclass

from cid.train.methods import register
from cid.train.methods.cid import CID


@register
@dataclass(frozen=True)
class CIDWithoutClass(CID):
    """As `cid` with gamma 0: what the class representation adds is the difference."""

    name = "cid-no-class"
    terms = ("ce", "kd", "sample")
