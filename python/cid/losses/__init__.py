"""The losses as modules, which hold options, parameters and state; the formulas are in `cid.functional`."""

from cid.losses.criterion import CIDLoss, ignored_by_ddp

__all__ = ["CIDLoss", "ignored_by_ddp"]
