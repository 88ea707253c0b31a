"""Where a measurement was made, and of what."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

import cid
from cid import _native


def hardware() -> dict[str, object]:
    """CPU, tier, threads, versions, and the commit of the source tree (None for an installed package)."""
    build = _native.build_info()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "simd": build["simd"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cid": cid.__version__,
        "commit": _commit(Path(cid.__file__)),
    }


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit(source: Path) -> str | None:
    """The commit that a file is at, with "-dirty" where tracked files have changed."""
    try:
        _git(source.parent, "ls-files", "--error-unmatch", source.name)  # fails in a folder that git ignores
        commit = _git(source.parent, "rev-parse", "--short", "HEAD")
        changed = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
