"""A training that stops anywhere and goes on to the same bits."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cid._errors import CheckpointError, InterruptedRunError, NonFiniteError
from cid.train.config import resolve
from cid.train.data import Batch, Batches, Preprocessing, Split
from cid.train.files import read_tensors
from cid.train.methods import Ingredients, Method, StepOutput, Training, registry
from cid.train.methods._features import MapsMethod
from cid.train.models import InputSpec
from cid.train.run.checkpoint import Position
from cid.train.run.loop import Job, Trainer
from cid.train.run.progress import Lines
from cid.train.run.signals import StopRequest
from cid.train.sections import OptimConfig
from tests import draws

CLASSES, EPOCHS = 4, 4


def network(width: int, maps: bool = False) -> nn.Module:
    """With dropout, which draws from the global generator, and buffers of running statistics; with maps if asked."""
    first = [nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)] if maps else []
    return nn.Sequential(
        *first,
        nn.Flatten(),
        nn.Linear(32 if maps else 36, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(width, CLASSES),
    )


def batches(seed: int) -> Batches:
    generator = torch.Generator().manual_seed(draws.shifted(seed))
    labels = torch.arange(50) % CLASSES
    images = (torch.rand((50, 1, 6, 6), generator=generator) * 100 + 40 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return Batches(Split(images, labels), Preprocessing(255.0, (0.5,), (0.3,)), batch_size=16, pad=1, flip=True, seed=1)


SHOWN = InputSpec(1, (6, 6), CLASSES), torch.arange(50) % CLASSES
OPTIONS = {
    "method.beta": 2.0,
    "method.gamma": 1.0,
    "method.warmup_epochs": 1,
    "method.context_momentum": 0.5,
    # Of terms that are as large as the others at this learning rate.
    "method.fitnet_beta": 1.0,
    "method.at_beta": 1.0,
    "method.sp_gamma": 1.0,
}


def make_training(name: str, **more: Any) -> Training:
    draws.seed(0)
    options = resolve({**OPTIONS, **more}).method.options(name)
    maps = isinstance(options, MapsMethod)
    given = Ingredients(network(6, maps), network(9, maps), *SHOWN, fresh_student=partial(network, 6))
    return Training(options, given)


def make_trainer(
    folder: Path,
    training: Training,
    *,
    stop: StopRequest | None = None,
    every: int | None = None,
    record: Callable[[dict[str, Any]], None] = lambda metrics: None,
    optimizer: str = "sgd",
    precision: str = "32-true",
    patience: int | None = None,
    ema: float | None = None,
    **optim: Any,
) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = OptimConfig(optimizer=optimizer, lr=0.05, schedule="onecycle", **optim)
    return Trainer(
        Fabric(accelerator="cpu", devices=1, precision=precision),  # type: ignore[arg-type]
        Job("x", folder, EPOCHS, config, every, patience=patience, ema=ema),
        training,
        batches=batches(0),
        validation=batches(1),
        observer=Lines(),
        record=record,
        stop=stop or StopRequest(),
    )


class StopAt(StopRequest):
    """A request that comes at the given look at it."""

    def __init__(self, look: int) -> None:
        self.looks = look
        super().__init__()

    @property
    def signal_number(self) -> int | None:
        self.looks -= 1
        return 2 if self.looks < 0 else None

    @signal_number.setter
    def signal_number(self, value: int | None) -> None:
        pass


AUTO = {"method.beta": "auto", "method.gamma": "auto"}


@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in registry()), ("cid", AUTO), ("cid-no-head", AUTO)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopped_anywhere_it_goes_on_to_the_same_bits(
    tmp_path: Path, name: str, more: dict[str, str], optimizer: str
) -> None:
    whole_lines: list[dict[str, Any]] = []
    whole = make_training(name, **more)
    draws.seed(7)
    make_trainer(tmp_path / "whole", whole, record=whole_lines.append, optimizer=optimizer).train()

    lines: list[dict[str, Any]] = []
    draws.seed(7)
    for _ in range(20):
        training = make_training(name, **more)
        draws.seed(7)
        trainer = make_trainer(tmp_path / "parts", training, stop=StopAt(2), record=lines.append, optimizer=optimizer)
        with suppress(InterruptedRunError):
            trainer.train()
            break
    else:
        pytest.fail("it never came to the end")
    expected, got = whole.state_dict(), training.state_dict()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert lines == whole_lines


def test_checkpoints_within_an_epoch_change_nothing(tmp_path: Path) -> None:
    plain, often = make_training("cid"), make_training("cid")
    for folder, training, every in (("plain", plain, None), ("often", often, 1)):
        draws.seed(7)
        make_trainer(tmp_path / folder, training, every=every).train()
    assert all(torch.equal(value, often.state_dict()[key]) for key, value in plain.state_dict().items())


def test_a_checkpoint_leaves_the_teacher_out(tmp_path: Path) -> None:
    for name in ("kd", "cid"):
        make_trainer(tmp_path / name, make_training(name)).train()
        tensors, header = read_tensors(tmp_path / name / "checkpoint.safetensors")
        assert not [key for key in tensors if "teacher" in key]
        assert (header["epoch"], header["step"]) == (EPOCHS, 0)


def test_the_untrained_head_is_never_the_best(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    trained = make_trainer(tmp_path / "x", make_training("cid"), record=lines.append).train()
    assert [line["scorable"] for line in lines] == [False, True, True, True]
    assert lines[0]["best_epoch"] is None
    assert "ce" not in lines[0]
    assert "ce" in lines[1]
    assert trained.best_epoch > 0
    assert trained.validation == max(line["val_accuracy"] for line in lines[1:])


def test_warm_up_is_scored_with_the_students_own_logits() -> None:
    training = make_training("cid").eval()
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(training.predict(x), training.distiller.student_model(x))
    training.epoch_end()
    assert torch.equal(training.predict(x), training.predictor()(x))


class Scale(nn.Module):
    """A network of one weight a class, which counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CLASSES))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1)[:, :CLASSES] * self.weight


@dataclass(frozen=True)
class Explosive(Method):
    """Its weight, loss or term turns bad at one step."""

    what: str

    def step(self, training: Training, batch: Batch) -> StepOutput:
        training.student(batch.inputs)
        weight, bad = training.student.weight, training.student.calls == 6
        loss = (weight**2).sum()
        if bad and self.what == "gradient":
            loss = loss + torch.sqrt(weight.sum() * 0)  # finite, with an infinite derivative
        sample = torch.tensor(float("nan") if bad and self.what == "sample" else 1.0)
        return StepOutput(loss + sample, {"ce": loss.detach(), "sample": sample}, None)

    def predict(self, training: Training, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)[:, :CLASSES] * training.student.weight


@pytest.mark.parametrize(
    ("what", "message"),
    [("sample", r"^x: step 5: sample is nan; the last checkpoint is kept"), ("gradient", r"^x: .* is (nan|NaN)")],
)
@pytest.mark.parametrize("every", [None, 1])
def test_nan_stops_and_keeps_the_last_checkpoint(tmp_path: Path, what: str, message: str, every: int | None) -> None:
    trainer = make_trainer(tmp_path / "x", Training(Explosive(what), Ingredients(Scale(), None, *SHOWN)), every=every)
    with pytest.raises(NonFiniteError, match=message):
        trainer.train()
    tensors, header = read_tensors(tmp_path / "x" / "checkpoint.safetensors")
    assert (header["epoch"], header["step"]) == ((1, 1) if every else (1, 0))
    assert torch.isfinite(tensors["method.student.weight"]).all()


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path / "x", make_training("labels")).train()
    with pytest.raises(CheckpointError, match="does not fit this run"):
        make_trainer(tmp_path / "x", make_training("cid"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_train(tmp_path: Path, precision: str) -> None:
    for name in registry():
        trained = make_trainer(tmp_path / name, make_training(name), precision=precision).train()
        assert 0 <= trained.best_epoch < EPOCHS


def test_a_position_goes_from_the_start_to_the_end(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "x", make_training("kd"))
    assert trainer.position == Position(epoch=0, step=0, seconds=0.0, losses=None, best=None)
    trainer.train()
    for position in (trainer.position, make_trainer(tmp_path / "x", make_training("kd")).position):
        assert (position.epoch, position.step) == (EPOCHS, 0)
