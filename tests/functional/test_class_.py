"""The class term: who has no pair, and which class shares name."""

import pytest
import torch

from cid import functional as F
from tests.cases import IGNORE, backends, features, types


@backends
@types
@pytest.mark.parametrize("target", [[0, 1, 2, 3], [IGNORE] * 4, [2, IGNORE, 3, IGNORE]])
def test_no_pairs_no_class_loss(backend: str, dtype: torch.dtype, target: list[int]) -> None:
    s = features(4, 9, dtype).requires_grad_()
    loss = F.class_loss(s, features(4, 5, dtype), torch.tensor(target), backend=backend)
    loss.backward()
    assert loss == 0
    assert s.grad is not None
    assert (s.grad == 0).all()


@backends
def test_the_class_term_takes_the_class_with_more_than_half(backend: str) -> None:
    f, t = features(6, 9, torch.float64), features(6, 5, torch.float64)
    y = torch.tensor([[0.6, 0.4], [0.51, 0.49], [0.5, 0.5], [0.2, 0.8], [0.0, 1.0], [0.0, 0.0]])
    expected = F.class_loss(f, t, torch.tensor([0, 0, IGNORE, 1, 1, IGNORE]), backend=backend)
    assert torch.equal(F.class_loss(f, t, y, backend=backend), expected)
    assert expected > 0


@backends
def test_a_number_to_ignore_names_no_class_of_shares(backend: str) -> None:
    """`ignore_index` is for labels, and shares have none."""
    f, t = features(4, 9, torch.float64), features(4, 5, torch.float64)
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    expected = F.class_loss(f, t, y.argmax(1), backend=backend)
    assert torch.equal(F.class_loss(f, t, y, ignore_index=0, backend=backend), expected)


@backends
def test_without_features_all_classes_are_alike(backend: str) -> None:
    f = torch.zeros(17, 0, requires_grad=True)
    loss = F.class_loss(f, torch.zeros(17, 0), torch.zeros(17, dtype=torch.int64), backend=backend)
    loss.backward()
    assert loss == 0
    assert f.grad is not None
    assert f.grad.shape == (17, 0)
