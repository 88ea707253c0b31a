from typing import Any

import pytest
import torch

from cid.train.data import Batches, Preprocessing, Split
from cid.train.ranks import Ranks


def make_batches(count: int = 21, **options: Any) -> Batches:
    images = torch.arange(count * 2 * 6 * 5, dtype=torch.int64).remainder(251).to(torch.uint8).view(count, 2, 6, 5)
    settings = {"batch_size": 5, "pad": 2, "flip": True, "seed": 3, **options}
    return Batches(Split(images, torch.arange(count)), Preprocessing(255.0, (0.1, 0.2), (0.5, 0.25)), **settings)


def test_an_epoch_has_every_sample_once_and_is_a_function_of_seed_and_epoch() -> None:
    batches = make_batches(23)
    plan = batches.plan(4)
    labels = torch.cat([batches.batch(plan, step)[1] for step in range(batches.steps)])
    assert torch.equal(labels.sort().values, torch.arange(23))
    torch.randn(3)  # the global state plays no role
    again = make_batches(23)
    for step in (4, 1):  # nor does the order
        one, other = batches.batch(plan, step), again.batch(again.plan(4), step)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.target, other.target)
    assert not torch.equal(plan.order, batches.plan(5).order)
    assert not torch.equal(plan.order, make_batches(23, seed=4).plan(4).order)


def test_a_batch_says_which_samples_it_has() -> None:
    batches = make_batches(23)  # each labelled by its number
    plan = batches.plan(4)
    for batch in (batches.batch(plan, step) for step in range(batches.steps)):
        assert torch.equal(batch.indices, batch.target)


def test_a_batch_has_the_weights_and_adjustments_of_its_samples() -> None:
    weights = torch.arange(23) / 2
    adjustments = torch.stack([weights, -weights], 1)
    batches = make_batches(23, weights=weights, logit_adjustments=adjustments)
    plan = batches.plan(4)
    for step in range(batches.steps):
        batch = batches.batch(plan, step)
        assert batch.weight is not None
        assert torch.equal(batch.weight, weights[batch.indices])
        logits = torch.rand(len(batch.indices), 2)
        assert torch.equal(batch.adjusted(logits), logits + adjustments[batch.indices])
        plain = make_batches(23).batch(plan, step)
        assert plain.weight is None
        assert plain.adjusted(logits) is logits
        assert torch.equal(plain.inputs, batch.inputs)


def test_a_last_batch_of_one_is_left_out() -> None:
    assert make_batches(21).steps == 4
    assert make_batches(22).steps == 5


def test_scoring_is_in_order_normalised_and_not_augmented() -> None:
    batches = make_batches(7)
    inputs = torch.cat([inputs for _, inputs, _ in batches.in_order()])
    images = batches._split.images.double() / 255
    mean, std = torch.tensor([0.1, 0.2]).view(-1, 1, 1), torch.tensor([0.5, 0.25]).view(-1, 1, 1)
    torch.testing.assert_close(inputs.double(), (images - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("count", [8, 9, 15, 64])
def test_ranks_share_a_batch_in_pairs(size: int, count: int) -> None:
    parts = [Ranks(rank, size).part(count) for rank in range(size)]
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    assert all(part.stop - part.start >= 2 for part in parts)
    assert all(part.start % 2 == 0 for part in parts)
    shortest, longest = min(part.stop - part.start for part in parts), max(part.stop - part.start for part in parts)
    assert longest - shortest <= 3


def test_the_parts_of_the_ranks_are_the_batches_of_one() -> None:
    alone = make_batches(23, batch_size=8)
    others = [make_batches(23, batch_size=8, ranks=Ranks(rank, 3)) for rank in range(3)]
    assert [each.steps for each in others] == [3, 3, 3]
    assert make_batches(21, batch_size=8, ranks=Ranks(0, 3)).steps == 2  # 5 are not enough for three
    for whole, *parts in zip(*(each.epoch(2, 1) for each in (alone, *others)), strict=True):
        assert torch.equal(whole.inputs, torch.cat([part.inputs for part in parts]))
        assert torch.equal(whole.indices, torch.cat([part.indices for part in parts]))
        # A mean over ranks of the shares of their means is that over the samples.
        mean = sum(part.share * part.inputs.mean() for part in parts) / 3
        torch.testing.assert_close(mean, whole.inputs.mean())


def test_ranks_score_every_sample_once() -> None:
    ranks = [list(make_batches(23, ranks=Ranks(rank, 3)).in_order()) for rank in range(3)]
    assert [len(each) for each in ranks] == [2, 2, 2]
    scored = torch.cat([labels for each in ranks for part, _, labels in each if part is not None])
    assert torch.equal(scored.sort().values, torch.arange(23))


def test_augmentation_varies() -> None:
    rows, columns, flips = make_batches(200).plan(0).augmentation
    assert rows.unique().tolist() == columns.unique().tolist() == [0, 1, 2, 3, 4]
    assert 60 < int(flips.sum()) < 140
    assert not make_batches(200, flip=False).plan(0).augmentation.flips.any()


def by_label(batches: Batches, epoch: int) -> torch.Tensor:
    """The inputs of an epoch, in the order of the samples."""
    plan = batches.plan(epoch)
    inputs, labels = zip(*(batches.batch(plan, step)[:2] for step in range(batches.steps)), strict=True)
    return torch.cat(inputs)[torch.cat(labels).argsort()]


def test_fixed_views_are_of_view_seed_view_and_sample_alone() -> None:
    batches = make_batches(23, views=3)
    views = [torch.cat(list(batches.in_view(number, range(23)))) for number in range(3)]
    for epoch in range(7):  # whatever the run's seed, its batches and its order
        assert torch.equal(by_label(make_batches(23, views=3, seed=epoch, batch_size=6), epoch), views[epoch % 3])
    assert not torch.equal(views[0], views[1])
    assert torch.equal(torch.cat(list(batches.in_view(1, range(4, 21)))), views[1][4:21])
    assert not torch.equal(by_label(make_batches(23, views=3, view_seed=1), 0), views[0])
    # The order is that of a run without fixed views, and new in each epoch.
    assert torch.equal(batches.plan(3).order, make_batches(23).plan(3).order)
    assert not torch.equal(batches.plan(3).order, batches.plan(0).order)
