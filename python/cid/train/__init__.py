"""What `cid distill`, `eval`, `report`, `export` and `cache` run.

`data`, `models` and `methods` have what a run is made of, `run` trains and scores, `results` makes tables and pages of
a run's folder, `ship` takes students elsewhere, `distillation` is all of it as a function; the other files beside them
are what several of these rooms need.

Needs the extra `cid-distill[train]`. Importing this package alone imports none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cid.train.distillation import RunResult, distill
    from cid.train.ship.predict import load_student

__all__ = ["RunResult", "distill", "load_student"]


def __getattr__(name: str) -> Any:
    # Late, so that the command line can parse its options without PyTorch.
    if name in ("RunResult", "distill"):
        from cid.train import distillation

        return getattr(distillation, name)
    if name == "load_student":
        from cid.train.ship.predict import load_student

        return load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
