"""Method dist by NumPy's correlations."""

import numpy as np
import pytest
import torch
from torch import nn

from cid.train.methods.dist import DIST, correlation
from tests import draws

SAMPLES, CLASSES = 9, 5


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_its_terms_are_one_minus_correlations(temperature: float) -> None:
    draws.seed(0)
    logits, teacher = (3 * draws.normal(SAMPLES, CLASSES, dtype=torch.float64) for _ in range(2))
    target, weight = torch.arange(SAMPLES) % CLASSES, draws.uniform(SAMPLES).double()
    p, q = ((each / temperature).softmax(1).numpy() for each in (logits, teacher))
    rows = 1 - np.array([np.corrcoef(p[i], q[i])[0, 1] for i in range(SAMPLES)])
    columns = 1 - np.array([np.corrcoef(p[:, j], q[:, j])[0, 1] for j in range(CLASSES)])
    ce = nn.functional.cross_entropy(logits, target, reduction="none")
    for w in (None, weight):
        counts = np.ones(SAMPLES) if w is None else w.numpy()
        inter, intra = temperature**2 * (counts * rows).mean(), temperature**2 * columns.mean()
        loss, terms = DIST(temperature=temperature).loss(logits, teacher, target, w)
        found = [float(value) for value in (terms["inter"], terms["intra"], loss)]
        # Differences of values near 1 from 1, in float64.
        expected = [inter, intra, (counts * ce.numpy()).mean() + 2 * inter + 2 * intra]
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-13)


def test_what_is_equal_but_for_scale_and_place_costs_nothing() -> None:
    draws.seed(0)
    p = draws.normal(SAMPLES, CLASSES, dtype=torch.float64)
    torch.testing.assert_close(correlation(p, 3 * p + 1), torch.ones(SAMPLES, dtype=torch.float64))
    assert torch.equal(correlation(p, torch.ones_like(p)), torch.zeros(SAMPLES, dtype=torch.float64))
