"""Comprehensive, interventional knowledge distillation for PyTorch classifiers.

`cid.Distiller` wraps two models; `cid.CIDLoss` is the loss for a training loop of your own; `cid.functional` has the
formulas.
"""

from importlib.metadata import version

from cid import functional
from cid.context import ContextBank
from cid.distiller import Distiller, InterventionalStudent, teacher_outputs
from cid.functional import CIDOutput
from cid.head import FoldedHead, InterventionalHead
from cid.losses import CIDLoss, ClassLoss, KDLoss, SampleLoss

__version__ = version("cid-distill")

__all__ = [
    "CIDLoss",
    "CIDOutput",
    "ClassLoss",
    "ContextBank",
    "Distiller",
    "FoldedHead",
    "InterventionalHead",
    "InterventionalStudent",
    "KDLoss",
    "SampleLoss",
    "__version__",
    "functional",
    "teacher_outputs",
]
