"""A disk that is full after some files."""

import errno
import os
from pathlib import Path

import pytest


def fill_up(patch: pytest.MonkeyPatch, files: int) -> None:
    """Let that many files be moved to their places; the next fails as on a full disk."""
    replace, left = Path.replace, files

    def until_full(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return replace(self, target)

    patch.setattr(Path, "replace", until_full)
