"""One safetensors file that holds a training whole: tensors, and the rest as JSON in the same file's header."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cid._errors import CheckpointError, NonFiniteError
from cid.train.data import mix_seed
from cid.train.files import all_finite, read_tensors, write_tensors
from cid.train.methods import Training
from cid.train.ranks import ALONE, Ranks
from cid.train.run.average import Average
from cid.train.sharding import part_like, whole


@dataclass
class Best:
    """The best epoch so far and the method's state at its end.

    Attributes:
        score: accuracy on the validation split, then the negative loss there.
    """

    epoch: int
    score: tuple[float, float]
    state: dict[str, Tensor]


@dataclass
class Position:
    """How far a training is.

    Attributes:
        epoch: the current epoch.
        step: steps of it that are done.
        seconds: time it took so far, in all attempts.
        losses: the losses summed over the current epoch, as `LossMonitor.state` gives them.
        best: the best epoch so far.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    losses: dict[str, Any] | None = None
    best: Best | None = None


@dataclass
class Checkpoint:
    """Saves and restores a training.

    Args:
        path: the file.
        training: the network in training, with its loss.
        optimizer: its optimizer.
        device: where it trains, for that device's random state.
        precision: Fabric's precision plugin (a gradient scaler has state).
        average: of the network, if there is one.
        ranks: the processes that train it, all of which save and load; the first has the file.
    """

    path: Path
    training: Training
    optimizer: Optimizer
    device: torch.device
    precision: Any
    average: Average | None = None
    ranks: Ranks = ALONE
    _header: dict[str, Any] = field(default_factory=dict, init=False)

    def save(self, position: Position) -> None:
        """Writes the file, atomically.

        Raises:
            NonFiniteError: a weight is not finite; the file is left as it was.
            OSError: the file can't be written; it is left as it was.
        """
        state = {key: value.detach() for key, value in self.training.trained_state().items()}
        state |= {key: self.ranks.sum(state[key].clone()) for key in sorted(self.training.gathered() & state.keys())}
        optimizer_tensors, optimizer_scalars = _flatten(self.optimizer)
        tensors = {f"method.{key}": value for key, value in state.items()} | optimizer_tensors
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.state().items()}
        made_whole = ((key, whole(value)) for key, value in tensors.items())  # by all, and kept by the one that writes
        tensors = {key: value for key, value in made_whole if self.ranks.first}
        random = self.ranks.every(_random_state(self.device))
        self.ranks.of_first(lambda: self._write(position, tensors, optimizer_scalars, random))

    def _write(
        self,
        position: Position,
        tensors: dict[str, Tensor],
        optimizer_scalars: dict[str, Any],
        random: list[dict[str, Tensor]],
    ) -> None:
        weights = {key: value.cpu() for key, value in tensors.items() if key.startswith("method.")}
        if not all_finite(weights):
            bad = next(key for key, value in weights.items() if not all_finite({key: value}))
            raise NonFiniteError(
                f"epoch {position.epoch}, step {position.step}: {bad.removeprefix('method.')} is NaN or infinite"
            )
        tensors = {**tensors, **weights}
        for rank, states in enumerate(random):
            tensors |= {f"random.{key}{rank or ''}": value for key, value in states.items()}
        header = {
            "epoch": position.epoch,
            "step": position.step,
            "seconds": position.seconds,
            "losses": position.losses,
            "optimizer": optimizer_scalars,
            "precision": self.precision.state_dict(),
        }
        if position.best is not None:
            tensors |= {f"best.{key}": value for key, value in position.best.state.items()}
            header["best"] = {"epoch": position.best.epoch, "score": position.best.score}
        write_tensors(self.path, tensors, header)

    def load(self) -> Position:
        """Restores everything from the file, if there is one; else leaves all as it is, at the start.

        Raises:
            CheckpointError: the file is damaged or does not fit.
        """
        there = self.ranks.every(self.path.is_file())
        if not any(there):
            return Position()
        if not all(there):
            missing = ", ".join(str(rank) for rank, here in enumerate(there) if not here)
            raise CheckpointError(f"{self.path}: is not there for the processes of rank {missing}, but for others")
        tensors, header = read_tensors(self.path)
        try:
            self.training.load_trained_state(self._own(_part(tensors, "method.")))
            _unflatten(self.optimizer, _part(tensors, "optimizer."), header["optimizer"])
            self.precision.load_state_dict(header["precision"])
            if self.average is not None:
                self.average.load_state(_part(tensors, "average."))
            best = header.get("best")
            position = Position(
                epoch=header["epoch"],
                step=header["step"],
                seconds=header["seconds"],
                losses=header["losses"],
                best=best and Best(best["epoch"], tuple(best["score"]), _part(tensors, "best.")),
            )
            self._set_random_state(_part(tensors, "random."))
        except (RuntimeError, LookupError, TypeError) as error:
            raise CheckpointError(f"{self.path}: does not fit this run: {error}") from error
        return position

    def _own(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's of a state: of what each gathers by itself, the first has what all had by then."""
        if self.ranks.first:
            return state
        gathered = self.training.gathered()
        return {key: torch.zeros_like(value) if key in gathered else value for key, value in state.items()}

    def _set_random_state(self, states: dict[str, Tensor]) -> None:
        own = str(self.ranks.rank or "")
        if f"cpu{own}" not in states:  # there were fewer ranks: one that was not there begins as another would
            torch.manual_seed(mix_seed(int(states["cpu"].long().sum()), self.ranks.rank))
            return
        torch.set_rng_state(states[f"cpu{own}"])
        if self.device.type == "cuda" and f"cuda{own}" in states:
            torch.cuda.set_rng_state(states[f"cuda{own}"], self.device)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _flatten(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state by `INDEX.NAME`: its tensors, and its scalars.

    The options of the groups are left out: they follow from the configuration and the position.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, scalars


def _unflatten(optimizer: Optimizer, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars}.items():
        index, name = key.split(".", 1)
        own = trained[int(index)]
        of_each = isinstance(value, Tensor) and value.shape == own.shape  # others count steps
        state.setdefault(int(index), {})[name] = part_like(value, own) if of_each else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """The global generators', which dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states
