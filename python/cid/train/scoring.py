"""How good networks are on the tests of the data: their answers, accuracy and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cid.train.config import Config
from cid.train.data import Batches, Dataset, Split, load_dataset
from cid.train.folder import RunFolder, Saved, Scores
from cid.train.networks import read_network_for
from cid.train.ranks import ALONE, Ranks

Predictor = Callable[[Tensor], Tensor]  # from a network's input to logits; the caller sets the network's mode


@dataclass(frozen=True)
class Score:
    """How a network does on a split.

    Attributes:
        accuracy: 0..1.
        loss: mean cross-entropy.
        right: which samples are decided rightly, (N,) bool.
        decided: the class that each is taken for, (N,) int64.
    """

    accuracy: float
    loss: float
    right: Tensor
    decided: Tensor


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which samples the logits decide rightly, (N,) bool."""
    return logits.argmax(1) == labels


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The part of the samples that the logits decide rightly."""
    return float(right(logits, labels).double().mean())


@torch.no_grad()
def evaluate(predictors: Sequence[Predictor], batches: Batches) -> list[Score]:
    """Scores several predictors in one pass over a split, without holding their logits.

    Each sample counts as often as its weight says, where the batches have weights. Where ranks share the batches, all
    of them know all scores.
    """

    def answers(logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return torch.stack((right(logits, labels), losses, logits.argmax(1)), 1)

    weights = None if batches.weights is None else batches.weights.cpu().double()

    def mean(values: Tensor) -> float:
        values = values.cpu().double()  # which not every device has
        return float(values.mean() if weights is None else (weights * values).sum() / weights.sum())

    found = [each.unbind(1) for each in _of_all(predictors, batches, answers)]
    return [Score(mean(hit), mean(loss), hit.bool(), decided.long()) for hit, loss, decided in found]


@torch.no_grad()
def all_logits(predictors: Sequence[Predictor], batches: Batches) -> list[Tensor]:
    """The logits (N, C) of several predictors on a whole split, in its order."""
    return _of_all(predictors, batches, lambda logits, _: logits)


def _of_all(
    predictors: Sequence[Predictor], batches: Batches, values: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """What `values` makes of each predictor's logits and the labels, (N, K) each, in the order of the split."""
    found: list[Tensor] = []
    for part, inputs, labels in batches.in_order():
        each = [values(predict(inputs), labels) for predict in predictors]
        found = found or [value.new_zeros(len(batches), *value.shape[1:]) for value in each]
        if part is not None:
            for every, value in zip(found, each, strict=True):
                every[part] = value
    # No sample is two ranks': what the others have not is 0.
    return [batches.ranks.sum(every) for every in found]


def test_batches(config: Config, data: Dataset) -> Batches:
    """The test data, in the batches in which a run scores it."""
    return in_batches(data.test, config, data)


def in_batches(split: Split, config: Config, data: Dataset, ranks: Ranks = ALONE) -> Batches:
    """A split as `test_batches` has the test data."""
    size = config.optim.batch_size
    return Batches(split, data.preprocessing, batch_size=size, pad=0, flip=False, seed=0, ranks=ranks)


def score_tests(predictors: Sequence[Predictor], config: Config, data: Dataset, ranks: Ranks = ALONE) -> list[Scores]:
    """Scores several predictors on every test of the data, each in one pass, which several processes may share."""
    return [in_short(found, data) for found in score_each_test(predictors, config, data, ranks)]


def score_each_test(
    predictors: Sequence[Predictor], config: Config, data: Dataset, ranks: Ranks = ALONE
) -> list[dict[str, Score]]:
    """What each of several predictors does on every test of the data, by its name."""
    found = {
        name: evaluate(predictors, in_batches(split, config, data, ranks)) for name, split in data.every_test.items()
    }
    return [{name: each[i] for name, each in found.items()} for i in range(len(predictors))]


def in_short(found: dict[str, Score], data: Dataset) -> Scores:
    """One predictor's scores, of what it does on each test."""
    return Scores(
        test_accuracy=found["test"].accuracy,
        test_loss=found["test"].loss,
        tests={name: found[name].accuracy for name in data.tests},
        groups={
            name: accuracy_by_group(found[name].right, split.groups, data.groups)
            for name, split in data.every_test.items()
            if split.groups is not None
        },
    )


def accuracy_by_group(right: Tensor, groups: Tensor, names: Sequence[str]) -> dict[str, float]:
    """The part of each group's samples that is decided rightly; a group without samples has none.

    Args:
        right: (N,) bool, which samples are.
        groups: (N,) int64, the group of each.
        names: of the groups.
    """
    members = {name: right[groups == number] for number, name in enumerate(names)}
    return {name: int(own.sum()) / len(own) for name, own in members.items() if len(own)}


def score_students(
    folder: RunFolder,
    *,
    method: str | None,
    seed: int | None,
    data_dir: str | None,
    report_score: Callable[[str, Scores], None],
) -> None:
    """Scores saved students of a run on its test data, and on its further tests.

    Args:
        folder: of the run.
        method: only this method's.
        seed: only this seed's.
        data_dir: where the data set is now, if it was moved.
        report_score: takes the name and the scores of each.

    Raises:
        RunError: as `score_each_student`.
    """
    for student, found, data in score_each_student(folder, method=method, seed=seed, data_dir=data_dir):
        report_score(student.name, in_short(found, data))


def score_each_student(
    folder: RunFolder, *, method: str | None, seed: int | None, data_dir: str | None
) -> Iterator[tuple[Saved, dict[str, Score], Dataset]]:
    """What each of the saved students of a run does on every test of its data, by the name of the test; and the data.

    Args: as of `score_students`.

    Raises:
        CheckpointError: no such student is there.
        ConfigError: the data is not what the students were trained for.
        DataError: images are missing or damaged.
    """
    students = folder.students(method, seed)
    config = folder.config(data_dir)
    data = load_dataset(config.data)
    for student in students:
        network = read_network_for(folder.weights(student.name), data)
        (found,) = score_each_test([network], config, data)
        yield student, found, data
