"""Averages of the weights, accumulated and clipped gradients, and early stopping, each also over a resume."""

import math
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cid import cli
from cid._errors import ConfigError, InterruptedRunError
from cid.train.config import resolve
from cid.train.data import Batch
from cid.train.files import read_tensors
from cid.train.folder import RunFolder
from cid.train.methods import Ingredients, Training
from cid.train.methods.labels import Labels
from cid.train.ranks import Ranks
from cid.train.run.accumulation import micro_batches
from cid.train.run.average import Average
from tests import draws
from tests.train.run.test_checkpoint import CLASSES, EPOCHS, SHOWN, StopAt, make_trainer, make_training, network

OPTIONS: list[dict[str, Any]] = [
    {"ema": 0.9},
    {"accumulate": 4},
    {"clip_norm": 0.5},
    {"ema": 0.9, "accumulate": 2, "clip_norm": 0.5, "patience": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
@pytest.mark.parametrize("name", ["kd", "cid"])
def test_stopped_anywhere_it_goes_on_to_the_same_bits(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    whole_lines: list[dict[str, Any]] = []
    whole = make_training(name)
    draws.seed(7)
    make_trainer(tmp_path / "whole", whole, record=whole_lines.append, **options).train()

    lines: list[dict[str, Any]] = []
    for _ in range(20):
        training = make_training(name)
        draws.seed(7)
        trainer = make_trainer(tmp_path / "parts", training, stop=StopAt(2), record=lines.append, **options)
        with suppress(InterruptedRunError):
            trainer.train()
            break
    else:
        pytest.fail("it never came to the end")
    expected, got = whole.state_dict(), training.state_dict()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert lines == whole_lines
    plain: list[dict[str, Any]] = []
    draws.seed(7)
    make_trainer(tmp_path / "plain", make_training(name), record=plain.append).train()
    assert plain != whole_lines  # or the options would do nothing


# --- averages


def linear() -> Training:
    student = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36, affine=False), nn.Linear(36, CLASSES))
    return Training(Labels(), Ingredients(student, None, *SHOWN))


def test_an_average_is_the_recursion_with_a_decay_that_rises() -> None:
    training = linear()
    average, layer = Average(training, 0.25), training.student[2]
    expected = layer.weight.detach().double()
    statistics = training.student[1].running_mean.double()
    for step in range(9):
        with torch.no_grad():
            layer.weight.normal_()
            training.student[1].running_mean.normal_()
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach().double()
        statistics = decay * statistics + (1 - decay) * training.student[1].running_mean.double()
        average.update(step)
    own = {key: value.clone() for key, value in training.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(layer.weight.detach().double(), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(training.student[1].running_mean.double(), statistics, atol=1e-6, rtol=1e-6)
        assert training.student[1].num_batches_tracked == own["student.1.num_batches_tracked"]
    assert all(torch.equal(value, own[key]) for key, value in training.state_dict().items())


def test_an_average_of_half_precision_is_kept_in_full() -> None:
    training = linear().to(torch.bfloat16)
    weight = training.student[2].weight
    nn.init.zeros_(weight)
    average = Average(training, 0.999)
    nn.init.ones_(weight)
    for step in range(1000):
        average.update(step + 10_000)
    kept = average.state()["student.2.weight"]
    assert kept.dtype == torch.float32
    # In bfloat16 steps of less than 1e-3 would be lost from a half on.
    torch.testing.assert_close(kept, torch.full_like(kept, 1 - 0.999**1000), atol=1e-4, rtol=0)


def test_what_is_scored_and_kept_is_the_average(tmp_path: Path) -> None:
    for name in ("labels", "cid"):
        lines: list[dict[str, Any]] = []
        training = make_training(name)
        trained = make_trainer(tmp_path / name, training, record=lines.append, ema=0.9).train()
        tensors, _ = read_tensors(tmp_path / name / "checkpoint.safetensors")
        averages = {key.removeprefix("average."): value for key, value in tensors.items() if key.startswith("average.")}
        assert averages
        assert not [key for key in averages if "teacher" in key]
        state = training.state_dict()
        if trained.best_epoch == EPOCHS - 1:
            assert all(torch.equal(state[key], value) for key, value in averages.items())
        (key, *_) = averages
        assert not torch.equal(tensors[f"method.{key}"], averages[key])  # training goes on from its own weights


def test_the_contexts_and_counts_of_cid_stay_the_trainings(tmp_path: Path) -> None:
    training = make_training("cid")
    trained = make_trainer(tmp_path / "x", training, ema=0.9).train()
    assert trained.best_epoch > 0
    tensors, _ = read_tensors(tmp_path / "x" / "checkpoint.safetensors")
    criterion = "distiller.criterion"
    assert not [key for key in tensors if key.startswith("average.") and ("bank" in key or key.endswith("epoch"))]
    assert int(tensors[f"best.{criterion}.epoch"]) == trained.best_epoch
    assert [key for key in tensors if key.startswith(f"average.{criterion}.head")]
    x = torch.randn(5, 1, 6, 6)
    assert torch.allclose(training.predict(x), training.predictor()(x), atol=1e-6)


# --- accumulation


def batch_of(samples: int, *, rich: bool = False) -> Batch:
    target = torch.arange(samples) % CLASSES
    more = (
        {
            "teacher": (torch.randn(samples, 3), torch.randn(samples, CLASSES)),
            "weight": torch.rand(samples),
            "logit_adjustment": torch.randn(samples, CLASSES),
        }
        if rich
        else {}
    )
    return Batch(torch.randn(samples, 1, 6, 6), target, torch.arange(samples), **more)  # type: ignore[arg-type]


def flat(batch: Batch) -> list[Tensor]:
    tensors = (batch.inputs, batch.target, batch.indices, *(batch.teacher or ()), batch.weight, batch.logit_adjustment)
    return [each for each in tensors if each is not None]


@pytest.mark.parametrize(("samples", "count", "sizes"), [(16, 4, [4] * 4), (7, 2, [2, 5]), (5, 4, [2, 3]), (3, 2, [3])])
@pytest.mark.parametrize("rich", [False, True])
def test_parts_are_the_batch_again(samples: int, count: int, sizes: list[int], rich: bool) -> None:
    batch = batch_of(samples, rich=rich)
    parts = [part for part, _ in micro_batches(batch, count)]
    assert [len(part.target) for part in parts] == sizes
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    for whole, *pieces in zip(flat(batch), *map(flat, parts), strict=True):
        assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("whole", [9, 10, 26, 61])
@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_several_ranks_are_as_many_and_the_batch_again(whole: int, size: int) -> None:
    values = torch.randn(whole, dtype=torch.float64)
    means = []
    for rank in range(size):
        own = Ranks(rank, size).part(whole)
        count = own.stop - own.start
        batch = batch_of(count, rich=False)._replace(weight=values[own], share=size * count / whole)
        means.append([(part, fraction) for part, fraction in micro_batches(batch, 4, Ranks(rank, size))])
    assert len({len(each) for each in means}) == 1
    assert all(sum(fraction for _, fraction in each) == pytest.approx(1.0) for each in means)
    assert all(len(part.target) >= 2 for each in means for part, _ in each)
    total = sum(part.share * part.weight.mean() for each in means for part, _ in each if part.weight is not None) / size
    torch.testing.assert_close(total, values.mean())


def test_the_gradient_of_parts_is_that_of_the_batch(tmp_path: Path) -> None:
    """Of a network without batch normalisation and a loss that is a mean over the samples."""
    states = []
    for accumulate in (1, 4):
        draws.seed(3)
        student = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))
        training = Training(Labels(), Ingredients(student, None, *SHOWN))
        make_trainer(tmp_path / str(accumulate), training, accumulate=accumulate).train()
        states.append(training.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("given", "message"), [(3, "got 3"), (32, "got 32")])
def test_parts_that_cannot_be_are_refused(given: int, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"--accumulate: {message}, accepted: what divides --batch-size, here 32"):
        resolve({"optim.batch_size": 32, "optim.accumulate": given})


# --- clipping


def test_a_step_is_no_longer_than_the_norm_allows(tmp_path: Path) -> None:
    moved = []
    for clip in (None, 1e-3):
        draws.seed(3)
        training = Training(Labels(), Ingredients(network(6), None, *SHOWN))
        before = nn.utils.parameters_to_vector(training.parameters()).detach()
        make_trainer(tmp_path / str(clip), training, clip_norm=clip, weight_decay=0.0).train()
        moved.append(float((nn.utils.parameters_to_vector(training.parameters()).detach() - before).norm()))
    steps = EPOCHS * math.ceil(50 / 16)
    # The learning rate is 0.05 at most, and momentum 0.9 makes ten of a step, with Nesterov's eleven.
    assert moved[1] < 0.05 * 11 * steps * 1e-3 < moved[0]


# --- early stopping


class NoBetter(Labels):
    """Its accuracy is what the first epochs have, so that no later one is better."""

    def predict(self, training: Training, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)[:, :CLASSES]

    def scorable(self, training: Training) -> bool:
        return int(training.epoch) >= 1


@pytest.mark.parametrize(("patience", "epochs"), [(None, 4), (1, 3), (2, 4), (9, 4)])
def test_it_ends_when_patience_does_and_not_before_an_epoch_can_be_kept(
    tmp_path: Path, patience: int | None, epochs: int
) -> None:
    lines: list[dict[str, Any]] = []
    for _ in range(20):
        training = Training(NoBetter(), Ingredients(network(6), None, *SHOWN))
        trainer = make_trainer(tmp_path / "x", training, stop=StopAt(2), record=lines.append, patience=patience)
        with suppress(InterruptedRunError):
            trained = trainer.train()
            break
    assert [line["epoch"] for line in lines] == list(range(epochs))
    assert trained.best_epoch == 1
    again = make_trainer(tmp_path / "x", training, record=lines.append, patience=patience)
    assert again.train() == trained  # nothing is left to do
    assert len(lines) == epochs


# --- a whole run


def test_a_run_has_them_all_and_only_students_are_averaged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = shlex.split(
        "--limit 80 --limit-test 40 --teacher cnn-3 --student cnn-2 --epochs 6 --batch-size 32 --seeds 0 --device cpu "
        "--methods cid --warmup-epochs 2 --lr 1e-9 --ema 0.9 --patience 2 --accumulate 2 --clip-norm 1"
    )
    assert cli.main(["distill", *arguments, "--out", str(run)]) == 0
    config = RunFolder(run).config().optim
    assert (config.ema, config.patience, config.accumulate, config.clip_norm) == (0.9, 2, 2, 1.0)
    for name, averaged in (("teacher", False), ("cid-seed0", True)):
        tensors, header = read_tensors(run / name / "checkpoint.safetensors")
        assert any(key.startswith("average.") for key in tensors) == averaged
        best = header["best"]["epoch"]
        assert header["epoch"] == min(best + 3, 6)
    assert best >= 2
    before = (run / "cid-seed0/student.safetensors").read_bytes()
    (run / "cid-seed0/result.json").unlink()
    assert cli.main(["distill", "--resume", str(run)]) == 0
    assert (run / "cid-seed0/student.safetensors").read_bytes() == before
