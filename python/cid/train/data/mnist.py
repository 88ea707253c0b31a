"""MNIST: handwritten digits of 28 x 28."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from cid._errors import DataError
from cid.train.data.dataset import RawData
from cid.train.data.images import Bytes, Preprocessing, Split
from cid.train.data.published import Published, read_bytes
from cid.train.sections import DataConfig

MNIST = Published(
    "MNIST",
    "http://yann.lecun.com/exdb/mnist/",
    (
        (
            "MNIST/raw",
            ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        ),
    ),
)
PREPROCESSING = Preprocessing(255.0, (0.1307,), (0.3081,))


def read_mnist(config: DataConfig) -> RawData:
    """MNIST's four IDX files, gzipped or not."""
    train_images, train_labels, test_images, test_labels = MNIST.find(config)
    return RawData(
        _read(train_images, train_labels), _read(test_images, test_labels), tuple(map(str, range(10))), PREPROCESSING
    )


def _read(images: Path, labels: Path) -> Split:
    pixels, classes = _read_idx(images, 3), _read_idx(labels, 1)
    if len(pixels) != len(classes):
        raise DataError(f"{images}: has {len(pixels)} images, but {labels.name} has {len(classes)} labels")
    return Split.from_numpy(pixels[:, None], classes)


def _read_idx(path: Path, rank: int) -> Bytes:
    """An IDX file of bytes: two zeros, the type (8), the rank, the sizes (big-endian), the values."""
    raw = read_bytes(path)
    header = 4 + 4 * rank
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, rank)):
        raise DataError(f"{path}: starts with {raw[:4].hex()!r}, expected 000008{rank:02x}: no IDX file of bytes")
    shape = struct.unpack(f">{rank}I", raw[4:header])
    values = np.frombuffer(raw, np.uint8, offset=header)
    if values.size != int(np.prod(shape, dtype=object)):
        raise DataError(f"{path}: has {values.size} values, its header says {shape}: the file is damaged")
    return values.reshape(shape)
