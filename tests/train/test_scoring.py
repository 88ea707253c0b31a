"""Accuracy, loss and answers of networks on a split."""

import pytest
import torch
from torch import Tensor, nn

from cid.train.config import Config
from cid.train.data import Batches, Dataset, Preprocessing, Split
from cid.train.scoring import accuracy, accuracy_by_group, all_logits, evaluate, right, score_tests
from tests import draws

CLASSES, SAMPLES = 3, 25


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(draws.shifted(0))
    images = torch.randint(256, (SAMPLES, 1, 2, 2), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(SAMPLES) % CLASSES)


def batches(split: Split, weights: Tensor | None = None) -> Batches:
    """Whose last is shorter, and whose training batches would be moved and mirrored."""
    preprocessing = Preprocessing(255.0, (0.0,), (1.0,))
    return Batches(split, preprocessing, batch_size=8, pad=1, flip=True, seed=0, weights=weights)


def first(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :CLASSES]


def last(x: Tensor) -> Tensor:
    return x.flatten(1)[:, -CLASSES:]


def test_the_logits_are_those_of_all_samples_in_order(split: Split) -> None:
    found = all_logits([first, last], batches(split))
    for logits, predict in zip(found, (first, last), strict=True):
        assert torch.equal(logits, predict(split.images.float() / 255))


def test_scores_are_means_over_the_samples(split: Split) -> None:
    scores = evaluate([first, last], batches(split))
    for score, logits in zip(scores, all_logits([first, last], batches(split)), strict=True):
        assert score.accuracy == pytest.approx(accuracy(logits, split.labels))
        assert score.accuracy == int(right(logits, split.labels).sum()) / SAMPLES
        assert torch.equal(score.right, right(logits, split.labels))
        assert score.loss == pytest.approx(float(nn.functional.cross_entropy(logits.double(), split.labels)), rel=1e-5)


def test_a_sample_of_weight_two_counts_twice(split: Split) -> None:
    weights = torch.arange(SAMPLES) % 3
    repeated = split.take(torch.arange(SAMPLES).repeat_interleave(weights))
    expected = evaluate([first, last], batches(repeated))
    for score, other in zip(evaluate([first, last], batches(split, weights.float())), expected, strict=True):
        assert score.accuracy == pytest.approx(other.accuracy)
        assert score.loss == pytest.approx(other.loss, rel=1e-5)


def test_nothing_is_kept_for_a_backward(split: Split) -> None:
    layer = nn.Linear(CLASSES, CLASSES)
    (logits,) = all_logits([lambda x: layer(first(x))], batches(split))
    assert not logits.requires_grad


def test_accuracy_by_group_leaves_out_groups_without_samples() -> None:
    found = accuracy_by_group(torch.tensor([True, False, True]), torch.tensor([0, 0, 2]), ("red", "green", "blue"))
    assert found == {"red": 0.5, "blue": 1.0}


def test_every_test_is_scored_by_name_and_group(split: Split) -> None:
    halves = torch.arange(SAMPLES) % 2
    unbiased = Split(split.images.flip(0), split.labels, halves)
    preprocessing = Preprocessing(255.0, (0.0,), (1.0,))
    data = Dataset(split, split, split, ("a", "b", "c"), preprocessing, {}, {"unbiased": unbiased}, ("even", "odd"))
    for scores, predict in zip(score_tests([first, last], Config(), data), (first, last), strict=True):
        (test,) = evaluate([predict], batches(split))
        hits = right(predict(unbiased.images.float()), unbiased.labels).double()
        assert scores.test_accuracy == test.accuracy
        assert scores.test_loss == pytest.approx(test.loss, rel=1e-5)
        assert scores.tests == {"unbiased": pytest.approx(float(hits.mean()))}
        assert scores.groups == {
            "unbiased": {name: pytest.approx(float(hits[halves == k].mean())) for k, name in enumerate(data.groups)}
        }
