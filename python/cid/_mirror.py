"""A count that a device holds and the host knows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Mirror(nn.Module):
    """A module with a count in a buffer, of which the host keeps a copy: to look at the buffer waits for the device.

    The buffer's version counter, which the host has, tells whether others wrote into it (an average of weights, a
    checkpoint loaded in place, `fill_`); then it is read anew. Writing through `Tensor.data` counts for nothing, and in
    what `torch.compile` traces nothing is looked at.
    """

    _count: str
    """The name of the buffer with the count; a module may be without it."""
    _seen: list[tuple[Tensor, int | None]] | None = None

    def _beside(self) -> tuple[Tensor, ...]:
        """Other buffers, of which it matters whether they were changed with the count."""
        return ()

    def _read(self, all_changed: bool) -> None:
        """Take the count from the buffer, which others have changed, alone or with all buffers beside it."""
        raise NotImplementedError

    def _watched(self) -> tuple[Tensor, ...]:
        count = self._buffers.get(self._count)
        return () if count is None else (count, *self._beside())

    def _keep(self) -> None:
        """Take the watched buffers, as they are now, for our own work."""
        if not torch.compiler.is_compiling():
            self._seen = [(buffer, _version(buffer)) for buffer in self._watched()]

    def _notice(self) -> None:
        """Read the count anew if others have changed it."""
        if self._seen and not torch.compiler.is_compiling():
            buffer, version = self._seen[0]
            now = self._buffers[self._count]  # not by its name as an attribute: this is part of each step
            assert now is not None
            if (now is not buffer or _version(now) != version or version is None) and not now.is_meta:
                watched = zip(self._watched(), self._seen, strict=True)
                self._read(all_changed=all(b is not seen or _version(b) != v for b, (seen, v) in watched))
                self._keep()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._notice()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._keep()
        return self

    def __getstate__(self) -> dict[str, Any]:
        self._notice()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._keep()

    def _replicate_for_data_parallel(self) -> Any:
        self._notice()
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._seen = None  # its buffers are copies of these
        return replica


def _version(buffer: Tensor) -> int | None:
    """How often a tensor was written; None where nobody counts."""
    return None if buffer.is_inference() else buffer._version
