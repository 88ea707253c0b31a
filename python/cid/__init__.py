"""Comprehensive, interventional knowledge distillation for PyTorch classifiers.

`cid.Distiller` wraps two models; `cid.CIDLoss` is the loss for a training loop of your own; `cid.functional` has the
formulas, `cid.propensity` weights of samples.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

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
    "propensity",
    "teacher_outputs",
]

if TYPE_CHECKING:
    from cid import functional, propensity
    from cid.context import ContextBank
    from cid.distiller import Distiller
    from cid.functional import CIDOutput
    from cid.head import FoldedHead, InterventionalHead
    from cid.losses import CIDLoss, ClassLoss, KDLoss, SampleLoss
    from cid.student import InterventionalStudent
    from cid.teacher import teacher_outputs
else:  # to a type checker a module with `__getattr__` has every name
    _MODULES = {
        "CIDLoss": "losses",
        "CIDOutput": "functional",
        "ClassLoss": "losses",
        "ContextBank": "context",
        "Distiller": "distiller",
        "FoldedHead": "head",
        "InterventionalHead": "head",
        "InterventionalStudent": "student",
        "KDLoss": "losses",
        "SampleLoss": "losses",
        "teacher_outputs": "teacher",
    }

    def __getattr__(name: str) -> Any:
        # Late, as these import PyTorch, which takes seconds: `cid --help` needs none of it.
        if name in ("functional", "propensity"):
            return import_module(f"cid.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"cid.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
