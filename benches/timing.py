"""Interleaved timing: every contender once in each round, so that a noisy machine disturbs all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    quartiles: tuple[float, float]
    best: float
    rounds: int


def interleaved(
    contenders: Mapping[str, Callable[[int], object]], *, seconds: float, rounds: tuple[int, int] = (20, 2000)
) -> dict[str, Timing]:
    """Time each contender, called with the number of the round (to rotate its inputs), for about `seconds` in all."""
    for call in contenders.values():  # compile, allocate, fill caches
        call(0), call(1)
    start = time.perf_counter()
    for call in contenders.values():
        call(2)
    once = time.perf_counter() - start
    number = int(min(max(seconds / once, rounds[0]), rounds[1]))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(number):
        for name in names[i % len(names) :] + names[: i % len(names)]:  # no one always runs after the same other
            start = time.perf_counter()
            contenders[name](i)
            samples[name].append(time.perf_counter() - start)
    return {name: _summary(times) for name, times in samples.items()}


def _summary(times: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, (low, high), min(times), len(times))
