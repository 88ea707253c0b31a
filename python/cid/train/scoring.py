"""How good networks are on a split of the data: their answers, accuracy and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cid.train.config import Config
from cid.train.data import Batches, Dataset, load_dataset
from cid.train.folder import RunFolder
from cid.train.networks import read_network_for

Predictor = Callable[[Tensor], Tensor]  # from a network's input to logits; the caller sets the network's mode


@dataclass(frozen=True)
class Score:
    """Accuracy (0..1) and mean cross-entropy over a split."""

    accuracy: float
    loss: float


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which samples the logits decide rightly, (N,) bool."""
    return logits.argmax(1) == labels


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The part of the samples that the logits decide rightly."""
    return float(right(logits, labels).double().mean())


@torch.no_grad()
def evaluate(predictors: Sequence[Predictor], batches: Batches) -> list[Score]:
    """Scores several predictors in one pass over a split, without holding their logits.

    Each sample counts as often as its weight says, where the batches have weights.
    """
    hits: list[Tensor | int] = [0] * len(predictors)
    losses: list[Tensor | float] = [0.0] * len(predictors)
    samples = 0
    for each, labels in _batchwise(predictors, batches):
        weight = None if batches.weights is None else batches.weights[samples : samples + len(labels)]
        for i, logits in enumerate(logits.float() for logits in each):
            hit = right(logits, labels)
            if weight is None:
                hits[i] = hits[i] + hit.sum()
                losses[i] = losses[i] + nn.functional.cross_entropy(logits, labels, reduction="sum")
            else:
                loss = nn.functional.cross_entropy(logits, labels, reduction="none")
                hits[i] = hits[i] + (weight * hit).sum()
                losses[i] = losses[i] + (weight * loss).sum()
        samples += len(labels)
    total = samples if batches.weights is None else float(batches.weights.sum())
    return [Score(float(hit) / total, float(loss) / total) for hit, loss in zip(hits, losses, strict=True)]


@torch.no_grad()
def all_logits(predictors: Sequence[Predictor], batches: Batches) -> list[Tensor]:
    """The logits (N, C) of several predictors on a whole split, in its order."""
    parts = [each for each, _ in _batchwise(predictors, batches)]
    return [torch.cat(logits) for logits in zip(*parts, strict=True)]


def _batchwise(predictors: Sequence[Predictor], batches: Batches) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Each predictor's logits for a batch, and the labels."""
    for inputs, labels in batches.in_order():
        yield [predict(inputs) for predict in predictors], labels


def test_batches(config: Config, data: Dataset) -> Batches:
    """The test data, in the batches in which a run scores it."""
    return Batches(data.test, data.preprocessing, batch_size=config.optim.batch_size, pad=0, flip=False, seed=0)


def score_students(
    folder: RunFolder,
    *,
    method: str | None,
    seed: int | None,
    data_dir: str | None,
    report_score: Callable[[str, float], None],
) -> None:
    """Scores saved students of a run on its test data.

    Args:
        folder: of the run.
        method: only this method's.
        seed: only this seed's.
        data_dir: where the data set is now, if it was moved.
        report_score: takes the name and the accuracy of each.

    Raises:
        CheckpointError: no such student is there.
        ConfigError: the data is not what the students were trained for.
        DataError: images are missing or damaged.
    """
    names = folder.students(method, seed)
    config = folder.config(data_dir)
    data = load_dataset(config.data)
    batches = test_batches(config, data)
    for name in names:
        network = read_network_for(folder.weights(name), data)
        (score,) = evaluate([network], batches)
        report_score(name, score.accuracy)
