"""The ways to train a student: each a file of this folder, which the registry finds.

A file declares one class, a `Method` with the decorator `register`: its name, its options as fields, the terms of its
loss, and what it does with a batch. That is all there is to a new method: its options become flags and keys of the
section `[method]`, its name one of `--methods`, its terms a chart of `cid report`. Files whose names begin with `_` are
what methods share or train beside the student. Importing a method imports no PyTorch, for the command line reads the
options of all.
"""

from __future__ import annotations

import dataclasses
import pkgutil
import typing
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cid.train.methods._base import REGISTERED, Ingredients, LogitsMethod, Method, StepOutput, register
from cid.train.methods._weighting import Lab, SampleWeights, Weighting

if TYPE_CHECKING:
    from cid.train.methods._training import Training

__all__ = [
    "DEFAULT_METHODS",
    "Ingredients",
    "Lab",
    "LogitsMethod",
    "Method",
    "SampleWeights",
    "StepOutput",
    "Training",
    "Weighting",
    "option_fields",
    "register",
    "registry",
]

# What a run compares unless it is told; in tables and charts these come first.
DEFAULT_METHODS = ("labels", "kd", "cid", "cid-ipw")


def __getattr__(name: str) -> Any:
    if name == "Training":  # it needs PyTorch
        from cid.train.methods._training import Training

        return Training
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def registry() -> dict[str, type[Method]]:
    """All methods by name: those of `DEFAULT_METHODS`, then others by name."""
    for found in pkgutil.iter_modules(__path__):
        if not found.name.startswith("_"):
            import_module(f"{__name__}.{found.name}")
    others = sorted(REGISTERED.keys() - set(DEFAULT_METHODS))
    return {name: REGISTERED[name] for name in (*DEFAULT_METHODS, *others)}


def option_fields() -> list[tuple[str, Any, Any]]:
    """The options of all methods as fields of one dataclass: name, type and field, an option that several have once.

    Raises:
        TypeError: two methods declare an option of one name differently, or one has the name of something else.
    """
    order: list[str] = []
    owners: dict[str, list[str]] = {}
    declared: dict[str, tuple[Any, Any]] = {}
    for method in registry().values():
        hints, place = typing.get_type_hints(method), len(order)
        for item in dataclasses.fields(method):
            name = item.name
            if name in _TAKEN:
                raise TypeError(f"method {method.name} declares the option {name!r}, accepted: any other name")
            if name not in declared:
                declared[name] = (hints[name], item)
                order.insert(place, name)  # after the option that the method declares before it
            elif not _same(declared[name], (hints[name], item)):
                raise TypeError(
                    f"methods {owners[name][0]} and {method.name} declare the option {name!r} differently, accepted: "
                    "one declaration that both use (see cid.train.methods._shared), or two names"
                )
            place = order.index(name) + 1
            owners.setdefault(name, []).append(method.name)
    return [(name, declared[name][0], _field(declared[name][1], owners[name])) for name in order]


# What the section has beside the options.
_TAKEN = ("methods", "options")


def _same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    (kind, item), (other_kind, other_item) = one, other
    return (kind, item.default, item.metadata) == (other_kind, other_item.default, other_item.metadata)


def _field(item: Any, owners: list[str]) -> Any:
    """A field as `item`, whose help begins with the methods that have it."""
    *first, last = owners
    names = f"{', '.join(first)} and {last}" if first else last
    return dataclasses.field(
        default=item.default, metadata={**item.metadata, "help": f"{names}: {item.metadata['help']}"}
    )
