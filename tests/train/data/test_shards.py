"""WebDataset shards and Hugging Face data sets, as their own libraries write them."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cid._errors import ConfigError, DataError
from cid.train.data import Dataset, load_dataset, shards
from cid.train.sections import DataConfig

COUNTS = {"train": 11, "validation": 4, "test": 3}


def image(part: str, number: int) -> Image.Image:
    rng = np.random.default_rng((len(part), number))
    return Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))


def png(part: str, number: int) -> bytes:
    file = io.BytesIO()
    image(part, number).save(file, "PNG")
    return file.getvalue()


def load(name: str, **options: Any) -> Dataset:
    return load_dataset(DataConfig(name=name, **{"memory": 0.0, "workers": 0, **options}))


def check(name: str, classes: tuple[str, ...]) -> None:
    """Every image is there with its label, i % 3, read as needed or kept in memory."""
    for memory in (0.0, 1.0):
        data = load(name, memory=memory)
        assert data.train.in_memory == (memory > 0)
        assert data.classes == classes
        for part, count in COUNTS.items():
            split = getattr(data, part)
            expected = [np.asarray(image(part, number)).transpose(2, 0, 1) for number in range(count)]
            assert np.array_equal(split.pixels(slice(None)).numpy(), np.stack(expected))
            assert split.labels.tolist() == [number % 3 for number in range(count)]


def write_shards(base: Path, label: str = "cls", suffix: str = "png", name: str = "some.set-{}-%02d.tar") -> None:
    wds = pytest.importorskip("webdataset")
    base.mkdir()
    for part, count in COUNTS.items():
        pattern = str(base / name.format("val" if part == "validation" else part))
        with wds.ShardWriter(pattern, maxcount=4, verbose=0) as to:
            for number in range(count):
                content = str(number % 3).encode() if label == "cls" else json.dumps({"label": number % 3}).encode()
                to.write({"__key__": f"a.b/{number:03d}", suffix: png(part, number), label: content, "txt": b"x"})


@pytest.mark.parametrize("label", ["cls", "json"])
def test_shards(tmp_path: Path, label: str) -> None:
    write_shards(tmp_path / "set", label)
    check(f"wds:{tmp_path / 'set'}", ("0", "1", "2"))
    (tmp_path / "set" / "classes.txt").write_text("cat\ndog\neel\n", encoding="utf-8")
    check(f"wds:{tmp_path / 'set'}", ("cat", "dog", "eel"))
    data = load(f"wds:{tmp_path / 'set'}")
    assert data.summary["train"] == {"images": 11, "from": "3 shards, some.set-train-00.tar to some.set-train-02.tar"}
    kept: Any = data.train.kept
    assert kept.name(10) == "some.set-train-02.tar: a.b/010"
    assert kept.fingerprint() == load(f"wds:{tmp_path / 'set'}").train.kept.fingerprint()  # type: ignore[union-attr]


def test_what_shards_lack_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data: got 'wds:nowhere', accepted: digits.*wds:FOLDER, hf:FOLDER"):
        load("wds:nowhere")
    with pytest.raises(DataError, match=r"has no shards to train on, expected train-\*\.tar"):
        load(f"wds:{tmp_path}")
    write_shards(tmp_path / "a", suffix="gif")
    with pytest.raises(DataError, match=r"train-00\.tar: sample a\.b/000 has .*gif.*, expected an image .* and cls or"):
        load(f"wds:{tmp_path / 'a'}")
    write_shards(tmp_path / "b")
    damaged = tmp_path / "b" / "some.set-train-01.tar"
    damaged.write_bytes(b"no tar" * 500)
    with pytest.raises(DataError, match=r"train-01\.tar: cannot be read: .*; accepted: tar files, not compressed"):
        load(f"wds:{tmp_path / 'b'}")
    write_shards(tmp_path / "c")
    for path in (tmp_path / "c").glob("*test*"):
        path.unlink()
    data = load(f"wds:{tmp_path / 'c'}", validation=0.3)  # val alone is the test, as in folders
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 3, 4)


def cut_off(content: bytearray, header: int) -> None:
    del content[header:]


def cut_within(content: bytearray, header: int) -> None:
    del content[header + 512 + 20 :]


def damage(content: bytearray, header: int) -> None:
    content[header : header + 512] = b"x" * 512


@pytest.mark.parametrize("change", [cut_off, cut_within, damage])
def test_a_shard_that_does_not_end_as_it_should_is_named(
    tmp_path: Path, change: Callable[[bytearray, int], None]
) -> None:
    """Else the samples behind would be missing without a word."""
    write_shards(tmp_path / "set")
    path = tmp_path / "set" / "some.set-train-01.tar"
    with tarfile.open(path) as file:
        last = file.getmembers()[-3].offset
    content = bytearray(path.read_bytes())
    change(content, last)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-01\.tar: cannot be read: .*; accepted: tar files, not compressed"):
        load(f"wds:{tmp_path / 'set'}")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("-1", "-1, expected a number from 0, below"),
        ("99999999999999999999", "9, expected a number from 0, below 1,048,576"),
        ("Infinity", "cannot convert float infinity"),
        ("2.5", "2.5, expected a whole number"),
        ("true", "True, expected a whole number"),
        ("null", "is no label"),
    ],
)
def test_labels_that_are_none_are_named(label: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        shards.read_label("json", f'{{"label": {label}}}'.encode(), "x.tar: sample a")


def test_a_label_may_be_a_whole_float() -> None:
    assert shards.read_label("json", b'{"label": 2.0}', "x.tar: sample a") == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat\ndog\n", r"classes\.txt: has 2 names, and there is the label 2"),
        ("cat\n\neel\n", r"classes\.txt: has the name '' in 1 lines"),
        ("cat\ndog\ncat\n", r"classes\.txt: has the name 'cat' in 2 lines"),
        ("cat\ndog\neel\nfox\n", r"has no images to train on of fox"),
    ],
)
def test_names_of_classes_that_do_not_fit_are_refused(tmp_path: Path, names: str, message: str) -> None:
    write_shards(tmp_path / "set")
    file = tmp_path / "set" / "classes.txt"
    file.write_text(names, encoding="utf-8")
    with pytest.raises(DataError, match=f"--data: .*{message}"):
        load(f"wds:{tmp_path / 'set'}")
    file.write_text("cat\ndog\neel\n\n\n", encoding="utf-8")
    assert load(f"wds:{tmp_path / 'set'}").classes == ("cat", "dog", "eel")


def write_hugging_face(base: Path, *, names: bool, saved: bool) -> None:
    datasets = pytest.importorskip("datasets")
    kind = datasets.ClassLabel(names=["cat", "dog", "eel"]) if names else datasets.Value("int32")
    features = datasets.Features({"picture": datasets.Image(), "label": kind, "note": datasets.Value("string")})
    whole = datasets.DatasetDict({
        part: datasets.Dataset.from_dict(
            {
                "picture": [{"bytes": png(part, number), "path": None} for number in range(count)],
                "label": [number % 3 for number in range(count)],
                "note": ["x"] * count,
            },
            features=features,
            split=part,
        )
        for part, count in COUNTS.items()
    })  # fmt: skip
    if saved:
        whole.save_to_disk(base)
        return
    base.mkdir()
    for part, rows in whole.items():
        rows.to_parquet(base / f"{part}-00000-of-00001.parquet")


@pytest.mark.parametrize(("names", "saved"), [(True, True), (False, False)])
def test_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: bool, saved: bool) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_hugging_face(tmp_path / "set", names=names, saved=saved)
    check(f"hf:{tmp_path / 'set'}", ("cat", "dog", "eel") if names else ("0", "1", "2"))
    kept: Any = load(f"hf:{tmp_path / 'set'}").train.kept
    assert kept.name(3) == "row 3 of train"


def test_what_a_hugging_face_data_set_lacks_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read as a data set"):
        load(f"hf:{tmp_path / 'empty'}")
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    rows.save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match="is one split, expected a DatasetDict"):
        load(f"hf:{tmp_path / 'one'}")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "half")
    with pytest.raises(DataError, match="has no split to test on, expected train, and test or validation"):
        load(f"hf:{tmp_path / 'half'}")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "texts")
    with pytest.raises(DataError, match=r"has the columns text, expected one Image, and one ClassLabel"):
        load(f"hf:{tmp_path / 'texts'}")


def rows_of(labels: list[int | None], *, images: bool = True) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png("x", number), "path": None} if images else None for number in range(len(labels))],
            "label": labels,
        },
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": [0, 1, None]}, "has 1 rows without a label"),
        ({"train": [0, 1], "val": [0], "validation": [1]}, "has the splits val and validation, expected one of them"),
        ({"train": [0, 0, 0]}, "has 1 classes, expected 2 or more"),
        ({"train": [0, 2, 0]}, "has no images to train on of 1"),
        ({"train": [0, 2**40]}, "has the label 1099511627776, expected numbers below"),
    ],
)
def test_hugging_face_labels_that_do_not_fit(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    datasets = pytest.importorskip("datasets")
    whole = {part: rows_of(labels) for part, labels in {"test": [0], **parts}.items()}
    datasets.DatasetDict(whole).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        load(f"hf:{tmp_path / 'set'}")


def test_a_row_without_an_image_is_one_that_cannot_be_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = {"train": datasets.concatenate_datasets([rows_of([0, 1] * 9), rows_of([1], images=False)])}
    datasets.DatasetDict({**whole, "test": rows_of([0, 1])}).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"1 image that cannot be read: .*\(there is no image\)"):
        load(f"hf:{tmp_path / 'set'}", memory=1.0)
