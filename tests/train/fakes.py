"""Tiny files in the published layouts, of random pixels."""

import gzip
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests import draws

Bytes = NDArray[np.uint8]


def pixels(count: int, *shape: int) -> Bytes:
    return np.random.default_rng((draws.SHIFT, count)).integers(0, 256, (count, *shape), dtype=np.uint8)


def cifar10_binary(base: Path, per_file: int = 8) -> tuple[Bytes, Bytes]:
    """Writes six files; returns the training images (N, 3072) and labels."""
    folder = base / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    images, labels = pixels(6 * per_file, 3072), np.arange(6 * per_file, dtype=np.uint8) % 10
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(i * per_file, (i + 1) * per_file)
        np.concatenate([labels[part, None], images[part]], axis=1).tofile(folder / f"{name}.bin")
    return images[: 5 * per_file], labels[: 5 * per_file]


def cifar10_pickled(base: Path, per_file: int = 8, protocol: int = 2) -> tuple[Bytes, Bytes]:
    """As `cifar10_binary`, in the python version."""
    folder = base / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, labels = pixels(6 * per_file, 3072), np.arange(6 * per_file, dtype=np.uint8) % 10
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(i * per_file, (i + 1) * per_file)
        batch = {b"batch_label": b"x", b"labels": labels[part].tolist(), b"data": images[part], b"filenames": [b"a"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return images[: 5 * per_file], labels[: 5 * per_file]


def cifar100(base: Path, *, binary: bool) -> tuple[Bytes, Bytes]:
    """Writes `train` and `test`; returns the training images and fine labels."""
    folder = base / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir(parents=True)
    images, fine = pixels(20, 3072), np.arange(80, 100, dtype=np.uint8)
    coarse = np.full(20, 3, np.uint8)
    for name in ("train", "test"):
        if binary:
            np.concatenate([coarse[:, None], fine[:, None], images], axis=1).tofile(folder / f"{name}.bin")
        else:
            batch = {b"coarse_labels": coarse.tolist(), b"fine_labels": fine.tolist(), b"data": images}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
    return images, fine


def mnist(base: Path, *, gzipped: bool) -> tuple[Bytes, Bytes]:
    """Writes the four IDX files; returns the training images and labels."""
    folder = base / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images, labels = pixels(20, 28, 28), np.arange(20, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
            raw = header + values.tobytes()
            path = folder / f"{part}-{kind}-ubyte"
            if gzipped:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
            else:
                path.write_bytes(raw)
    return images, labels


def image_folder(base: Path, counts: Mapping[str, int] = MappingProxyType({"train": 3, "test": 1})) -> None:
    """So many images of each of two classes, in folders; the one numbered i of the n-th folder is 100 class + 10 n + i.

    All are of 10 x 8 pixels.
    """
    for part, (name, count) in enumerate(counts.items()):
        for label, class_name in enumerate(("cat", "dog")):
            folder = base / name / class_name
            folder.mkdir(parents=True)
            for i in range(count):
                value = 100 * label + 10 * part + i
                Image.fromarray(np.full((10, 8, 3), value, np.uint8)).save(folder / f"{i}.png")
