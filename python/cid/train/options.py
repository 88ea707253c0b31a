"""Settings as options of a command."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from cid.train.config import settings


def add_settings(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Adds the options of a run's settings, or of those that `only` names, by key or by section."""
    groups: dict[str, Any] = {}
    for setting in settings():
        section = setting.key.partition(".")[0]
        if setting.flag is None or (only is not None and not {section, setting.key} & set(only)):
            continue
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        how: dict[str, Any] = {"dest": setting.key, "default": argparse.SUPPRESS, "help": setting.help}
        if setting.kind is bool:
            how["action"] = argparse.BooleanOptionalAction
        else:
            how |= {"type": setting.parse, "metavar": setting.kind.__name__.upper()}
            if setting.many:
                how["nargs"] = "+"
        groups[section].add_argument(setting.flag, **how)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The values of settings that were given, by key."""
    return {key: value for key, value in vars(options).items() if "." in key}
