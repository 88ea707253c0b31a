"""Tiny files in the published layouts, of random pixels."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]


def pixels(count: int, *shape: int) -> Bytes:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


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


def image_folder(base: Path, size: tuple[int, int] = (10, 8)) -> None:
    """Three training images and one test image of each of two classes."""
    for part, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            folder = base / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((*size, 3), 100 * label + i, np.uint8)).save(folder / f"{i}.png")
