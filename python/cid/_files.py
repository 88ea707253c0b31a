"""Files that are whole at any time: written beside their place, synced, then renamed onto it."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replaces a file by `content`; a crash or a full disk at any time leaves the old or the new one.

    Raises:
        OSError: it could not be written; the old file is as it was.
    """
    # Of several processes of one run each has a name of its own; what a kill leaves is written over the next time.
    rank = os.environ.get("RANK")
    temporary = path.with_name(f".{path.name}.{rank}.tmp" if rank else f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself, where a folder can be synced (not on Windows)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
