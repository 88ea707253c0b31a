"""`cid finetune`, and runs with what it makes, by the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cid import cli
from cid.train import load_student
from cid.train.networks import read_network
from tests.train import fakes, libraries

TINY = ["--device", "cpu", "--batch-size", "16", "--resize", "16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    pixels = fakes.pixels(3 * 24, 16, 16, 3) // 2
    for number, image in enumerate(pixels):
        label, place = divmod(number, 24)
        image[..., label] += 100
        path = folder / ("test" if place < 6 else "train") / ("dog", "cat", "bird")[label] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    pytest.importorskip("transformers")
    base = tmp_path_factory.mktemp("tuned")
    name = f"hf:{libraries.hf_folder(base / 'vit', {0: 'cat', 1: 'a thing'})}"
    assert cli.main(["finetune", "--data", str(data), "--teacher", name, "--out", str(base / "out"), *TINY]) == 0
    return base / "out", name


def test_it_leaves_a_teacher_that_tells_the_classes(tuned: tuple[Path, str]) -> None:
    out, _ = tuned
    assert {path.name for path in out.iterdir()} == {"teacher.safetensors", "teacher.json", "result.json"}
    result = json.loads((out / "result.json").read_text())
    assert result["test_accuracy"] > 0.9
    assert result["seconds"] > 0
    description = json.loads((out / "teacher.json").read_text())
    assert description["classes"] == ["bird", "cat", "dog"]
    assert description["feed"]["size"] == [24, 24]
    assert "vit" not in json.dumps(description["config"]).replace('"vit"', "")  # its kind, and no path


def test_a_folder_that_exists_is_refused(
    tuned: tuple[Path, str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, name = tuned
    assert cli.main(["finetune", "--data", str(data), "--teacher", name, "--out", str(out), *TINY]) == 2
    assert capsys.readouterr().err.endswith("which exists, accepted: a new folder\n")


def test_only_its_classifying_layer_is_other(tuned: tuple[Path, str]) -> None:
    transformers = pytest.importorskip("transformers")
    out, name = tuned
    before = transformers.ViTForImageClassification.from_pretrained(name.removeprefix("hf:")).state_dict()
    after = read_network(out / "teacher.safetensors")[1].state_dict()
    assert after.keys() == before.keys()  # as the library calls them
    others = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert others == {"classifier.weight", "classifier.bias"}


def test_a_run_with_it_needs_the_models_folder_no_more(
    tuned: tuple[Path, str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, name = tuned
    folder = tmp_path / "student"
    shutil.copytree(name.removeprefix("hf:"), folder)
    teacher = str(out / "teacher.safetensors")
    arguments = ["--data", str(data), "--teacher", "hf:gone", "--teacher-checkpoint", teacher, "--seeds", "0", *TINY]
    run = tmp_path / "run"
    command = ["distill", *arguments, "--student", f"hf:{folder}", "--student-pretrained", "--epochs", "2"]
    assert cli.main([*command, "--methods", "kd", "cid", "--lr", "0.01", "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"Teacher: hf:gone: weights of {teacher}; of its 3 classes 3 are the data's\n" in said
    assert "1 of the data's 3 are found by name (cat is its 'cat')" in said
    one, other = (json.loads((each / "result.json").read_text()) for each in (out, run / "teacher"))
    assert one["test_accuracy"] == other["test_accuracy"]
    shutil.rmtree(folder)
    assert cli.main(["eval", str(run)]) == 0
    assert cli.main(["export", str(run), "--to", "torch"]) == 0
    assert cli.main(["report", str(run)]) == 0
    assert cli.main(["transfer", str(run), "--to", "digits", "--limit", "60", "--limit-test", "20"]) == 0
    capsys.readouterr()
    images = torch.rand(2, 3, 16, 16)
    exported = torch.export.load(run / "cid-seed0.pt2").module()
    torch.testing.assert_close(exported(images), load_student(run / "cid-seed0")(images), rtol=1e-4, atol=1e-4)


def test_a_pretrained_teacher_is_trained_further(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    folder = libraries.timm_folder(tmp_path / "files")
    arguments = ["--data", str(data), "--teacher", "timm:test_resnet", "--pretrained", "--pretrained-dir", str(folder)]
    arguments = ["distill", *arguments, *TINY, "--student", "cnn-2", "--methods", "kd", "--seeds", "0", "--epochs", "1"]
    run = tmp_path / "run"
    assert cli.main([*arguments, "--teacher-lr", "1e-4", "--schedule", "constant", "--out", str(run)]) == 0
    assert "none of its 1000 classes is called as one of the data's" in capsys.readouterr().out
    rates = [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rates == [pytest.approx(1e-4), pytest.approx(0.05)]
    assert cli.main(["distill", "--resume", str(run)]) == 0
    refused = [*arguments, "--teacher-epochs", "0", "--out", str(tmp_path / "other")]
    assert cli.main(refused) == 2
    assert "timm:test_resnet does not know the classes bird, cat, dog" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_one_that_knows_all_classes_is_taken_as_it_is(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    name = f"hf:{libraries.hf_folder(tmp_path / 'vit', {0: 'cat', 1: 'dog', 2: 'ship', 3: 'bird'})}"
    arguments = ["--data", str(data), "--teacher", name, "--pretrained", "--teacher-epochs", "0", *TINY]
    assert cli.main(["cache", *arguments, "--views", "2", "--out", str(tmp_path / "cache")]) == 0
    more = ["--student", "cnn-2", "--methods", "kd", "--seeds", "0", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert cli.main(["distill", *arguments, *more]) == 0
    assert json.loads((tmp_path / "run/teacher/result.json").read_text())["seconds"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--teacher cnn-2", "--pretrained: got 'cnn-2', accepted: a network of timm, torchvision or hf"),
        ("--teacher timm:test_resnet --limit 2 --validation 0.5", "--validation: got"),
        ("--teacher-inputs data", "--teacher-inputs: given, accepted: together with --teacher-checkpoint"),
    ],
)
def test_bad_values_are_one_line(
    options: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    out = tmp_path / "out"
    assert cli.main(["finetune", "--data", str(data), *TINY, *options.split(), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cid: error: {message}")
    assert not out.exists()


def test_a_network_that_does_more_than_its_layer(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.save(models.squeezenet1_1(num_classes=5).state_dict(), tmp_path / "x.pth")
    arguments = ["--teacher", "torchvision:squeezenet1_1", "--teacher-checkpoint", str(tmp_path / "x.pth")]
    command = ["finetune", "--data", str(data), *arguments, *TINY, "--resize", "32", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "what it yields is not the output of its layer 'classifier.1'" in capsys.readouterr().err
