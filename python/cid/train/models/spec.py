"""What a network is to fit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputSpec:
    """What a network reads and yields."""

    channels: int
    size: tuple[int, int]
    classes: int


# What a network's name is an argument of, for what is wrong with it.
NAMED_BY = "--teacher, --student or --ipw-context"
