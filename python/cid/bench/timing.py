"""Interleaved timing: every contender once in each round, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MIN_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median: over the rounds.
        quartiles: the lower and the upper.
        best: the shortest.
        rounds: how many there were.
    """

    median: float
    quartiles: tuple[float, float]
    best: float
    rounds: int


def interleaved(contenders: Mapping[str, Callable[[int], object]], *, seconds: float) -> dict[str, Timing]:
    """Times each contender, for about `seconds` in all, but in at least `MIN_ROUNDS` rounds.

    Args:
        contenders: called with the number of the round, so that they can rotate their inputs.
        seconds: not counting two rounds that compile, allocate and fill the caches.
    """
    names = list(contenders)
    for call in contenders.values():
        call(0), call(1)
    samples: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    i = 0
    while i < MIN_ROUNDS or time.perf_counter() < end:
        for name in names[i % len(names) :] + names[: i % len(names)]:  # no one always runs after the same other
            call = contenders[name]
            start = time.perf_counter()
            call(i)
            samples[name].append(time.perf_counter() - start)
        i += 1
    return {name: _summary(times) for name, times in samples.items()}


def _summary(times: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, (low, high), min(times), len(times))
