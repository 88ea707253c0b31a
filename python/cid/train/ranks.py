"""The processes that train one network together, each on its part of every batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# What batch normalisation needs of one rank.
FEWEST = 2


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this is, and what they do together: of the default process group, if there are several.

    All of them have to call what is said to be of all, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Those of the default process group; one where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of `count` samples of a batch are this rank's: neighbours, of which the pairs 2i, 2i + 1 stay together.

        Of `FEWEST` times as many samples as there are ranks, or more, each has `FEWEST` at least.
        """
        start, stop = (rank * count // self.size // 2 * 2 for rank in (self.rank, self.rank + 1))
        return slice(start, count if self.rank + 1 == self.size else stop)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of what each rank has, of all; in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def same(self, values: Tensor) -> None:
        """What the first rank has, of all; in place."""
        if self.size > 1:
            dist.broadcast(values, src=0)

    def every(self, value: T) -> list[T]:
        """What each rank has, of all."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def of_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, where alone it is called, of all; or what it raises there.

        Raises:
            Exception: the first rank's.
        """
        if self.size == 1:
            return make()
        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = make()
            except Exception as error:
                found[1] = _passed_on(error)
        dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise found[1]
        value: T = found[0]
        return value

    def first_of(self, value: T | None) -> T | None:
        """The value of the lowest rank that has one, of all."""
        return next((each for each in self.every(value) if each is not None), None)


def _passed_on(error: Exception) -> Exception:
    """The error, or what can be said of it where it can't be sent."""
    try:
        pickle.dumps(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


ALONE = Ranks()
