"""Predictions of every sample by a model that has not seen it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

import cid._checks as check
from cid._errors import CheckpointError
from cid._files import write_atomically

M = TypeVar("M")


class OutOfFold(NamedTuple):
    """What K models yield, each trained without one of K parts of the samples.

    Attributes:
        logits: Of each sample, by the model that has not seen it, shape (N, C), on the CPU.
        unseen: Of other samples, which none has seen, by each of them, shape (K, M, C); None where there are none. The
            mean of their beliefs, `softmax(unseen / T, -1).mean(0)`, is what the samples' own calibrated logits are
            compared with.
    """

    logits: Tensor
    unseen: Tensor | None


@dataclass(frozen=True)
class CrossFit:
    """K-fold cross-fitting, of any models and any loop.

    The samples are cut into K parts of equal size (up to one), at random, as `seed` alone decides. For each part a
    model is trained on all others and predicts it.

    Args:
        samples: N, from K.
        folds: K, from 2.
        seed: Of the parts, from 0.
        folder: Where each finished fold's logits are kept, so that a rerun trains only what is missing; made if need
            be. None keeps nothing. Needs safetensors (of the extra `train`).
        tag: What the predictions depend on beside this (architecture, epochs, data): a folder that was made with
            another one is refused.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument has a wrong value.

    Example:
        >>> import torch
        >>> samples, labels = torch.randn(12, 5), torch.arange(12) % 3
        >>> def train(index, fold):
        ...     model = torch.nn.Linear(5, 3)
        ...     ...  # any loop over samples[index], labels[index]
        ...     return model
        >>> def predict(model, index):
        ...     return model(samples[index])
        >>> CrossFit(12).fit(train, predict).logits.shape
        torch.Size([12, 3])

    Source: Chernozhukov et al. 2018, "Double/Debiased Machine Learning".
    """

    samples: int
    folds: int = 3
    seed: int = 0
    folder: Path | None = None
    tag: str = ""
    _parts: tuple[Tensor, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("samples", "folds", "seed"):
            check.integer(name, getattr(self, name))
        if self.folds < 2:
            raise ValueError(f"folds: got {self.folds}, accepted: 2 and up")
        if self.samples < self.folds:
            raise ValueError(f"samples: got {self.samples}, accepted: {self.folds} and up, the number of folds")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, accepted: 0 and up")
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.seed))
        # Sorted: what a part is does not depend on its order, and memory is read forwards.
        parts = tuple(order[fold :: self.folds].sort().values for fold in range(self.folds))
        object.__setattr__(self, "_parts", parts)

    def split(self, fold: int) -> tuple[Tensor, Tensor]:
        """The samples that a fold trains on, and those that it holds out: indices, int64, ascending, on the CPU."""
        held_out = self._parts[fold]
        kept = torch.ones(self.samples, dtype=torch.bool)
        kept[held_out] = False
        return kept.nonzero()[:, 0], held_out

    def fit(
        self,
        train: Callable[[Tensor, int], M],
        predict: Callable[[M, Tensor], Tensor],
        unseen: Callable[[M], Tensor] | None = None,
    ) -> OutOfFold:
        """Trains what is missing, and returns all predictions.

        Args:
            train: Takes the indices to train on and the number of the fold, and returns a model, in the mode to
                predict in. It is called in the order of the folds, without gradients disabled.
            predict: Takes that model and the indices that it has not seen, n of them, and returns logits (n, C).
            unseen: Takes that model and returns logits (M, C) of other samples, which are no fold's.

        Returns:
            The logits of all samples, and of the others.

        Raises:
            ValueError: What was returned is not of that shape, or not finite.
            CheckpointError: `folder` holds folds of something else, or damaged ones.
            OSError: A file can't be written.
        """
        found = [self._kept(fold, unseen is not None) for fold in range(self.folds)]
        for fold in range(self.folds):
            if found[fold] is None:
                found[fold] = self._run(fold, train, predict, unseen)
        done = [tensors for tensors in found if tensors is not None]
        logits = torch.cat([tensors["logits"] for tensors in done])
        others = None if unseen is None else torch.stack([tensors["unseen"] for tensors in done])
        return OutOfFold(logits[torch.cat(self._parts).argsort()], others)

    def _run(
        self,
        fold: int,
        train: Callable[[Tensor, int], M],
        predict: Callable[[M, Tensor], Tensor],
        unseen: Callable[[M], Tensor] | None,
    ) -> dict[str, Tensor]:
        """One fold's predictions, kept if they are to be."""
        index, held_out = self.split(fold)
        model = train(index, fold)
        with torch.no_grad():
            tensors = {"logits": _checked("predict", predict(model, held_out), len(held_out))}
            if unseen is not None:
                tensors["unseen"] = _checked("unseen", unseen(model), None)
        self._keep(fold, tensors)
        return tensors

    @property
    def _fingerprint(self) -> dict[str, Any]:
        return {"samples": self.samples, "folds": self.folds, "seed": self.seed, "tag": self.tag}

    def _path(self, folder: Path, fold: int) -> Path:
        return folder / f"fold{fold}.safetensors"

    def _keep(self, fold: int, tensors: dict[str, Tensor]) -> None:
        if self.folder is None:
            return
        import safetensors.torch

        self.folder.mkdir(parents=True, exist_ok=True)
        # PyTorch does not promise that a seed yields the same permutation in every release.
        whole = {**tensors, "held_out": self._parts[fold]}
        content = safetensors.torch.save(whole, {"json": json.dumps(self._fingerprint)})
        write_atomically(self._path(self.folder, fold), content)

    def _kept(self, fold: int, unseen: bool) -> dict[str, Tensor] | None:
        """What the folder holds of a fold; None where that is nothing."""
        if self.folder is None or not (path := self._path(self.folder, fold)).is_file():
            return None
        import safetensors

        try:
            with safetensors.safe_open(path, framework="pt") as file:
                made_with = json.loads((file.metadata() or {}).get("json", "null"))
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: is no readable safetensors file: {error}") from error
        held_out = tensors.pop("held_out", None)
        same_part = held_out is not None and torch.equal(held_out, self._parts[fold])
        if made_with != self._fingerprint or not same_part or unseen != ("unseen" in tensors):
            raise CheckpointError(f"{path}: was made with {made_with}, accepted: {self._fingerprint}, or a new folder")
        return tensors


def _checked(name: str, logits: Tensor, rows: int | None) -> Tensor:
    """Logits as they are kept: finite, on the CPU."""
    check.shape(f"what {name} returns", check.tensor(f"what {name} returns", logits), (rows or "M", "C"))
    if not bool(logits.isfinite().all()):
        raise ValueError(f"what {name} returns: got a NaN or an infinity, accepted: finite logits")
    return logits.detach().cpu().contiguous()
