"""JSON and tensors in files that are whole at any time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cid._errors import CheckpointError
from cid._files import write_atomically


def write_json(path: Path, content: Any) -> None:
    """Writes JSON for people to read, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is no JSON: {error}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Reads a file with JSON in each line, but for a line that a crash cut off; there are none where there is no file.

    Raises:
        OSError: it can't be read.
    """
    lines: list[Any] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Any = None) -> None:
    """Writes tensors and, in the same file's header, JSON: the two can't get out of step."""
    content = separate(tensors)
    metadata = None if header is None else {"json": json.dumps(header)}
    write_atomically(path, safetensors.torch.save(content, metadata))


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU: safetensors refuses tensors that share memory, as tied weights do."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Reads what `write_tensors` wrote, onto the CPU.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(metadata.get("json", "null"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: is no readable safetensors file: {error}") from error


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no floating-point tensor holds a NaN or an infinity."""
    return all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())
