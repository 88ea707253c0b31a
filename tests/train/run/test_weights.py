"""The stage before the students: its networks, what it leaves in the folder, and that it goes on where it stopped."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from cid import cli
from cid._errors import CheckpointError
from cid.propensity import effective_sample_size
from cid.train import load_student
from cid.train.config import read_toml, resolve
from cid.train.data import load_dataset
from cid.train.files import read_tensors
from cid.train.folder import RunFolder
from cid.train.methods import Lab, SampleWeights, Weighting
from cid.train.run.inputs import Inputs
from cid.train.run.progress import Lines
from cid.train.run.runner import Run
from cid.train.run.signals import StopRequest
from cid.train.run.weights import RunLab, weigh_samples
from tests import draws
from tests.train.run.test_checkpoint import StopAt

TINY = shlex.split(
    "--limit 150 --limit-test 60 --teacher cnn-4 --student cnn-2 --epochs 2 --teacher-epochs 6 --batch-size 32 "
    f"--optimizer adamw --lr 0.02 --split-seed {draws.SHIFT} --device cpu --ipw-folds 2 "
    "--ipw-context patches-3 --ipw-context-epochs 2 --ipw-power 0.5"
)
IPW = ("kd-ipw", "cid-ipw")


def distill(out: Path, *arguments: str) -> int:
    return cli.main(["distill", *TINY, "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert distill(folder, "--seeds", "0", "1", "--methods", "kd", *IPW) == 0
    return folder


def test_what_a_run_leaves(run: Path) -> None:
    folds = [f"{name}-fold{fold}" for name in ("context", "full1") for fold in (0, 1)]
    folder = run / "weights" / "ipw"
    assert {path.name for path in (run / "weights").iterdir()} == {"ipw"}  # of both methods and seeds
    assert {path.name for path in folder.iterdir()} == {
        *folds, "context", "full1", "metrics.jsonl", "weights.json", "weights.safetensors"
    }  # fmt: skip
    tensors, header = read_tensors(folder / "weights.safetensors")
    count = json.loads((run / "data.json").read_text())["train"]["images"]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("train", "context_belief", "full_belief"), (count,))
    assert {name: value.shape for name, value in tensors.items() if name != "validation"} == {
        **shapes, "logit_adjustment": (count, 10)
    }  # fmt: skip
    for name in ("train", "validation"):
        assert float(tensors[name].double().mean()) == pytest.approx(1, rel=1e-6)
    assert json.loads((folder / "weights.json").read_text()) == header
    assert header["options"] == {
        "folds": 2, "context": "patches-3", "context_epochs": 2, "power": 0.5, "clip": 50.0, "numerator": "full",
        "epochs": 4, "rounds": 1, "adjusts": True,
    }  # fmt: skip
    assert header["effective_size"] == effective_sample_size(tensors["train"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert set(header["notes"]) == {
        "context_temperature", "context_noise", "power", "full_temperature", "full_noise"
    }  # fmt: skip
    epochs = {"context": 2, "full1": 4}
    assert [(line["name"], line["epoch"]) for line in lines] == [
        (fold, epoch) for fold in folds for epoch in range(epochs[fold.partition("-")[0]])
    ]


def test_the_networks_of_the_stage_are_no_results(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["method"] for line in lines} == {"teacher", "kd", *IPW}
    table = json.loads((run / "table.json").read_text())
    assert [row["method"] for row in table["methods"]] == ["teacher", "kd", "cid-ipw", "cid-ipw, no head", "kd-ipw"]


def test_plain_methods_are_as_without_the_stage(run: Path, tmp_path: Path) -> None:
    assert distill(tmp_path / "x", "--seeds", "0", "--methods", "kd") == 0
    assert not (tmp_path / "x" / "weights").exists()
    for name in ("teacher/teacher.safetensors", "kd-seed0/student.safetensors"):
        assert (tmp_path / "x" / name).read_bytes() == (run / name).read_bytes()
    weighted = (run / "kd-ipw-seed0/student.safetensors").read_bytes()
    assert weighted != (run / "kd-seed0/student.safetensors").read_bytes()


def test_the_epoch_is_chosen_by_weighted_validation_data(run: Path) -> None:
    validation = load_dataset(resolve({}, read_toml(run / "config.toml")).data).validation
    weight = read_tensors(run / "weights/ipw/weights.safetensors")[0]["validation"].double()
    for method in IPW:
        student = load_student(run / f"{method}-seed0")
        logits = torch.cat([student(images.float() / 16) for images in validation.images.split(32)])
        accuracy = float((weight * (logits.argmax(1) == validation.labels)).sum() / weight.sum())
        result = json.loads((run / f"{method}-seed0/result.json").read_text())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        scores = [line["val_accuracy"] for line in lines if line["name"] == f"{method}-seed0" and line["scorable"]]
        assert result["validation_accuracy"] == max(scores) == pytest.approx(accuracy, rel=1e-5)


def test_stopped_anywhere_it_goes_on_to_the_same_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cid.train.run.runner.StopRequest", lambda: StopAt(9))
    code, attempts = distill(tmp_path / "x", "--seeds", "0", "1", "--methods", "kd-ipw"), 1
    while code == 130 and attempts < 40:
        code, attempts = cli.main(["distill", "--resume", str(tmp_path / "x")]), attempts + 1
    assert code == 0
    assert attempts > 6
    for name in ("weights/ipw/weights.safetensors", "kd-ipw-seed1/student.safetensors"):
        assert (tmp_path / "x" / name).read_bytes() == (run / name).read_bytes()
    # Each epoch once, as seconds are no part of it.
    metrics = "weights/ipw/metrics.jsonl"
    assert (tmp_path / "x" / metrics).read_bytes() == (run / metrics).read_bytes()
    output = capsys.readouterr().out
    assert output.count("\nweights ipw: of 120 samples, effective size ") == 1


# --- a weighting of one's own ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors(Weighting):
    """What a network of the student's architecture gets wrong counts more."""

    name = "errors"
    computed: ClassVar[list[float]] = []

    factor: float

    def compute(self, lab: Lab) -> SampleWeights:
        self.computed.append(self.factor)
        network = lab.train("first", lab.models.student, 1)
        wrong = lab.logits(network).argmax(1) != lab.labels
        weight = 1 + (self.factor - 1) * wrong.float()
        return SampleWeights(weight / weight.mean(), notes={"wrong": int(wrong.sum())}, warnings=("few",))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str = "run") -> Run:
        (tmp_path / name).mkdir(exist_ok=True)
        settings: dict[str, Any] = {"data.limit": 100, "models.teacher": "cnn-3", "models.student": "cnn-2"}
        inputs = Inputs.load(resolve({**settings, "optim.epochs": 3, "run.device": "cpu"}))
        return Run(inputs, RunFolder(tmp_path / name), Lines(), StopRequest())

    return make


def test_equal_weightings_are_computed_once(make_run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    Errors.computed.clear()
    found = weigh_samples(make_run(), [None, Errors(5.0), Errors(5.0)])
    assert list(found) == [Errors(5.0)]
    assert Errors.computed == [5.0]
    weights = found[Errors(5.0)]
    assert float(weights.train.max() / weights.train.min()) == pytest.approx(5, rel=1e-6)
    assert f"weights errors: of {len(weights.train)} samples, effective size " in capsys.readouterr().out
    (again,) = weigh_samples(make_run(), [Errors(5.0)]).values()  # from the folder
    assert Errors.computed == [5.0]
    assert torch.equal(again.train, weights.train)
    assert (again.validation, again.kept, again.notes, again.warnings) == (None, {}, weights.notes, ("few",))
    with pytest.raises(CheckpointError, match=r"was made with \{'factor': 5\.0\}, accepted: \{'factor': 6\.0\}"):
        weigh_samples(make_run(), [Errors(6.0)])


def test_a_network_of_the_stage_is_of_its_name_and_samples_alone(make_run: Callable[..., Run]) -> None:
    def lab(name: str) -> RunLab:
        one = make_run(name)
        return RunLab(one, "x", one.folder)

    index = torch.arange(40)
    torch.randn(3)  # the global state plays no role
    one, other = (lab(name).train("a", "cnn-2", 2, index=index).state_dict() for name in ("one", "other"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    ones = lab("ones").train("a", "cnn-2", 2, index=index, weight=torch.ones(80)).state_dict()
    for key, value in ones.items():  # the mean is another sum
        torch.testing.assert_close(value, one[key], rtol=1e-3, atol=1e-4)
    names = lab("names").train("b", "cnn-2", 2, index=index).state_dict()
    assert not all(torch.equal(value, names[key]) for key, value in one.items())
    # A sample of weight 0 is not learned from: its label does not matter.
    changed = lab("labels")
    changed.run.data.train.labels[:20] = (changed.run.data.train.labels[:20] + 1) % 10
    weight = (torch.arange(80) >= 20).float()
    left_out = lab("zeros").train("a", "cnn-2", 2, index=index, weight=weight).state_dict()
    relabelled = changed.train("a", "cnn-2", 2, index=index, weight=weight).state_dict()
    assert all(torch.equal(value, relabelled[key]) for key, value in left_out.items())


def test_the_last_epoch_is_kept(make_run: Callable[..., Run]) -> None:
    one = make_run()
    lab = RunLab(one, "x", one.folder)
    network = lab.train("a", "cnn-2", 3)
    assert not network.training
    tensors, header = read_tensors(one.folder.path / "a" / "checkpoint.safetensors")
    assert header["best"]["epoch"] == 2
    for key, value in network.state_dict().items():
        assert torch.equal(value, tensors[f"method.student.{key}"])
    logits = lab.logits(network)
    assert torch.equal(lab.logits(network, torch.tensor([3, 5]))[:, 0] > 0, logits[[3, 5], 0] > 0)
    assert lab.validation_logits(network).shape == (len(lab.validation_labels), lab.classes)
