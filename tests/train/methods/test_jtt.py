"""Method jtt: its weights are the copies of the paper, and a run makes them before its students."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cid import cli
from cid._errors import ConfigError
from cid.train.config import resolve
from cid.train.data import Batch
from cid.train.files import read_tensors
from cid.train.methods import Ingredients, SampleWeights, Training
from cid.train.methods.jtt import JTT, ErrorWeighting
from cid.train.models import InputSpec
from tests import draws

CLASSES, SAMPLES = 3, 12
LABELS = torch.arange(SAMPLES) % CLASSES


def weigh(predicted: Tensor, factor: float) -> SampleWeights:
    """The weights where the identification model predicts so."""
    identification = nn.Identity()

    def train(name: str, model: str, epochs: int) -> nn.Module:
        assert (name, model, epochs) == ("identification", "cnn-2", 3)
        return identification

    def logits(network: nn.Module) -> Tensor:
        assert network is identification
        return nn.functional.one_hot(predicted, CLASSES).float()

    lab: Any = SimpleNamespace(models=SimpleNamespace(student="cnn-2"), labels=LABELS, train=train, logits=logits)
    return ErrorWeighting(3, factor).compute(lab)


def test_weights_are_copies() -> None:
    draws.seed(0)
    predicted = LABELS.clone()
    errors = [1, 4, 5]
    predicted[errors] = (LABELS[errors] + 1) % CLASSES
    weights = weigh(predicted, 20.0)
    assert weights.kept["wrong"].nonzero().flatten().tolist() == errors
    assert weights.notes == {"errors": 3}
    assert not weights.warnings
    assert weights.validation is None
    torch.testing.assert_close(weights.train.mean(), torch.tensor(1.0))

    student = nn.Linear(5, CLASSES).double()
    training = Training(JTT(), Ingredients(student, None, InputSpec(1, (5, 1), CLASSES), LABELS))
    x, every = draws.normal(SAMPLES, 5, dtype=torch.float64), torch.arange(SAMPLES)
    output = training(Batch(x, LABELS, every, weight=weights.train.double()))
    copies = torch.cat([every, *19 * [torch.tensor(errors)]])
    # The weights were rounded to float32.
    torch.testing.assert_close(
        output.loss, nn.functional.cross_entropy(student(x[copies]), LABELS[copies]), rtol=2**-23, atol=0.0
    )


@pytest.mark.parametrize(("errors", "shift"), [(0, 0), (SAMPLES, 1)])
def test_without_a_difference_all_count_alike(errors: int, shift: int) -> None:
    weights = weigh((LABELS + shift) % CLASSES, 50.0)
    assert weights.train.tolist() == [1.0] * SAMPLES
    assert weights.warnings == (f"{errors} of 12 training samples are wrong after 3 epochs: all count alike",)


@pytest.mark.parametrize(("epochs", "expected"), [(240, 24), (10, 1), (3, 1)])
def test_a_tenth_of_the_epochs(epochs: int, expected: int) -> None:
    options = resolve({"optim.epochs": epochs}).method.options("jtt")
    assert options.weighting() == ErrorWeighting(expected, 50.0)
    given = resolve({"optim.epochs": epochs, "method.jtt_epochs": 2, "method.jtt_factor": 20.0}).method.options("jtt")
    assert given.weighting() == ErrorWeighting(2, 20.0)


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match=r"^--jtt-factor: got 0\.5, accepted: a number of at least 1$"):
        resolve({"method.jtt_factor": 0.5})
    with pytest.raises(ConfigError, match=r"^--jtt-epochs: got 0, accepted: a number of at least 1$"):
        resolve({"method.jtt_epochs": 0})
    with pytest.raises(ValueError, match=r"^jtt_epochs: got None, accepted: complete options$"):
        replace(JTT(), jtt_factor=2.0).weighting()


def test_a_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = (
        "distill --limit 150 --limit-test 60 --teacher cnn-3 --student cnn-2 --epochs 2 --teacher-epochs 1 --lr 0.01 "
        f"--seeds 0 1 --split-seed {draws.SHIFT} --device cpu --methods labels jtt lff --jtt-factor 20 --out {out}"
    )
    assert cli.main(arguments.split()) == 0
    tensors, header = read_tensors(out / "weights/jtt/weights.safetensors")
    wrong, weights = tensors["wrong"], tensors["train"]
    assert header["options"] == {"epochs": 1, "factor": 20.0}
    assert 0 < wrong.sum() == header["notes"]["errors"] < len(wrong)
    torch.testing.assert_close(weights[wrong].mean() / weights[~wrong].mean(), torch.tensor(20.0))
    rows = json.loads((out / "table.json").read_text())["methods"]
    assert [(row["method"], row["networks"]) for row in rows] == [
        ("teacher", 1),
        *((m, 2) for m in ("labels", "jtt", "lff")),
    ]
    # No student is larger than one that is trained from the labels alone.
    assert len({row["parameters"] for row in rows[1:]}) == 1
    students = [read_tensors(out / f"{method}-seed0/student.safetensors")[0] for method in ("labels", "jtt", "lff")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert any(not torch.equal(value, students[other][key]) for key, value in students[one].items())
