"""The images of a split that are read as they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cid._errors import DataError
from cid.train.data.stored.readers import Answer, Readers, Reading, Request
from cid.train.data.stored.source import Source, digest_of
from cid.train.data.stored.views import Views

CPU = torch.device("cpu")


@dataclass
class Storage:
    """What the splits of a data set share: sources, the processes that read them, and what could not be read.

    Attributes:
        readers: the processes.
        replaces: whether the next image is taken for one that can't be read.
        unreadable: those that were met, by name, and why.
    """

    readers: Readers
    replaces: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        sources: Sequence[Source],
        views: Views,
        shape: tuple[int, int, int],
        *,
        workers: int = 0,
        replaces: bool = False,
    ) -> Storage:
        """Of sources whose images become pixels of a shape (channels, height, width)."""
        return cls(Readers(Reading(sources, views, shape), workers), replaces)

    def images(self, source: int) -> StoredImages:
        """All images of a source."""
        return StoredImages(self, source, torch.arange(len(self.readers.reading.sources[source])))


@dataclass(frozen=True)
class StoredImages:
    """Some images of a source, in an order: as a tensor (N, channels, height, width) that is not there yet.

    Attributes:
        storage: what reads them.
        source: the number of the source.
        places: in the source, (N,) int64, on the CPU.
        device: where pixels are wanted.
    """

    storage: Storage
    source: int
    places: Tensor
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of the tensor."""
        return (len(self), *self.storage.readers.reading.shape)

    def to(self, device: torch.device) -> StoredImages:
        """The same, with pixels on a device."""
        return replace(self, device=device)

    def __getitem__(self, index: Tensor) -> StoredImages:
        """The images at `index`, not read yet."""
        return replace(self, places=self.places[index.cpu()])

    def read(
        self, parts: Iterable[Tensor | slice], seed: tuple[int, ...] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of pixels, and which images they are of: those of each part, unless one was replaced.

        Args:
            parts: numbers of images, on the CPU.
            seed: what views are drawn from; None for those to score.

        Raises:
            DataError: an image can't be read, or a process ended.
        """
        asked: deque[Tensor] = deque()  # the readers are ahead

        def requests() -> Iterator[Request]:
            for part in parts:
                asked.append(numbers := self._numbers(part))
                yield self._request(numbers, seed)

        waits = self.device.type != "cuda"
        for answer in self.storage.readers.answers(requests(), pin=not waits):
            images, index = self._mended(answer, asked.popleft(), seed)
            yield images.to(self.device, non_blocking=not waits), index

    def pixels(self, index: Tensor | slice) -> Tensor:
        """The pixels of some images, to score, at once and in this process.

        Raises:
            DataError: an image can't be read.
        """
        numbers = self._numbers(index)
        answer = self.storage.readers.reading[self._request(numbers, None)]
        return self._mended(answer, numbers, None)[0].to(self.device)

    def _numbers(self, part: Tensor | slice) -> Tensor:
        return torch.arange(len(self))[part] if isinstance(part, slice) else part.cpu()

    def _request(self, part: Tensor, seed: tuple[int, ...] | None) -> Request:
        return Request(self.source, self.places[part].numpy(), seed)

    def _mended(self, answer: Answer, part: Tensor, seed: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
        """The pixels and their images, with the next readable image of the split where one was not."""
        images, index, storage = answer.images, part, self.storage
        for number, reason, unreadable in answer.failures:
            name = self.name(int(part[number]))
            if not (unreadable and storage.replaces):
                hint = "mend or remove it, or have it replaced by --skip-unreadable" if unreadable else "give --resize"
                raise DataError(f"--data: {name}: {'cannot be read: ' if unreadable else ''}{reason}; {hint}")
            storage.unreadable[name] = reason
            images, index = images.clone(), index.clone()
            images[number], index[number] = self._next(int(part[number]), seed)
        return images, index

    def _next(self, number: int, seed: tuple[int, ...] | None) -> tuple[Tensor, int]:
        for step in range(1, len(self)):
            other = (number + step) % len(self)
            answer = self.storage.readers.reading[self._request(torch.tensor([other]), seed)]
            if not answer.failures:
                return answer.images[0], other
        raise DataError(f"--data: {self.name(number)}: cannot be read, and no other image of the split can")

    def name(self, number: int) -> str:
        """What messages call an image."""
        return self.storage.readers.reading.sources[self.source].name(int(self.places[number]))

    def fingerprint(self) -> str:
        """What changes when the images or their order do."""
        return self.storage.readers.reading.sources[self.source].fingerprint() + digest_of(self.places)
