"""The losses as modules, which hold options, parameters and state; the formulas are in `cid.functional`."""

from cid.losses.class_ import ClassLoss
from cid.losses.criterion import CIDLoss, ignored_by_ddp
from cid.losses.kd import KDLoss
from cid.losses.sample import SampleLoss

__all__ = ["CIDLoss", "ClassLoss", "KDLoss", "SampleLoss", "ignored_by_ddp"]
