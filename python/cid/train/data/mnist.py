"""MNIST: handwritten digits of 28 x 28, in grey and in colours that go with the class."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np

from cid._errors import DataError
from cid.train.data.bias import COLOURS, Indices, to_bytes, with_context
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
COLOURED = Preprocessing(255.0, (0.070, 0.056, 0.065), (0.223, 0.190, 0.213))
JITTER = 0.005  # standard deviation of an image's colour from that of its kind


def read_mnist(config: DataConfig) -> RawData:
    """MNIST's four IDX files, gzipped or not."""
    train_images, train_labels, test_images, test_labels = MNIST.find(config)
    return RawData(
        _read(train_images, train_labels), _read(test_images, test_labels), tuple(map(str, range(10))), PREPROCESSING
    )


def read_colored_mnist(config: DataConfig) -> RawData:
    """MNIST with its strokes in colours, on black: `--rho` of the digits have the colour of their class.

    The others have one of the nine other colours, each as likely; an image's colour is off by a little. So in the
    training part and in the test; in the test `unbiased` each of the ten colours is as likely. The colours are ours.

    Source:
        After Nam et al., "Learning from Failure: Training Debiased Classifier from Biased Classifier", NeurIPS 2020.
    """
    assert config.rho is not None
    raw = with_context(read_mnist(config), _in_colours, tuple(COLOURS), aligned=config.rho, seed=config.data_seed)
    return replace(raw, preprocessing=COLOURED)


def _in_colours(images: Bytes, colours: Indices, rng: np.random.Generator) -> Bytes:
    """The strokes of each image in its colour, in three channels of bytes."""
    exact = np.array(list(COLOURS.values()))[colours]
    colour = to_bytes(exact + rng.normal(scale=JITTER, size=exact.shape))
    strokes = images.astype(np.uint16) * colour[:, :, None, None]
    strokes += 127  # to the nearest
    strokes //= 255
    return strokes.astype(np.uint8)


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
