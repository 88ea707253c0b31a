from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cid._errors import CheckpointError
from cid.propensity import CrossFit

Model = tuple[int, frozenset[int]]  # the fold, and what it has seen


class Loop:
    """A model knows what it has seen; its logits are the sample, the fold and whether the sample was among them."""

    def __init__(self, stop_before: int | None = None) -> None:
        self.trained: list[int] = []
        self._stop_before = stop_before

    def train(self, index: Tensor, fold: int) -> Model:
        if fold == self._stop_before:
            raise KeyboardInterrupt
        self.trained.append(fold)
        return fold, frozenset(index.tolist())

    def predict(self, model: Model, index: Tensor) -> Tensor:
        fold, seen = model
        return torch.tensor([[float(i), float(fold), float(i in seen)] for i in index.tolist()])

    def unseen(self, model: Model) -> Tensor:
        return torch.full((2, 3), float(model[0]))

    def fit(self, crossed: CrossFit) -> Any:
        return crossed.fit(self.train, self.predict, self.unseen)


@given(st.integers(2, 6), st.integers(0, 30), st.integers(0, 2**40))
def test_every_sample_once_by_a_model_that_has_not_seen_it(folds: int, more: int, seed: int) -> None:
    samples = folds + more
    found = Loop().fit(CrossFit(samples, folds, seed))
    assert torch.equal(found.logits[:, 0], torch.arange(samples).float())
    assert not found.logits[:, 2].any()
    counts = found.logits[:, 1].long().bincount(minlength=folds)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(found.unseen[:, 0, 0], torch.arange(folds).float())
    again = CrossFit(samples, folds, seed)
    for fold in range(folds):
        kept, held_out = again.split(fold)
        assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(samples))
        assert torch.equal(held_out, (found.logits[:, 1] == fold).nonzero()[:, 0])


def test_the_seed_decides() -> None:
    torch.randn(3)  # and no global state
    parts = [[CrossFit(30, 3, seed).split(fold)[1].tolist() for fold in range(3)] for seed in (1, 1, 2)]
    assert parts[0] == parts[1] != parts[2]


def test_a_rerun_trains_what_is_missing(tmp_path: Path) -> None:
    expected = Loop().fit(CrossFit(11, 4, 5))
    crossed = CrossFit(11, 4, 5, tmp_path / "folds", "x")
    with pytest.raises(KeyboardInterrupt):
        Loop(stop_before=2).fit(crossed)
    loop = Loop()
    found = loop.fit(crossed)
    assert loop.trained == [2, 3]
    loop = Loop()
    again = loop.fit(crossed)
    assert loop.trained == []
    for one in (found, again):
        assert torch.equal(one.logits, expected.logits)
        assert torch.equal(one.unseen, expected.unseen)


@pytest.mark.parametrize(
    "other", [{"samples": 12}, {"folds": 3}, {"seed": 6}, {"tag": "y"}], ids=lambda other: next(iter(other))
)
def test_folds_of_something_else_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    made: dict[str, Any] = {"samples": 11, "folds": 4, "seed": 5, "tag": "x"}
    Loop().fit(CrossFit(**made, folder=tmp_path))
    loop = Loop()
    with pytest.raises(CheckpointError, match=r"fold0\.safetensors: was made with .*, accepted: .*, or a new folder$"):
        loop.fit(CrossFit(**{**made, **other}, folder=tmp_path))
    assert loop.trained == []


def test_damaged_folds_and_folds_that_lack_something(tmp_path: Path) -> None:
    crossed, loop = CrossFit(6, 2, folder=tmp_path), Loop()
    crossed.fit(loop.train, loop.predict)
    with pytest.raises(CheckpointError, match="was made with"):
        loop.fit(crossed)
    (tmp_path / "fold1.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"fold1\.safetensors: is no readable safetensors file"):
        crossed.fit(loop.train, loop.predict)


def test_a_model_as_it_is_used() -> None:
    x, y = torch.randn(12, 4), torch.arange(12) % 2

    def train(index: Tensor, fold: int) -> torch.nn.Module:
        model = torch.nn.Linear(4, 2)
        torch.nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        return model

    found = CrossFit(12, 3).fit(train, lambda model, index: model(x[index]))
    assert found.logits.shape == (12, 2)
    assert not found.logits.requires_grad
    assert found.unseen is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds: got 1, accepted: 2 and up"),
        ({"samples": 2}, "samples: got 2, accepted: 3 and up"),
        ({"seed": -1}, "seed: got -1, accepted: 0 and up"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        CrossFit(**{"samples": 9, **options})
    with pytest.raises(TypeError, match=r"^samples: got float, accepted: int"):
        CrossFit(9.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(2, 3), r"got shape \(2, 3\), accepted: \(3, C\)"),
        (torch.full((3, 2), torch.nan), "got a NaN or an infinity"),
    ],
)
def test_predictions_that_are_none(logits: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^what predict returns: {message}"):
        CrossFit(9).fit(Loop().train, lambda model, index: logits)
