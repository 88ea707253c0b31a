"""What a network is to fit, and what a library that publishes networks is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn


@dataclass(frozen=True)
class InputSpec:
    """What a network reads and yields."""

    channels: int
    size: tuple[int, int]
    classes: int


# What a network's name is an argument of, for what is wrong with it.
NAMED_BY = "--teacher, --student or --ipw-context"


@dataclass(frozen=True)
class Native:
    """What a published model reads by its own configuration.

    Attributes:
        channels: of an image.
        size: height and width of an image, as it was trained on.
        mean: by channel, of values in 0..1, which are normalised by it and by `std`; None where it does not say.
        std: by channel; None where it does not say.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Published(NamedTuple):
    """Published weights of a model with its own classes.

    Attributes:
        state: the tensors that there are, by name.
        classes: what each of its outputs is called, by all names that it has; none where they are unknown.
    """

    state: dict[str, Tensor]
    classes: tuple[tuple[str, ...], ...]


class Library(NamedTuple):
    """How a library's models are had, by the name that follows its own.

    Attributes:
        build: with fresh weights, for a spec, of a configuration where the library's models have one of their own.
        native: what a model that it built reads.
        published: with published weights; of files in a folder, where nothing is to be downloaded.
    """

    build: Callable[[str, InputSpec, dict[str, Any] | None], nn.Module]
    native: Callable[[str, nn.Module], Native]
    published: Callable[[str, Path | None], Published]


def synonyms(name: str) -> tuple[str, ...]:
    """A class's name, and its parts where it lists several, as ImageNet's do: "tench, Tinca tinca"."""
    return tuple(dict.fromkeys((name, *(part.strip() for part in name.split(",")))))


def yield_logits(_model: nn.Module, _args: Any, output: Any) -> Any:
    """A hook after a model that puts its logits in the place of all that it yields."""
    return getattr(output, "logits", output)
