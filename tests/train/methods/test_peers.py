"""The losses of other methods, by what another implementation makes of the same inputs."""

from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cid.train.methods._contrast import Contrast
from cid.train.methods._maps import Pair
from cid.train.methods.at import AT
from cid.train.methods.dist import DIST
from cid.train.methods.rkd import RKD
from cid.train.methods.sp import SP

VECTORS = Path(__file__).parent / "vectors" / "torchdistill.npz"
# Both are in float64, of some hundred operations on values near 1, of which sums may cancel.
near = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


@cache
def vectors() -> dict[str, Tensor]:
    with np.load(VECTORS) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def inputs(kind: str) -> tuple[Tensor, Tensor]:
    return vectors()[f"student_{kind}"].clone().requires_grad_(), vectors()[f"teacher_{kind}"]


def is_as(name: str, found: Tensor, student: Tensor) -> None:
    """Value and gradient."""
    found.backward()
    near(found.detach(), vectors()[name])
    assert student.grad is not None
    near(student.grad, vectors()[f"{name}_gradient"])


def test_of_maps() -> None:
    pair = Pair(*inputs("maps"))
    loss, terms = AT(at_beta=1.0).compare(None, [pair])  # type: ignore[arg-type]  # no network is asked
    assert terms["at"].equal(loss)
    is_as("at", loss, pair.student)


def test_similarities_by_their_definition() -> None:
    """Rows of length 1 by the root of the sum of squares, as in the paper; the other implementation's sum up to 1."""
    pair = Pair(*inputs("maps"))
    rows = []
    for maps in pair:
        flat = maps.detach().flatten(1)
        products = torch.tensor([[float((one * other).sum()) for other in flat] for one in flat], dtype=torch.float64)
        rows.append(products / products.square().sum(1, keepdim=True).sqrt())
    loss, _ = SP(sp_gamma=1.0).compare(None, [pair])  # type: ignore[arg-type]
    near(loss.detach(), ((rows[0] - rows[1]) ** 2).sum() / len(rows[0]) ** 2)
    sums = [each / each.abs().sum(1, keepdim=True) for each in rows]
    near(((sums[0] - sums[1]) ** 2).mean(), vectors()["sp"])


@pytest.mark.parametrize("term", ["distance", "angle"])
def test_of_representations(term: str) -> None:
    student, teacher = inputs("rows")
    method = RKD(rkd_distance=float(term == "distance"), rkd_angle=float(term == "angle"))
    loss, terms = method.compare(None, None, student, teacher)  # type: ignore[arg-type]
    assert terms[term].equal(loss)
    is_as(f"rkd_{term}", loss, student)


@pytest.mark.parametrize("temperature", [1, 4])
@pytest.mark.parametrize("term", ["inter", "intra"])
def test_of_logits(term: str, temperature: int) -> None:
    student, teacher = inputs("logits")
    _, terms = DIST(temperature=float(temperature)).loss(student, teacher, torch.zeros(6, dtype=torch.int64), None)
    is_as(f"dist_{term}_{temperature}", terms[term], student)


def test_of_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given = vectors()
    _, samples, dim = given["crd_memory"].shape
    negatives = given["crd0_chosen"].shape[1] - 1
    labels = torch.arange(samples) % 2
    temperature = float(np.float32(0.07))  # as the other keeps it
    contrast = Contrast(dim, dim, labels, dim=dim, negatives=negatives, temperature=temperature).double()
    for layer in contrast.embeddings:  # the embeddings themselves are given
        layer.load_state_dict({"weight": torch.eye(dim), "bias": torch.zeros(dim)})
    contrast.memory.copy_(given["crd_memory"])
    for step in range(2):
        name = f"crd{step}"
        student, chosen = given[f"{name}_student"].clone().requires_grad_(), given[f"{name}_chosen"]
        monkeypatch.setattr(contrast, "draw", lambda _, chosen=chosen: chosen[:, 1:])
        loss = contrast(chosen[:, 0], student, given[f"{name}_teacher"])
        near(loss.detach(), given[name])
        loss.backward()
        # Of an embedding of length 1 made such once more, the gradient has no part along it.
        whole = given[f"{name}_gradient"]
        across = whole - (whole * student.detach()).sum(1, keepdim=True) * student.detach()
        near(student.grad, across)
    near(contrast.memory, given["crd_memory_after"])
