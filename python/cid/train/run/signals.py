"""Turns the first interrupt into a request that the loop answers between two steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

ECHO = 5.0  # seconds


class StopRequest:
    """While entered, SIGINT and SIGTERM set `signal_number` instead of ending the process; a second one ends it.

    To one of several processes that may be an echo: who told all of them told their launcher, which tells them again.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers; in another one, whoever started it does the interrupting.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        again, self.signal_number = self.signal_number is not None, number
        if not again:
            self._since = time.monotonic()
            if "RANK" not in os.environ:
                self._restore()
        elif time.monotonic() - self._since > ECHO:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
