"""Where a measurement was made, and of what."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

import cid._native as rust


def hardware(device: str = "cpu") -> dict[str, object]:
    """CPU, tier, threads, versions, and the commit of the source tree (None for an installed package).

    Args:
        device: with `"cuda"` also the GPU, its memory and L2 cache in bytes, the driver, and the versions of CUDA,
            Triton and Liger-Kernel.
    """
    build = rust.build_info()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "simd": build["simd"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cid": version("cid-distill"),
        "commit": _commit(Path(__file__)),
        **(_gpu() if device == "cuda" else {}),
    }


def _gpu() -> dict[str, object]:
    properties = torch.cuda.get_device_properties("cuda")
    return {
        "gpu": properties.name,
        "gpu_memory": properties.total_memory,
        "l2": properties.L2_cache_size,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "liger": _version("liger-kernel"),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.partition("\n")[0].strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
