"""What a network is to fit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputSpec:
    """What a network reads and yields."""

    channels: int
    size: tuple[int, int]
    classes: int
