"""What a run shows while it works: bars on a terminal, one line a network elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Observer(Protocol):
    """Hears of a run's progress."""

    def start(self, name: str, total: int, done: int) -> None:
        """A network starts, with `done` of `total` steps done in an earlier attempt."""

    def step(self, count: int, loss: float) -> None:
        """So many more steps were done; the last had this loss."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch was scored."""

    def finish(self, name: str, summary: str) -> None:
        """A network is trained and scored."""

    def note(self, line: str) -> None:
        """Something else that the user has to know."""


class Lines:
    """One line a network, for logs and pipes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def start(self, name: str, total: int, done: int) -> None:
        """Says nothing, unless it goes on from a checkpoint."""
        if done:
            print(f"{name}: goes on at step {done} of {total}", flush=True)

    def step(self, count: int, loss: float) -> None:
        """Says nothing."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Says nothing: the metrics file has it."""

    def finish(self, name: str, summary: str) -> None:
        """Prints the line."""
        print(f"{name}: {summary}", flush=True)

    def note(self, line: str) -> None:
        """Prints it as an error."""
        print(line, file=sys.stderr, flush=True)


class Silent(Lines):
    """Nothing but notes."""

    def start(self, name: str, total: int, done: int) -> None:
        """Says nothing."""

    def finish(self, name: str, summary: str) -> None:
        """Says nothing."""


class Bars:
    """A bar for the network in training, with loss and accuracy; finished ones stay as lines above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, name: str, total: int, done: int) -> None:
        """Starts a bar."""
        self._task = self._progress.add_task(name, total=total, completed=done, loss="-", accuracy="-")

    def step(self, count: int, loss: float) -> None:
        """Moves the bar."""
        if self._task is not None:
            self._progress.update(self._task, advance=count, loss=f"{loss:.3f}")

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Shows the accuracy on the validation split."""
        if self._task is not None:
            self._progress.update(self._task, accuracy=f"{metrics['val_accuracy']:.1%}")

    def finish(self, name: str, summary: str) -> None:
        """Replaces the bar by a line."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._progress.console.print(f"{name:<14} {summary}", highlight=False)

    def note(self, line: str) -> None:
        """Puts it above the bar."""
        self._progress.console.print(line, highlight=False, markup=False)


def make_observer() -> Lines | Bars:
    """Bars if both streams are a terminal, else lines."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        return Bars(Console())
    return Lines()
