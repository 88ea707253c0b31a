"""The options that a formula hands to a backend as one."""

from typing import NamedTuple


class KDOptions(NamedTuple):
    """Those of `cid.functional.kd_loss`."""

    temperature: float
    divergence: str
    beta: float
    ignore_index: int
    reduction: str


class CIDOptions(NamedTuple):
    """The numbers of `cid.functional.cid_loss`."""

    alpha: float
    beta: float
    gamma: float
    temperature: float
    ignore_index: int
