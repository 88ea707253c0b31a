"""Settings as fields of frozen dataclasses: type, default, command-line flag, help, and what they accept."""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cid._errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """What a setting accepts, as a test and in words."""

    accepts: Callable[[Any], bool] = field(compare=False)
    words: str


def at_least(low: float) -> Rule:
    """Finite numbers from `low` up."""
    return Rule(lambda value: math.isfinite(value) and value >= low, f"a number of at least {low}")


def above(low: float, *, up_to: float = math.inf) -> Rule:
    """Finite numbers greater than `low`, up to `up_to`."""
    words = f"a number above {low}" + (f", up to {up_to}" if up_to < math.inf else "")
    return Rule(lambda value: math.isfinite(value) and low < value <= up_to, words)


def within(low: float, high: float) -> Rule:
    """Numbers from `low` to below `high`."""
    return Rule(lambda value: low <= value < high, f"a number from {low} to below {high}")


def between(low: float, high: float) -> Rule:
    """Numbers from `low` to `high`."""
    return Rule(lambda value: low <= value <= high, f"a number from {low} to {high}")


def one_of(*choices: str) -> Rule:
    """One of some words."""
    return Rule(lambda value: value in choices, " or ".join(choices))


def distinct(rule: Rule, *, least: int = 1) -> Rule:
    """A list of at least so many values, without repeats, that `rule` accepts."""
    return Rule(
        lambda values: least <= len(values) == len(set(values)) and all(map(rule.accepts, values)),
        f"{'one or more' if least else 'any'}, each once, of: {rule.words}",
    )


def setting(
    default: Any, text: str, *, rule: Rule | None = None, flag: str | None = None, word: str | None = None
) -> Any:
    """A field of a dataclass that is a setting.

    Args:
        default: its value where nobody gives one.
        text: its help.
        rule: what it accepts, of what its type allows.
        flag: its option of the command line; None for that of its name, "" for none.
        word: what it accepts in place of a value of its type.
    """
    return field(default=default, metadata={"help": text, "rule": rule, "flag": flag, "word": word})


@dataclass(frozen=True)
class Setting:
    """One setting, as the command line and the TOML file see it."""

    key: str
    flag: str | None
    help: str
    rule: Rule | None
    kind: type
    many: bool
    optional: bool
    word: str | None

    def check(self, value: Any, source: str) -> Any:
        """Returns `value` in the field's type.

        Args:
            value: what a TOML file or the command line holds.
            source: how the message calls the setting.

        Raises:
            ConfigError: the type or the value is not accepted.
        """
        if (value is None and self.optional) or (isinstance(value, str) and value == self.word):
            return value
        if self.many:
            items = value if isinstance(value, list | tuple) else [value]
            value = tuple(self._typed(item, source) for item in items)
        else:
            value = self._typed(value, source)
        if self.rule is not None and not self.rule.accepts(value):
            raise ConfigError(f"{source}: got {_show(value)}, accepted: {self.rule.words}{self._or_word}")
        return value

    @property
    def _or_word(self) -> str:
        return "" if self.word is None else f", or {self.word}"

    def parse(self, text: str) -> Any:
        """A value, or one of several, as the command line has it, for `argparse`.

        Raises:
            ArgumentTypeError: it is of another type.
        """
        try:
            return text if text == self.word else self.kind(text)
        except ValueError as error:
            accepted = f"{_KIND_WORDS[self.kind]}{self._or_word}"
            raise argparse.ArgumentTypeError(f"got {text!r}, accepted: {accepted}") from error

    def _typed(self, value: Any, source: str) -> Any:
        if self.kind is float and type(value) is int:
            return float(value)
        if type(value) is not self.kind:
            raise ConfigError(f"{source}: got {_show(value)}, accepted: {_KIND_WORDS[self.kind]}{self._or_word}")
        return value


_KIND_WORDS: dict[type, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else repr(value)


def settings_of(section: str, fields_of: type[Any]) -> Iterator[Setting]:
    """The settings that a dataclass has as fields, in their order; `section` is the first part of their keys."""
    hints = typing.get_type_hints(fields_of)
    for item in dataclasses.fields(fields_of):
        kind, many, optional = _unpack_type(hints[item.name])
        flag = item.metadata["flag"]
        yield Setting(
            key=f"{section}.{item.name}",
            flag="--" + item.name.replace("_", "-") if flag is None else flag or None,
            help=item.metadata["help"],
            rule=item.metadata["rule"],
            kind=kind,
            many=many,
            optional=optional,
            word=item.metadata["word"],
        )


def _unpack_type(hint: Any) -> tuple[type, bool, bool]:
    """Splits `int`, `int | None`, `int | str | None` (a word) or `tuple[int, ...]`: type, whether many, or optional."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return arguments[0], True, False
    if isinstance(hint, types.UnionType):
        return arguments[0], False, True
    return hint, False, False


def count_of(text: str) -> int:
    """An option of the command line that counts something and is no setting, for `argparse`."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, accepted: a whole number, at least 1")
    return int(text)
