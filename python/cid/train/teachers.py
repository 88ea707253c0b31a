"""Teachers that exist: a file of weights, of our own or of others, for the inputs and the classes of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from cid._errors import CheckpointError
from cid.train.data import Dataset
from cid.train.files import all_finite
from cid.train.models import InputSpec, build_model, library_of
from cid.train.models.feed import Feed
from cid.train.models.published import Start, class_axes, rows_by_name, some, with_rows
from cid.train.networks import Description, is_description, read_description, rebuilt
from cid.train.states import fitted, read_state, without_prefix


def read_teacher(
    path: Path, name: str, data: Dataset, *, size: int | None = None, own_inputs: bool = True, new_head: bool = False
) -> Start:
    """The teacher of `--teacher-checkpoint`.

    One that is described by the JSON beside it, as a run and `cid finetune` leave it, reads its inputs as it was
    trained on them, and may know more classes than the data has, in another order. Of one that is not, any file of
    weights, the classes are taken for the data's.

    Args:
        path: a safetensors file, or one of `torch.save`.
        name: what `--teacher` says.
        data: the data set.
        size: of the square to which the network brings images; None for that of its training, if that is known.
        own_inputs: whether a library's model that is not described reads images as its own configuration says, rather
            than as the data set has them.
        new_head: whether its classes may be others: rows of the classifying layer that do not fit are fresh then.

    Raises:
        CheckpointError: the file is missing, damaged, of another network, or lacks a class of the data.
        ConfigError: there is no such network, or it does not take such images.
    """
    try:
        state, beside = read_state(path), path.with_suffix(".json")
        if not all_finite(state):
            raise CheckpointError(f"{path}: holds weights that are not finite")
        if is_description(beside):
            return _described(path, state, name, data, size, new_head=new_head)
        start = _found(path, state, name, data, size, own_inputs=own_inputs, new_head=new_head)
        # A configuration of another program's, say.
        ignored = f"; {beside.name} beside it is not cid's and is ignored" if beside.is_file() else ""
        return replace(start, said=start.said + ignored)
    except CheckpointError as error:
        raise CheckpointError(f"--teacher-checkpoint: {error}") from error


def _described(
    path: Path, state: dict[str, Tensor], name: str, data: Dataset, size: int | None, *, new_head: bool
) -> Start:
    description, intervention = read_description(path.with_suffix(".json"))
    # A model of Transformers is what its configuration says, wherever its folder lies.
    both_hf = description.config is not None and name.startswith("hf:")
    if intervention is not None or (description.model != name and not both_hf):
        kind = f"{description.model} with an interventional head" if intervention else description.model
        raise CheckpointError(f"{path} is a {kind}, but --teacher is {name}")
    rows = rows_by_name([(each,) for each in description.classes], data.classes)
    new = tuple(one for one, row in zip(data.classes, rows, strict=True) if row is None)
    if new and not new_head:
        raise CheckpointError(
            f"{path} knows the classes {', '.join(some(description.classes))}, and not {', '.join(some(new))}, which "
            "the data has, too"
        )
    if data.channels not in (1, description.channels):
        raise CheckpointError(
            f"{path} reads images of {description.channels} channels, and the data's have {data.channels}"
        )
    network = _for_data(description, data, size)
    if rows != [*range(len(description.classes))]:
        axes = class_axes(name, replace(description.spec, classes=len(data.classes)), description.config)
        state = _with_head(state, network, axes, rows)
    network.load_state_dict(fitted(state, network.state_dict(), path, name))
    order = "" if rows == [*range(len(rows))] else ", by name"
    said = f"of its {len(description.classes)} classes {len(data.classes) - len(new)} are the data's{order}"
    return Start(network, new, f"{name}: weights of {path}; {said}")


def _for_data(description: Description, data: Dataset, size: int | None) -> nn.Module:
    """The network that is described, with fresh weights, for the data's classes, and inputs as the data has them."""
    feed = description.feed or Feed.plain(description.channels, data.size)
    feed = feed.after(data.preprocessing, description.preprocessing)
    if size is not None:
        feed = replace(feed, size=(size, size))
    spec = InputSpec(data.channels, data.size, len(data.classes))
    here = feed if description.feed is not None or feed.changes(spec) else None
    return rebuilt(replace(description, classes=data.classes, feed=here))


def _found(
    path: Path,
    state: dict[str, Tensor],
    name: str,
    data: Dataset,
    size: int | None,
    *,
    own_inputs: bool,
    new_head: bool,
) -> Start:
    spec = InputSpec(data.channels, data.size, len(data.classes))
    own_inputs = own_inputs and library_of(name) is not None
    network = build_model(name, spec, size=size, given=data.preprocessing if own_inputs else None)
    try:
        weights, new = fitted(state, network.state_dict(), path, name), False
    except CheckpointError as error:
        axes = class_axes(name, spec)
        theirs = _classes(without_prefix(state, network.state_dict().keys()), axes)
        if theirs is None or theirs == spec.classes:
            raise
        if not new_head:
            raise CheckpointError(
                f"{error}. It tells {theirs} classes, and the data has {spec.classes}: cid finetune trains a "
                "classifying layer for these"
            ) from error
        plain = without_prefix(state, network.state_dict().keys())
        bare = _with_head(plain, network, axes, [None] * spec.classes)
        weights, new = fitted(bare, network.state_dict(), path, name), True
    network.load_state_dict(weights)
    read = f"; images are normalised as {name} is published (else: --teacher-inputs data)" if own_inputs else ""
    classes = "its classifying layer is new" if new else "its classes are taken for the data's, in their order"
    return Start(network, data.classes if new else (), f"{name}: weights of {path}; {classes}{read}")


def _classes(state: Mapping[str, Tensor], axes: Mapping[str, int]) -> int | None:
    """How many classes the weights are of; None where they have no classifying layer of this network."""
    return next((state[key].shape[axis] for key, axis in axes.items() if key in state), None)


def _with_head(
    state: Mapping[str, Tensor], network: nn.Module, axes: Mapping[str, int], rows: list[int | None]
) -> dict[str, Tensor]:
    """The weights with those rows of the classifying layer that are the data's classes; the others are fresh."""
    fresh = network.state_dict()
    return {**state, **{key: with_rows(fresh[key], state.get(key), rows, axis) for key, axis in axes.items()}}
