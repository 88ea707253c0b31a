"""Files that are whole at any time."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cid._errors import CheckpointError
from cid._files import write_atomically
from cid.train.files import read_tensors, write_tensors


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    owner = {"fsync": os, "replace": Path}[where]
    monkeypatch.setattr(owner, where, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_and_header_round_trip(tmp_path: Path) -> None:
    shared = torch.randn(3, 2)
    tensors = {
        "a": shared,
        "tied": shared,
        "view": shared.t(),
        "half": shared.bfloat16(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 2),
    }
    write_tensors(tmp_path / "x.safetensors", tensors, {"step": 3, "loss": [0.1, None]})
    read, header = read_tensors(tmp_path / "x.safetensors")
    assert header == {"step": 3, "loss": [0.1, None]}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) and read[key].dtype == tensors[key].dtype for key in tensors)


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 20, b"\xff" * 100])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_tensors(path)
