"""What `cid predict` says of image files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cid import cli
from cid.train import load_student
from cid.train.data import Preprocessing
from cid.train.models import InputSpec, build_model
from cid.train.networks import Description, save_network
from tests import draws

CLASSES = ("cat", "dog", "none, of these")


def saved(folder: Path, channels: int = 3) -> Path:
    draws.seed(0)
    network = build_model("cnn-3", InputSpec(channels, (12, 10), len(CLASSES)))
    preprocessing = Preprocessing(16.0, (0.5,) * channels, (0.3,) * channels)  # whose scale is the training data's
    folder.mkdir()
    save_network(
        folder / "student.safetensors", network, Description("cnn-3", CLASSES, channels, (12, 10), preprocessing)
    )
    return folder


def drawn(path: Path, mode: str = "RGB", size: tuple[int, int] = (10, 12)) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = draws.uniform(size[1], size[0], len(mode)).mul(256).byte().numpy()
    Image.fromarray(pixels.squeeze()).save(path)
    return path


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_it_is_what_the_student_says(
    channels: int, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = saved(tmp_path / "student", channels)
    images = [drawn(tmp_path / "images" / f"{name}.png", mode) for name in ("b", "a")]
    assert cli.main(["predict", str(student), *map(str, images), "--to", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    pixels = [torch.from_numpy(np.array(Image.open(path))).float() / 255 for path in images]
    stacked = torch.stack([each.view(12, 10, channels).permute(2, 0, 1) for each in pixels])
    with torch.no_grad():
        expected = load_student(student)(stacked).softmax(1)
    assert [each["image"] for each in found] == [*map(str, images)]
    for each, row in zip(found, expected, strict=True):
        assert [one["class"] for one in each["classes"]] == [CLASSES[i] for i in row.argsort(descending=True)]
        values = sorted(row.tolist(), reverse=True)
        # The same in the same batch; inference mode may choose another convolution.
        assert [one["probability"] for one in each["classes"]] == pytest.approx(values, rel=1e-5)


def test_tables_and_csv_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = saved(tmp_path / "student")
    for name in ("b.png", "a.jpg", ".hidden.png"):
        drawn(tmp_path / "images" / name)
    drawn(tmp_path / "images" / "wide.png", size=(31, 7))  # is resized
    drawn(tmp_path / "images" / "grey.png", mode="L")
    command = ["predict", str(student), str(tmp_path / "images")]
    assert cli.main([*command, "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).name for line in lines] == ["a.jpg", "b.png", "grey.png", "wide.png"]
    assert all(line.endswith("%") for line in lines)
    assert cli.main([*command, "--to", "csv", "--top", "9"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [*rows[0]] == ["image", "rank", "class", "probability"]
    assert len(rows) == 4 * len(CLASSES)
    assert {row["class"] for row in rows} == set(CLASSES)
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(4, rel=1e-5)


def test_images_that_cannot_be_read_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, good = saved(tmp_path / "student"), drawn(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:100])
    assert cli.main(["predict", str(student), str(bad), str(good)]) == 2
    said = capsys.readouterr()
    assert said.out.startswith(str(good))
    assert said.err.startswith(f"cid: error: {bad}: cannot be read: ")
    assert cli.main(["predict", str(student), str(bad), "--to", "json"]) == 2
    assert json.loads(capsys.readouterr().out) == []


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = saved(tmp_path / "student")
    assert cli.main(["predict", str(student), str(tmp_path / "none.png")]) == 2
    assert "none.png: is not there, accepted: an image file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["predict", str(student), str(tmp_path / "empty")]) == 2
    assert "empty: has no images" in capsys.readouterr().err
    assert cli.main(["predict", str(tmp_path / "empty"), str(tmp_path)]) == 1
    with pytest.raises(SystemExit):
        cli.main(["predict", str(student), "--top", "0", str(tmp_path)])
