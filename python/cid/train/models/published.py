"""Networks that start from published weights, their classifying layers fitted to a data set's classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cid._errors import ConfigError
from cid.train.data import Preprocessing
from cid.train.models import InputSpec, bare_model, build_model, library_of


@dataclass(frozen=True)
class Start:
    """A network that others have trained.

    Attributes:
        network: which reads a data set's inputs and yields logits of its classes.
        new: the classes whose rows of the classifying layer are not trained.
        said: where it is from and which classes it knows, for people to read.
    """

    network: nn.Module
    new: tuple[str, ...]
    said: str


def start_from_published(
    name: str,
    spec: InputSpec,
    classes: Sequence[str],
    given: Preprocessing,
    *,
    folder: Path | None = None,
    size: int | None = None,
) -> Start:
    """A library's model with its published weights.

    Its classifying layer takes the rows of those of the model's own classes that are called as the data's; the rows of
    others are fresh, from the global random state.

    Args:
        name: of the network.
        spec: of the data's inputs and classes.
        classes: what these are called.
        given: how the inputs are normalised; the model reads them as its own configuration says.
        folder: that has the published files, where nothing is to be downloaded.
        size: of the square to which the network brings images.

    Raises:
        ConfigError: it is no library's model, has no such weights, or they can't be had.
    """
    found = library_of(name)
    if found is None:
        raise ConfigError(f"--pretrained: got {name!r}, accepted: a network of timm, torchvision or hf")
    network = build_model(name, spec, size=size, given=given)
    library, own = found
    try:
        published = library.published(own, folder)
    # What isn't there, can't be reached, or was never published: the libraries and what they load with differ in it.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"--pretrained: the weights of {name!r} can't be had ({reason}). Where nothing can be downloaded, "
            "--pretrained-dir takes a folder with the published files, --teacher hf:FOLDER a model's own folder, and "
            "--teacher-checkpoint a file of weights"
        ) from error
    state, count = published.state, len(published.classes)
    rows = rows_by_name(published.classes, classes)
    axes = class_axes(name, spec)
    fresh = network.state_dict()
    strange = [key for key in fresh if key not in axes and (key not in state or state[key].shape != fresh[key].shape)]
    if strange:
        raise ConfigError(f"--pretrained: the published weights of {name!r} do not fit it: {', '.join(strange[:8])}")
    if any(key not in state or state[key].shape[axis] != count for key, axis in axes.items()):
        rows = [None] * len(classes)  # it has no classifying layer, or not one with a row for each of its classes
    taken = {**{key: state[key] for key in fresh if key not in axes}}
    for key, axis in axes.items():
        taken[key] = with_rows(fresh[key], state.get(key), rows, axis)
    network.load_state_dict(taken)
    new = tuple(one for one, row in zip(classes, rows, strict=True) if row is None)
    said = f"{name}: published weights; {_mapped(classes, rows, published.classes)}"
    return Start(network, new, said)


def _mapped(classes: Sequence[str], rows: Sequence[int | None], theirs: Sequence[Sequence[str]]) -> str:
    known = [(one, theirs[row]) for one, row in zip(classes, rows, strict=True) if row is not None]
    if not theirs:
        return "its classes have no names: its classifying layer is new"
    if not known:
        return f"none of its {len(theirs)} classes is called as one of the data's: its classifying layer is new"
    pairs = ", ".join(f"{one} is its {names[0]!r}" for one, names in known[:5]) + (", ..." if len(known) > 5 else "")
    new = len(classes) - len(known)
    rest = f"; new in its classifying layer: {', '.join(some(_without(classes, rows)))}" if new else ""
    return f"of its {len(theirs)} classes {len(known)} of the data's {len(classes)} are found by name ({pairs}){rest}"


def _without(classes: Sequence[str], rows: Sequence[int | None]) -> list[str]:
    return [one for one, row in zip(classes, rows, strict=True) if row is None]


def some(names: Sequence[str], count: int = 8) -> list[str]:
    """The first of many, and how many more there are."""
    return [*names[:count], *([f"and {len(names) - count} more"] if len(names) > count else [])]


def rows_by_name(theirs: Sequence[Sequence[str]], ours: Sequence[str]) -> list[int | None]:
    """For each of our classes which of theirs it is, by name; None where none is, or several are.

    Args:
        theirs: all names of each of their classes.
        ours: the name of each of ours.
    """
    exact = _places(theirs, lambda name: name)
    alike = _places(theirs, _plain)
    shared = {name for name, count in Counter(map(_plain, ours)).items() if count > 1}
    found: list[int | None] = []
    for name in ours:
        row = exact.get(name)
        if row is None and name not in exact and _plain(name) not in shared:
            row = alike.get(_plain(name))
        found.append(row)
    return found


def _places(classes: Sequence[Sequence[str]], form: Any) -> dict[str, int | None]:
    """The place of each name, None where several classes have it."""
    places: dict[str, int | None] = {}
    for place, names in enumerate(classes):
        for name in {form(each) for each in names}:
            places[name] = None if name in places else place
    return places


def _plain(name: str) -> str:
    """A name without what is written differently in folders and lists: case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def class_axes(name: str, spec: InputSpec, config: dict[str, Any] | None = None) -> dict[str, int]:
    """Which tensors of a network have a row for each class, and along which axis."""
    with torch.random.fork_rng(devices=[]):
        one, other = (
            bare_model(name, replace(spec, classes=count), config).state_dict()
            for count in (spec.classes, spec.classes + 1)
        )
    axes = {}
    for key, value in one.items():
        if value.shape != other[key].shape:
            sizes = zip(value.shape, other[key].shape, strict=True)
            axes[key] = next(axis for axis, (few, more) in enumerate(sizes) if few != more)
    return axes


def with_rows(fresh: Tensor, theirs: Tensor | None, rows: Sequence[int | None], axis: int) -> Tensor:
    """A tensor of a classifying layer, with the rows of another in the place of its own where there are such."""
    if theirs is None or fresh.shape[axis] != len(rows):
        return fresh
    kept = [place for place, row in enumerate(rows) if row is not None]
    taken = [row for row in rows if row is not None]
    if not taken:
        return fresh
    chosen = theirs.index_select(axis, torch.tensor(taken, device=theirs.device)).to(fresh)
    return fresh.index_copy(axis, torch.tensor(kept, device=fresh.device), chosen)
