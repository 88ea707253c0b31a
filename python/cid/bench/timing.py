"""Interleaved timing: every contender once in each round, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

MIN_ROUNDS = 5
MAX_LEAD = 0.01
"""Seconds that the host is given before a call, at most."""

Call = Callable[[int], object]
"""Called with the number of the round, so that it can rotate its inputs."""


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


class Clock(Protocol):
    """What times the calls of a round."""

    def times(self, calls: Sequence[Call], i: int) -> list[float]:
        """Makes each call once, as the `i`-th round; returns the seconds of each."""


class HostClock:
    """For calls that have done their work when they return."""

    def times(self, calls: Sequence[Call], i: int) -> list[float]:
        """See `Clock`."""
        seconds = []
        for call in calls:
            start = time.perf_counter()
            call(i)
            seconds.append(time.perf_counter() - start)
        return seconds


class DeviceClock:
    """For calls that queue their work on a CUDA device: events before and after it, read when a round is over.

    Before each call the device reads a buffer of four times its L2 cache, so often that the host has queued the call by
    the time it is through. What is measured is the device's work without gaps and with a cold cache: as in a training
    step whose host runs ahead. Where a call makes the host wait for the device, the gap after that counts too.

    Args:
        calls: the contenders; each is called a few times.
        device: where they queue their work.

    Attributes:
        host: seconds that the host takes to queue each contender on an idle device: what bounds a small batch.
    """

    def __init__(self, calls: Mapping[str, Call], device: torch.device) -> None:
        self.host = {name: queueing(call) for name, call in calls.items()}
        # Numbers of four bytes. They are only read: what is written would be written back during the call.
        self._buffer = torch.zeros(torch.cuda.get_device_properties(device).L2_cache_size, device=device)
        self._sum = torch.zeros((), device=device)
        self._reads = 0
        _, once = self.times([lambda _: self._read(), lambda _: self._read()], 0)
        self._reads = max(1, math.ceil(min(2 * max(self.host.values()), MAX_LEAD) / max(once, 1e-6)))

    def times(self, calls: Sequence[Call], i: int) -> list[float]:
        """See `Clock`."""
        events = []
        for call in calls:
            for _ in range(self._reads):
                self._read()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            call(i)
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in events]

    def _read(self) -> None:
        torch.sum(self._buffer, 0, out=self._sum)


def queueing(call: Call) -> float:
    """Seconds until the host is free again, the median of some calls, after two that compile and allocate."""
    call(0), call(1)
    seconds = []
    for i in range(5):
        torch.cuda.synchronize()
        seconds += HostClock().times([call], i)
    return statistics.median(seconds)


def interleaved(contenders: Mapping[str, Call], *, seconds: float, clock: Clock | None = None) -> dict[str, Timing]:
    """Times each contender, for about `seconds` in all, but in at least `MIN_ROUNDS` rounds.

    Args:
        contenders: what to call.
        seconds: not counting two rounds that compile, allocate and fill the caches.
        clock: the host's, if it is None.
    """
    clock = clock or HostClock()
    names = list(contenders)
    for call in contenders.values():
        call(0), call(1)
    samples: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    i = 0
    while i < MIN_ROUNDS or time.perf_counter() < end:
        order = names[i % len(names) :] + names[: i % len(names)]  # no one always runs after the same other
        for name, sample in zip(order, clock.times([contenders[name] for name in order], i), strict=True):
            samples[name].append(sample)
        i += 1
    return {name: _summary(times) for name, times in samples.items()}


def _summary(times: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, (low, high), min(times), len(times))
