"""What can go wrong in a run, each with the exit code of the command line."""

from __future__ import annotations


class RunError(Exception):
    """An error that its one-line message explains: the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(RunError):
    """A setting that can't be met: names the option, what came and what is accepted."""

    exit_code = 2


class DataError(RunError):
    """Images that are missing or not what their layout says."""

    exit_code = 2


class CheckpointError(RunError):
    """A saved file that is missing or does not fit."""


class NonFiniteError(RunError):
    """Training produced a NaN or an infinity."""


class InterruptedRunError(RunError):
    """A signal asked the run to stop; everything needed to go on is saved.

    Args:
        signal_number: what stopped it; the exit code is 128 more, as a shell reports it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[type[InterruptedRunError], tuple[str, int]]:
        return type(self), (str(self), self.exit_code - 128)  # for other processes to raise it, too
