"""The rows of a study: a line of JSON for every network, appended once it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cid._errors import CheckpointError, ConfigError
from cid.train.files import read_json_lines

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file, each network's first one of each training of its teacher; none where there is no file.

    Raises:
        CheckpointError: the file can't be read.
    """
    found: dict[tuple[str, str | None], Row] = {}
    try:
        for row in read_json_lines(path):
            if isinstance(row, dict) and "digest" in row:
                found.setdefault((row["digest"], row.get("teacher")), row)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return list(found.values())


def append_row(path: Path, row: Row) -> None:
    """Appends a row, on a line of its own whatever the last one is, and syncs it."""
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it no other process works on the study in this folder (where the system has locks of files).

    Raises:
        ConfigError: another one does.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"--out: got {folder}, in which another cid study works, accepted: one at a time"
            ) from error
        yield
