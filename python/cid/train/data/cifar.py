"""CIFAR-10 and CIFAR-100, each in its binary or its python version.

CIFAR-10 also with corruptions that go with the class.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cid._errors import DataError
from cid.train.data.bias import with_context
from cid.train.data.corruptions import CORRUPTIONS, corrupted
from cid.train.data.dataset import RawData
from cid.train.data.images import Bytes, Preprocessing, Split
from cid.train.data.published import Published, read_bytes
from cid.train.data.unpickle import load_batch
from cid.train.sections import DataConfig

_CIFAR10_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10 = Published(
    "CIFAR-10",
    "https://www.cs.toronto.edu/~kriz/cifar.html",
    (
        ("cifar-10-batches-bin", (*(f"{name}.bin" for name in _CIFAR10_TRAIN), "test_batch.bin")),
        ("cifar-10-batches-py", (*_CIFAR10_TRAIN, "test_batch")),
    ),
)
CIFAR100 = Published(
    "CIFAR-100",
    CIFAR10.home,
    (("cifar-100-binary", ("train.bin", "test.bin")), ("cifar-100-python", ("train", "test"))),
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_PREPROCESSING = Preprocessing(255.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_PREPROCESSING = Preprocessing(255.0, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
CORRUPTED_PREPROCESSING = Preprocessing(255.0, (0.530, 0.520, 0.486), (0.245, 0.243, 0.267))
PIXELS = 3 * 32 * 32


def read_cifar10(config: DataConfig) -> RawData:
    """CIFAR-10, the binary version if it is there, else the python version."""
    *train, test = CIFAR10.find(config)
    return RawData(_read(train, 1, "labels"), _read([test], 1, "labels"), CIFAR10_CLASSES, CIFAR10_PREPROCESSING)


def read_corrupted_cifar10(config: DataConfig) -> RawData:
    """CIFAR-10 with a corruption of each image: `--rho` of the images have the one that goes with their class.

    The others have one of the nine other corruptions, each as likely. So in the training part and in the test; in the
    test `unbiased` each of the ten is as likely. The corruptions are ours: see `cid.train.data.corruptions`.

    Source:
        After Nam et al., "Learning from Failure: Training Debiased Classifier from Biased Classifier", NeurIPS 2020.
    """
    assert config.rho is not None
    raw = with_context(read_cifar10(config), corrupted, tuple(CORRUPTIONS), aligned=config.rho, seed=config.data_seed)
    return replace(raw, preprocessing=CORRUPTED_PREPROCESSING)


def read_cifar100(config: DataConfig) -> RawData:
    """CIFAR-100 with its fine labels, the binary version if it is there, else the python version."""
    train, test = CIFAR100.find(config)
    names = train.with_name("fine_label_names.txt")
    classes = tuple(names.read_text(encoding="utf-8").split()) if names.is_file() else tuple(map(str, range(100)))
    return RawData(_read([train], 2, "fine_labels"), _read([test], 2, "fine_labels"), classes, CIFAR100_PREPROCESSING)


def _read(paths: list[Path], label_bytes: int, label_key: str) -> Split:
    """The images of several files, each of either version."""
    parts = [
        _read_records(path, label_bytes) if path.suffix == ".bin" else _read_pickle(path, label_key) for path in paths
    ]
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Split.from_numpy(images.reshape(-1, 3, 32, 32), labels)


def _read_records(path: Path, label_bytes: int) -> tuple[Bytes, Bytes]:
    """Records of label bytes, the last of which counts, and pixels."""
    raw = np.frombuffer(read_bytes(path), np.uint8)
    length = label_bytes + PIXELS
    if not raw.size or raw.size % length:
        raise DataError(f"{path}: has {raw.size} bytes, expected a multiple of {length}: the file is damaged")
    records = raw.reshape(-1, length)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _read_pickle(path: Path, label_key: str) -> tuple[Bytes, Bytes]:
    try:
        batch = load_batch(read_bytes(path))
        images = batch["data"]
        labels = np.array(batch[label_key], dtype=np.uint8)
        if not isinstance(images, np.ndarray) or images.shape != (len(labels), PIXELS):
            raise ValueError("data and labels do not fit together")
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: is no CIFAR batch: {error}") from error
    except KeyError as error:
        raise DataError(f"{path}: is no CIFAR batch: it has no {error}") from error
    return images, labels
