"""WebDataset shards: tar files in which the files of a sample have a name in common.

Shards that lie on a disk can be read at any place, so they are: `webdataset` itself reads them forwards, in an order
that depends on the number of processes, and `wids` keeps a Python object for each file of each shard in each process.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cid._errors import DataError
from cid.train.data.dataset import MOST_CLASSES, RawData, by_part, check_classes, numbered
from cid.train.data.decoding import IMAGE_SUFFIXES, decode
from cid.train.data.images import PHOTOGRAPHS
from cid.train.data.stored.opening import Part, open_parts
from cid.train.data.stored.source import Names, digest_of
from cid.train.sections import DataConfig

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
# train-000000.tar, imagenet1k-validation-00.tar
SHARD = re.compile(rf"(?:.*[-_.])?({'|'.join(PARTS)})[-_.].*\.tar|({'|'.join(PARTS)})\.tar")
LABELS = ("cls", "json")


def read_shards(config: DataConfig) -> RawData:
    """Shards named after their part, as `train-000000.tar` or `NAME-val-00.tar`.

    A sample is an image and `cls`, a whole number, or `json` with a `label` or `cls` that is one. `classes.txt` beside
    the shards may name the classes, one a line; else they are called by their numbers.
    """
    base = Path(config.name.removeprefix("wds:"))
    shards: dict[str, list[Path]] = {}
    for path in sorted(base.iterdir()):
        if found := SHARD.fullmatch(path.name):
            shards.setdefault(PARTS[found[1] or found[2]], []).append(path)
    parts = by_part(shards, f"--data: {base} has no shards", "train-*.tar, and test-*.tar or val-*.tar")
    listed = {part: _indexed(paths) for part, paths in parts.items()}
    classes = _classes(base, [part.labels for part in listed.values()])
    opened = open_parts(listed, config)
    check_classes(classes, opened.splits["train"].labels, str(base))
    return RawData(
        train=opened.splits["train"],
        test=opened.splits["test"],
        classes=classes,
        preprocessing=PHOTOGRAPHS,
        validation=opened.splits.get("validation"),
        names={part: f"{len(paths):,} shards, {paths[0].name} to {paths[-1].name}" for part, paths in parts.items()},
        unreadable=opened.unreadable,
    )


def _classes(base: Path, labels: Sequence[Tensor]) -> tuple[str, ...]:
    file = base / "classes.txt"
    if not file.is_file():
        return numbered(labels, str(base))
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").rstrip().splitlines()]
    except ValueError as error:
        raise DataError(f"--data: {file}: is no UTF-8: {error}") from error
    if "" in names or len(set(names)) != len(names):
        name, count = next((name, count) for name, count in Counter(names).items() if not name or count > 1)
        raise DataError(f"--data: {file}: has the name {name!r} in {count} lines, expected a name in each, once")
    if (highest := max(int(each.max()) for each in labels)) >= len(names):
        raise DataError(
            f"--data: {file}: has {len(names)} names, and there is the label {highest}: one for each from 0"
        )
    return tuple(names)


def _indexed(shards: list[Path]) -> Part:
    """Where each sample's image lies in the shards, by their headers alone, and its label."""
    labels, places = array("q"), array("q")

    def keys() -> Iterator[bytes]:
        for number, shard in enumerate(shards):
            for key, member, label in _samples(shard):
                labels.append(label)
                places.extend((number, member.offset_data, member.size))
                yield key.encode()

    names = Names(keys())
    if not labels:
        raise DataError(f"--data: {shards[0]} and its like have no samples")
    return Part(
        Shards(shards, names, torch.tensor(places, dtype=torch.int64).view(-1, 3)),
        torch.tensor(labels, dtype=torch.int64),
    )


def _samples(shard: Path) -> Iterator[tuple[str, tarfile.TarInfo, int]]:
    """Key, image and label of each sample.

    Raises:
        DataError: the shard is damaged, or a sample lacks something.
    """
    try:
        with tarfile.open(shard, "r:") as file:
            key, own = "", dict[str, tarfile.TarInfo]()
            for member in file:
                if not member.isfile() or Path(member.name).name.startswith("."):
                    continue
                # The key ends at the first dot of the file's name.
                folder, slash, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if folder + slash + stem != key:
                    if own:
                        yield _sample(shard, key, own, file)
                    key, own = folder + slash + stem, {}
                own[suffix.lower()] = member
            if own:
                yield _sample(shard, key, own, file)
            _check_end(file)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"--data: {shard}: cannot be read: {error}; accepted: tar files, not compressed") from error


def _check_end(file: tarfile.TarFile) -> None:
    """That the archive ends where its members do: at a header it cannot read `tarfile` ends without a word."""
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"at byte {file.offset:,} there is neither a file nor the end of the archive")


def _sample(
    shard: Path, key: str, files: dict[str, tarfile.TarInfo], tar: tarfile.TarFile
) -> tuple[str, tarfile.TarInfo, int]:
    image = next((files[suffix] for suffix in files if f".{suffix}" in IMAGE_SUFFIXES), None)
    label = next((suffix for suffix in LABELS if suffix in files), None)
    if image is None or label is None:
        raise DataError(
            f"--data: {shard}: sample {key} has {', '.join(files)}, expected an image ({' '.join(IMAGE_SUFFIXES)}) and "
            f"{' or '.join(LABELS)}"
        )
    content = tar.extractfile(files[label])
    assert content is not None  # which is what folders and links yield
    return key, image, read_label(label, content.read(), f"{shard}: sample {key}")


def read_label(kind: str, content: bytes, where: str) -> int:
    """The label in a file of a sample.

    Raises:
        DataError: it is none.
    """
    try:
        return _label(kind, content)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"--data: {where}: {kind} is no label: {error}") from error


def _label(kind: str, content: bytes) -> int:
    value: Any = content.decode().strip()
    if kind == "json":
        fields = json.loads(value)
        value = next((fields[name] for name in ("label", "cls", "class") if name in fields), None)
    label = int(value)
    if isinstance(value, bool) or (isinstance(value, float) and value != label):
        raise ValueError(f"{value!r}, expected a whole number")
    if not 0 <= label < MOST_CLASSES:
        raise ValueError(f"{label}, expected a number from 0, below {MOST_CLASSES:,}")
    return label


class Shards:
    """Images within tar files.

    Args:
        shards: the files.
        names: the samples' keys.
        places: of each image the number of its shard, its place there and its size, (N, 3).
    """

    def __init__(self, shards: list[Path], names: Names, places: Tensor) -> None:
        self._shards, self._names, self._places = shards, names, places

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Image:
        shard, start, size = self._places[index].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(start)
            return decode(io.BytesIO(file.read(size)))

    def name(self, index: int) -> str:
        """Its shard and key."""
        return f"{self._shards[int(self._places[index, 0])].name}: {self._names[index].decode()}"

    def fingerprint(self) -> str:
        """Of the keys, and of where the images lie and how large they are."""
        return self._names.digest() + digest_of(self._places)
