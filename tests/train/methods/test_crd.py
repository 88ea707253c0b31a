"""What method crd draws and remembers."""

import torch

from cid.train.methods._contrast import Contrast
from tests import draws

LABELS = torch.tensor([2, 0, 0, 2, 1, 0, 2, 2])


def make(negatives: int = 4000) -> Contrast:
    draws.seed(0)
    return Contrast(3, 5, LABELS, dim=4, negatives=negatives, temperature=0.07)


def test_negatives_are_of_all_other_classes_alike() -> None:
    own = torch.tensor([2, 1, 0])
    drawn = make().draw(own)
    for label, samples in zip(own.tolist(), drawn, strict=True):
        counts = samples.bincount(minlength=len(LABELS))
        assert counts[label == LABELS].sum() == 0
        others = counts[label != LABELS].double()
        # Binomial: five standard deviations, of at most 7 samples.
        mean = 4000 / len(others)
        assert (others - mean).abs().max() < 5 * mean**0.5


def test_where_all_are_of_one_class() -> None:
    contrast = Contrast(3, 5, torch.zeros(4, dtype=torch.int64), dim=4, negatives=8, temperature=0.07)
    assert torch.isfinite(contrast(torch.arange(2), torch.randn(2, 3), torch.randn(2, 5)))


def test_the_first_batch_sets_the_scale_and_only_its_own_entries_move() -> None:
    contrast = make(negatives=6)
    before = contrast.memory.clone()
    indices = torch.tensor([6, 1, 3])
    contrast(indices, torch.randn(3, 3), torch.randn(3, 5)).backward()
    scale = contrast.scale.clone()
    assert (scale > 0).all()
    still = torch.ones(len(LABELS), dtype=torch.bool)
    still[indices] = False
    assert torch.equal(contrast.memory[:, still], before[:, still])
    assert not torch.isclose(contrast.memory[:, indices], before[:, indices]).all(2).any()
    torch.testing.assert_close(contrast.memory.norm(dim=2), torch.ones(2, len(LABELS)))
    contrast(indices, torch.randn(3, 3), torch.randn(3, 5))
    assert torch.equal(contrast.scale, scale)
    assert all(layer.weight.grad is not None for layer in contrast.embeddings)
