"""Precision, recall and confusion of each class, and `cid eval --json`."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from cid import cli
from cid.train.evaluation.per_class import confusion, per_class
from tests.train import fakes

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
DECIDED = torch.tensor([0, 0, 1, 1, 0, 0])


def test_each_class_by_hand() -> None:
    assert confusion(DECIDED, LABELS, 4) == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert per_class(DECIDED, LABELS, ("a", "b", "c", "d")) == [
        {"class": "a", "precision": 0.5, "recall": pytest.approx(2 / 3), "support": 3},
        {"class": "b", "precision": 0.5, "recall": 0.5, "support": 2},
        {"class": "c", "precision": None, "recall": 0.0, "support": 1},
        {"class": "d", "precision": None, "recall": None, "support": 0},
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    fakes.image_folder(folder / "pets", {"train": 6, "test-land": 3, "test-water": 2})
    options = f"--data {folder / 'pets'} --teacher cnn-3 --student cnn-2 --epochs 2 --lr 0.01 --seeds 0 1 --device cpu"
    arguments = [*shlex.split(options), "--methods", "kd", "cid", "--out", str(folder / "run")]
    assert cli.main(["distill", *arguments]) == 0
    return folder / "run"


def test_the_json_agrees_with_itself_and_the_runs_results(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == ["cat", "dog"]
    assert [network["name"] for network in found["networks"]] == ["kd-seed0", "kd-seed1", "cid-seed0", "cid-seed1"]
    for network in found["networks"]:
        result = json.loads((run / network["name"] / "result.json").read_text())
        for key in ("method", "seed", "test_accuracy", "tests", "groups"):
            assert network[key] == result[key]
        assert network["test_loss"] == pytest.approx(result["test_loss"], rel=1e-5)
        assert network["confusion"].keys() == network["per_class"].keys() == {"test", *network["tests"]}
        matrix = torch.tensor(network["confusion"]["test"])
        assert float(matrix.diag().sum() / matrix.sum()) == pytest.approx(network["test_accuracy"])
        for k, own in enumerate(network["per_class"]["test"]):
            assert own["class"] == found["classes"][k]
            assert own["support"] == int(matrix[k].sum()) == 5
            assert own["recall"] == pytest.approx(float(matrix[k, k] / matrix[k].sum()))


def test_students_are_chosen_and_corruptions_have_a_file_of_their_own(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(run), "--json", "--method", "cid", "--seed", "1"]) == 0
    assert [network["name"] for network in json.loads(capsys.readouterr().out)["networks"]] == ["cid-seed1"]
    assert cli.main(["eval", str(run), "--json", "--corruptions"]) == 2
    assert "--json: given, accepted: not together with --corruptions" in capsys.readouterr().err
