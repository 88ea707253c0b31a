"""Weights that others have saved: read from any usual file, and fitted to a network by the names of its tensors."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cid._errors import CheckpointError
from cid.train.files import read_tensors

# Under what checkpoints of usual loops keep the weights.
NESTED = ("state_dict", "model_state_dict", "model", "teacher", "net", "network", "module", "weights")
# What wrappers put before the names of tensors: DistributedDataParallel, averages, and modules of usual loops.
PREFIXES = ("module.", "model.", "teacher.", "student.", "net.", "network.", "backbone.", "encoder.")
OF_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")
SHOWN = 8


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, or in one of `torch.save`, of which nothing is run.

    Raises:
        CheckpointError: it can't be read, holds more than tensors and plain values, or no weights.
    """
    if path.suffix.lower() == ".safetensors":
        return _dense(read_tensors(path)[0], path)
    if path.suffix.lower() not in OF_TORCH:
        raise CheckpointError(f"{path}: accepted: a file that ends in .safetensors, {', '.join(OF_TORCH)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, or is no file of torch.save; reading such could run "
            "whatever was put into it. Accepted: what torch.save(model.state_dict(), FILE) writes"
        ) from error
    except Exception as error:  # of a damaged file PyTorch raises whatever it stumbles over
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    found = _weights(content)
    if found is None:
        what = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path}: holds no weights, accepted: tensors by name, or under {NESTED[0]!r}; got {what}"
        )
    return _dense(found, path)


def _dense(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for key, value in state.items():
        if value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized:
            kind = "has no values" if value.is_meta else f"is {value.layout}, {value.dtype}"
            raise CheckpointError(f"{path}: {key} {kind}, accepted: dense tensors of real numbers")
    return state


def _weights(content: Any) -> dict[str, Tensor] | None:
    """The tensors by name that a checkpoint is, or that it has under a usual name."""
    if not isinstance(content, Mapping):
        return None
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors and len(tensors) == len(content):
        return tensors
    nested = (_weights(content[key]) for key in NESTED if key in content)
    return next((found for found in nested if found is not None), tensors or None)


def fitted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, model: str) -> dict[str, Tensor]:
    """The weights under the names that a network has, without what wrappers put before them.

    Args:
        state: what a file has.
        expected: what the network has.
        path: of the file, for the message.
        model: what the network is called there.

    Raises:
        CheckpointError: tensors are missing, unknown or of other shapes; each of them is named, up to a few of a kind.
    """
    found = without_prefix(state, expected.keys())
    # Counts of batches, which old files do not have and nothing computes with.
    counts = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked") and key not in found}
    found = {**found, **counts}
    missing = [key for key in expected if key not in found]
    unknown = [key for key in found if key not in expected]
    shapes = [
        f"{key} {tuple(found[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
    wrong = [f"{kind} ({len(keys)}): {_listed(keys)}" for kind, keys in kinds if keys]
    if wrong:
        raise CheckpointError(f"{path} does not fit {model}: {'; '.join(wrong)}")
    return found


def _listed(keys: Collection[str]) -> str:
    shown = [*keys][:SHOWN]
    return ", ".join(shown) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def without_prefix(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """The tensors of which most have an expected name, once what stands before all of these is taken off."""
    plain = {key.replace("_orig_mod.", ""): value for key, value in state.items()}  # a compiled part's, at any place
    return max(_candidates(plain), key=lambda found: len(found.keys() & set(expected)))


def _candidates(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    yield state
    for prefix in PREFIXES:
        within = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if within:
            yield from _candidates(within)
