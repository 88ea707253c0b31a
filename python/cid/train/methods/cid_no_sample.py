"""CID without its sample representation."""

from __future__ import annotations

from dataclasses import dataclass

from cid.train.methods import register
from cid.train.methods.cid import CID


@register
@dataclass(frozen=True)
class CIDWithoutSample(CID):
    """As `cid` with beta 0: what the sample representation adds is the difference."""

    name = "cid-no-sample"
    terms = ("ce", "kd", "class")
