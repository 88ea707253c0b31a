"""Hugging Face data sets on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cid._errors import DataError
from cid.train.data.dataset import RawData, by_part, check_classes, numbered
from cid.train.data.decoding import decode
from cid.train.data.images import PHOTOGRAPHS
from cid.train.data.stored.opening import Part, open_parts
from cid.train.sections import DataConfig

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}


def read_hugging_face(config: DataConfig) -> RawData:
    """What `DatasetDict.save_to_disk` wrote, or a folder that `datasets.load_dataset` reads: of Parquet files, say.

    The images are the column that is an `Image`, the labels that which is a `ClassLabel`, or an integer of the name
    `label`. Rows are mapped into memory, not read.
    """
    base = Path(config.name.removeprefix("hf:"))
    splits = _splits(base)
    own = [name for name in splits if PARTS.get(name) == "validation"]
    if len(own) > 1:
        raise DataError(f"--data: {base} has the splits {' and '.join(own)}, expected one of them")
    found = {PARTS[name]: split for name, split in splits.items() if name in PARTS}
    parts = by_part(found, f"--data: {base} has no split", "train, and test or validation")
    listed: dict[str, Part] = {}
    classes: tuple[str, ...] = ()
    for part, rows in parts.items():
        listed[part], names = _part(base, rows)
        if classes and names != classes:
            raise DataError(f"--data: {base}: its splits have other classes: {', '.join(sorted({*names, *classes}))}")
        classes = names
    if not classes:
        classes = numbered([part.labels for part in listed.values()], str(base))
    opened = open_parts(listed, config)
    check_classes(classes, opened.splits["train"].labels, str(base))
    return RawData(
        train=opened.splits["train"],
        test=opened.splits["test"],
        classes=classes,
        preprocessing=PHOTOGRAPHS,
        validation=opened.splits.get("validation"),
        names={part: next(name for name in splits if splits[name] is rows) for part, rows in parts.items()},
        unreadable=opened.unreadable,
    )


def _splits(base: Path) -> dict[str, Any]:
    """The splits in a folder, by their names there."""
    import datasets

    saved = (base / "dataset_dict.json").is_file() or (base / "state.json").is_file()
    try:
        found = datasets.load_from_disk(base) if saved else datasets.load_dataset(str(base))
    # Whatever the library stumbles over.
    except Exception as error:
        raise DataError(f"--data: {base}: cannot be read as a data set: {error}") from error
    if not isinstance(found, datasets.DatasetDict):
        raise DataError(f"--data: {base}: is one split, expected a DatasetDict of train, and test or validation")
    return dict(found)


def _part(base: Path, rows: Any) -> tuple[Part, tuple[str, ...]]:
    """The images and labels of a split, and the names of the classes, if it has some."""
    import datasets

    features = rows.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in ("label",) if name in features and "int" in str(features[name].dtype)]
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"--data: {base}: has the columns {', '.join(features)}, expected one Image, and one ClassLabel or an "
            "integer 'label'"
        )
    (label,), (image,) = labels, images
    column = rows.select_columns(label).with_format("arrow")[:][label]
    if column.null_count:
        raise DataError(f"--data: {base}: has {column.null_count:,} rows without a label")
    values = torch.from_numpy(column.to_numpy().astype("int64"))
    if len(values) and int(values.min()) < 0:  # as the hub marks those of a test that it keeps secret
        raise DataError(f"--data: {base}: has the label {int(values.min())}, expected numbers from 0")
    names = tuple(getattr(features[label], "names", ()))
    return Part(Rows(rows.select_columns(image).cast_column(image, datasets.Image(decode=False)), image), values), names


class Rows:
    """Images that are a column of a table.

    Args:
        rows: the table, whose images are bytes or a path.
        column: of the images.
    """

    def __init__(self, rows: Any, column: str) -> None:
        self._rows, self._column = rows, column

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Image:
        cell = self._rows[index][self._column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise ValueError("there is no image")
        return decode(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))

    def name(self, index: int) -> str:
        """Its row."""
        return f"row {index} of {self._rows.split}"

    def fingerprint(self) -> str:
        """The library's."""
        return str(self._rows._fingerprint)
