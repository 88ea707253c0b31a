"""The processes that read images, and what they are asked and answer."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cid._errors import DataError
from cid.train.data.images import Bytes
from cid.train.data.seeds import mix_seed
from cid.train.data.stored.source import Source
from cid.train.data.stored.views import Views
from cid.train.sections import MOST_WORKERS

# Batches that each worker has ready beside the one that it makes.
AHEAD = 2


def default_workers() -> int:
    """A process for each core that this one may use, up to a few."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, count)


class Request(NamedTuple):
    """Images to read.

    Attributes:
        source: the number of their source.
        places: of the images in it.
        seed: what their views are drawn from, together with the place of each; None for the view to score.
    """

    source: int
    places: NDArray[np.int64]
    seed: tuple[int, ...] | None


class Failure(NamedTuple):
    """An image of a request that could not be had: its number among them, why, and whether no other size would do."""

    number: int
    reason: str
    unreadable: bool


class Answer(NamedTuple):
    """Pixels (B, channels, height, width), uint8; black where there is a failure."""

    images: Tensor
    failures: list[Failure]


class Reading(Dataset[Answer]):
    """Answers requests: what each process does.

    Args:
        sources: of the images.
        views: how they become pixels.
        shape: of the pixels: channels, height, width.
    """

    def __init__(self, sources: Sequence[Source], views: Views, shape: tuple[int, int, int]) -> None:
        self.sources, self.views, self.shape = sources, views, shape

    def __getitem__(self, request: Request) -> Answer:
        source = self.sources[request.source]
        seed = request.seed if self.views.random else None
        images = np.zeros((len(request.places), *self.shape), np.uint8)
        failures = []
        for number, place in enumerate(request.places.tolist()):
            try:
                pixels = self._pixels(source[place], None if seed is None else mix_seed(*seed, place))
            except (MemoryError, OSError):  # which are no fault of the image
                raise
            # Of a damaged file decoders raise whatever they stumble over.
            except Exception as error:
                failures.append(Failure(number, str(error) or type(error).__name__, True))
                continue
            if pixels.shape == self.shape:
                images[number] = pixels
            else:
                failures.append(Failure(number, f"is {pixels.shape[1:]}, others are {self.shape[1:]}", False))
        return Answer(torch.from_numpy(images), failures)

    def _pixels(self, image: Any, seed: int | None) -> Bytes:
        return self.views.score(image) if seed is None else self.views.train(image, seed)


class _Requests(Sampler[Request]):
    """What the processes are asked next."""

    def __init__(self) -> None:
        self.next: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.next)


class Readers:
    """Processes that read images of some sources, ahead of whoever wants them; they start when they are first asked.

    Each has `AHEAD` batches ready and one in the making. One pass is read at a time: a new one ends the one before.

    Args:
        reading: what each does.
        workers: how many; 0 reads in this process, when a batch is wanted.
    """

    def __init__(self, reading: Reading, workers: int) -> None:
        self.reading, self._workers = reading, workers
        self._requests = _Requests()
        self._loader: DataLoader[Answer] | None = None
        self._iterator: Iterator[Answer] | None = None
        self._pass = 0

    def answers(self, requests: Iterable[Request], *, pin: bool = False) -> Iterator[Answer]:
        """The answers to some requests, in their order.

        Args:
            requests: taken when there is room for more.
            pin: whether the pixels are to lie where a GPU copies them from without waiting.

        Raises:
            DataError: a process ended.
        """
        if not self._workers:
            yield from map(self.reading.__getitem__, requests)
            return
        self._pass = own = self._pass + 1
        self._requests.next = requests
        begins = self._loader is None
        self._loader = self._loader if self._loader is not None else self._started(pin)
        # Nothing else holds it: the processes end when it does.
        with _without_main():
            self._iterator = iter(self._loader)
        if begins:  # ahead of what waits for these processes when this one ends
            atexit.register(_close, weakref.ref(self))
        while True:
            if own != self._pass:
                raise RuntimeError("another pass over stored images began before this one ended")
            try:
                yield next(self._iterator)
            except StopIteration:
                return
            # As the loader finds that a process ended, or that it does not send what it was about to.
            except (RuntimeError, OSError, EOFError) as error:
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                self.close()
                if isinstance(error, OSError) and "in DataLoader worker" in str(error):  # which goes on
                    raise DataError(f"--data: an image cannot be opened: {str(error).splitlines()[-1]}") from error
                raise DataError(
                    f"--workers: a process that reads images ended unexpectedly ({error}); is there enough memory, and "
                    "shared memory (/dev/shm)?"
                ) from error

    def close(self) -> None:
        """Ends the processes; others start when they are asked."""
        self._loader = self._iterator = None

    def _started(self, pin: bool) -> DataLoader[Answer]:
        # Not by fork: threads and CUDA are not to be copied.
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:  # imports what they need once for all
            context.set_forkserver_preload([__name__, *self.reading.views.needs])
        return DataLoader(
            self.reading,
            batch_size=None,
            sampler=self._requests,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            worker_init_fn=_begin,
            multiprocessing_context=context,
            generator=torch.Generator(),  # the global one is the networks'
            prefetch_factor=AHEAD,
            persistent_workers=True,
        )


@contextmanager
def _without_main() -> Iterator[None]:
    """Within it new processes do not import the script that runs, as `multiprocessing` has them do.

    They need nothing of it; and one that calls `distill` outside of `if __name__ == "__main__":` would begin again.
    """
    name = "__main__"
    script, sys.modules[name] = sys.modules[name], ModuleType(name)
    try:
        yield
    finally:
        sys.modules[name] = script


def _close(readers: weakref.ref[Readers]) -> None:
    if (found := readers()) is not None:
        found.close()


def _as_it_is(answer: Any) -> Any:
    return answer


def _begin(_worker: int) -> None:
    """A worker lives as long as the process that started it, which alone is told to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # PyTorch's workers watch the process that forked them, which is not the one that was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
