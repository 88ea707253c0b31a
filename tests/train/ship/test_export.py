"""Students as files for elsewhere: what `cid export` writes, and what reads it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import safetensors
import torch
from torch import Tensor

import cid
from cid import cli
from cid.train import load_student
from cid.train.config import read_toml, resolve
from cid.train.data import load_dataset
from cid.train.ship import EXPORTS, export
from tests import bounds, draws

BATCH = 32
TINY = shlex.split(
    f"--limit 150 --limit-test 60 --teacher cnn-4 --student cnn-2 --epochs 3 --teacher-epochs 2 --batch-size {BATCH} "
    f"--optimizer adamw --lr 0.01 --seeds 3 --split-seed {draws.SHIFT} --methods kd cid --device cpu"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert cli.main(["distill", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def images(run: Path) -> Tensor:
    """Handwritten digits, in 0..1."""
    return load_dataset(resolve({}, read_toml(run / "config.toml")).data).test.images.float() / 16


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The student of method cid in every format."""
    folder = tmp_path_factory.mktemp("exported")
    files = {to: folder / f"student{suffix}" for to, suffix in EXPORTS.items()}
    for to, path in files.items():
        assert cli.main(["export", str(run), "--to", to, "--out", str(path)]) == 0
    return files


def same_logits(ours: Tensor, theirs: Tensor) -> None:
    """By another program, or in another batch: three convolutions, the layer and the head, of up to 36 terms."""
    bounds.close(ours, theirs, bounds.logits(theirs, layers=5, terms=36) if theirs.numel() else 0.0)


def no_head(run: Path) -> torch.nn.Module:
    normalize, student = load_student(run / "cid-seed3").children()
    assert isinstance(student, cid.InterventionalStudent)
    return torch.nn.Sequential(normalize, student.model)


def test_onnx_in_onnxruntime(run: Path, exported: dict[str, Path], images: Tensor) -> None:
    path = exported["onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    description = json.loads({entry.key: entry.value for entry in model.metadata_props}["json"])
    assert description["classes"] == list("0123456789")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (yielded,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["batch", *images.shape[1:]])
    assert (yielded.name, yielded.shape) == ("logits", ["batch", 10])
    student = load_student(run / "cid-seed3")
    for part in (images, images[:1], images[:0]):
        (logits,) = session.run(None, {"images": part.numpy()})
        same_logits(torch.from_numpy(logits), student(part))


ELSEWHERE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cid":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import json, torch, safetensors.torch
model, images, logits = sys.argv[1:]
about = {"description.json": ""}
student = torch.export.load(model, extra_files=about).module()
images = safetensors.torch.load_file(images)["images"]
batches = {"all": student(images), "one": student(images[:1])}
safetensors.torch.save_file(batches, logits, {"json": about["description.json"]})
assert "cid" not in sys.modules
"""


def test_torch_export_where_this_package_is_not(
    run: Path, exported: dict[str, Path], tmp_path: Path, images: Tensor
) -> None:
    given, yielded = str(tmp_path / "images.safetensors"), str(tmp_path / "logits.safetensors")
    safetensors.torch.save_file({"images": images}, given)
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(exported["torch"]), given, yielded], check=True, capture_output=True
    )
    with safetensors.safe_open(yielded, "pt") as file:
        logits = {key: file.get_tensor(key) for key in ("all", "one")}
        description = json.loads(file.metadata()["json"])
    expected = load_student(run / "cid-seed3")(images)
    same_logits(logits["all"], expected)
    same_logits(logits["one"], expected[:1])
    assert description["preprocessing"]["scale"] == 16


@pytest.mark.parametrize("head", [True, False])
def test_safetensors_is_loaded_again(run: Path, tmp_path: Path, images: Tensor, head: bool) -> None:
    path = tmp_path / "x.safetensors"
    options = [] if head else ["--no-head"]
    assert cli.main(["export", str(run), "--to", "safetensors", "--out", str(path), *options]) == 0
    student = load_student(run / "cid-seed3") if head else no_head(run)
    again = load_student(path)
    assert not again.training
    same_logits(again(images), student(images))
    with safetensors.safe_open(path, "pt") as file:
        names = set(file.keys())
    plain = set(load_student(run / "kd-seed3")[1].state_dict())  # type: ignore[index]
    assert {name for name in names if ".intervention." not in name} == plain
    assert bool(names - plain) == head


def test_no_file_holds_a_path_of_this_machine(exported: dict[str, Path]) -> None:
    for path in exported.values():
        content = path.read_bytes()
        assert str(Path(cid.__file__).parent).encode() not in content
        assert b"site-packages" not in content


def test_the_default_file_is_in_the_run_and_never_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "kd-seed3.safetensors"
    arguments = ["export", str(run), "--to", "safetensors", "--method", "kd"]
    assert cli.main(arguments) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{path}: kd-seed3, cnn-2, {path.stat().st_size:,} bytes"
    assert second == "images: float32 (batch, 1, 12, 12), values in 0..1; logits: float32 (batch, 10)"
    before = path.read_bytes()
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == f"cid: error: --out: got {path}, which exists, accepted: a new file\n"
    assert path.read_bytes() == before


@pytest.mark.parametrize("options", [[], ["--to", "pickle"]])
def test_the_format_is_one_of_three(run: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", str(run), *options])
    assert "--to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--method labels", 1, "has no saved student of this method and seed; this run's are kd-seed3, cid-seed3"),
        ("--seed 4", 1, "has no saved student of this method and seed"),
        ("--out nowhere/x.onnx", 2, "--out: got nowhere/x.onnx, accepted: a file in a folder that exists"),
    ],
)
def test_bad_options(run: Path, options: str, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--to", "onnx", *options.split()]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(tmp_path), "--to", "onnx"]) == 2
    assert "accepted: the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["onnxruntime", "onnxscript"])
def test_a_missing_extra_says_what_to_install(
    run: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    out = tmp_path / "x.onnx"
    assert cli.main(["export", str(run), "--to", "onnx", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f'cid: error: {name} is missing: pip install "cid-distill[onnx]"\n'
    assert not out.exists()


def test_an_export_that_differs_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert cli.main(["export", str(run), "--to", "torch", "--out", str(tmp_path / "x.pt2")]) == 1
    assert "cnn-2: its export differs from it by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_network_that_can_not_be_traced_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(self: object, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x

    monkeypatch.setattr(vars(export)["Normalize"], "forward", forward)  # the very class that is exported
    assert cli.main(["export", str(run), "--to", "torch", "--out", str(tmp_path / "x.pt2")]) == 1
    # PyTorch may log more before it.
    assert "\ncid: error: cnn-2: PyTorch can't export it for batches of any size: " in "\n" + capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_accuracy_without_the_head_is_reported_beside(run: Path, images: Tensor) -> None:
    result = json.loads((run / "cid-seed3/result.json").read_text())
    labels = load_dataset(resolve({}, read_toml(run / "config.toml")).data).test.labels
    own = torch.cat([no_head(run)(part) for part in images.split(BATCH)])  # as it was scored, rounded alike
    assert result["without_head"]["test_accuracy"] == pytest.approx(float((own.argmax(1) == labels).float().mean()))
    assert result["without_head"]["parameters"] == json.loads((run / "kd-seed3/result.json").read_text())["parameters"]
    assert json.loads((run / "kd-seed3/result.json").read_text())["without_head"] is None
    assert "\ncid, no head " in (run / "table.txt").read_text()
