"""What a study compares: the settings that a file of it multiplies out, and what each network's row is known by."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cid._errors import ConfigError
from cid.train.config import Config, resolve, settings
from cid.train.folder import TEACHER

KEYS = ("methods", "seeds", "draws", "settings", "grid")
# What a study says itself, of all its runs.
OWN = {"method.methods": "methods", "run.seeds": "seeds"}
# Settings that came later: a row or a folder of before says nothing of them, so that they are no part of it at their
# defaults.
LATER = {
    "data": ("crop", "randaugment", "mixup", "cutmix"),
    "models": ("pretrained", "student_pretrained", "teacher_inputs", "teacher_size"),
    "optim": ("accumulate", "clip_norm", "ema", "patience", "teacher_lr"),
}
# Where files lie, and what computes: no part of what a row is of.
PLACES = {
    "data": ("dir", "memory", "workers"),
    "models": ("teacher_checkpoint", "teacher_cache", "cache_teacher", "pretrained_dir"),
    "run": (
        "seeds",
        "device",
        "devices",
        "sync_batchnorm",
        "local_pairs",
        "shard",
        "threads",
        "compile",
        "checkpoint_every",
        "logger",
    ),
}


@dataclass(frozen=True)
class Setting:
    """One run of a study.

    Attributes:
        label: which alternative of each axis of the grid it has, by the axis.
        config: of the run.
    """

    label: dict[str, str]
    config: Config

    @property
    def name(self) -> str:
        """Its folder: the alternatives, and what tells it from other runs; more methods and seeds are the same one."""
        words = [re.sub(r"[^\w.+-]+", "-", text).strip("-") for text in self.label.values()]
        sections = _sections(self.config)
        sections["method"] = {name: value for name, value in sections["method"].items() if name != "methods"}
        return "_".join([*words, _hash(sections, self.config.run.seeds[0])[:8]])

    def students(self) -> list[tuple[str, int]]:
        """Method and seed of each, all methods of one seed before the next seed."""
        return [(method, seed) for seed in self.config.run.seeds for method in self.config.method.methods]


def read_study(path: Path, given: Mapping[str, Any]) -> list[Setting]:
    """The settings of a study, in the order of the grid.

    Args:
        path: a TOML file. `methods` and `seeds` are as a run's; `draws` are keys of seeds (say "data.split_seed") that
            each seed sets to itself, so that it has a split, a teacher and weights of its own; `settings` are sections
            as a run's configuration has them, for all runs; and each table of `grid` is an axis, whose tables are its
            alternatives, by name: sections, too. Runs are all combinations of one alternative of each axis. Each
            network has one thread, unless the file says otherwise.
        given: values by key, over those of the file.

    Raises:
        ConfigError: the file can't be read, has something that is no setting, or values that are not accepted.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML: {error}") from error
    for key in content:
        if key not in KEYS:
            raise ConfigError(f"{path}: has {key!r}, accepted: {', '.join(KEYS)}")
    values = {key: content[name] for key, name in OWN.items() if name in content}
    common = {"run.threads": 1, **values, **_by_key(content.get("settings", {}), f"{path}: settings")}
    axes = [
        [(axis, name, _by_key(sections, f"{path}: grid.{axis}.{name}")) for name, sections in choices.items()]
        for axis, choices in _table(content.get("grid", {}), f"{path}: grid").items()
    ]
    found = []
    for chosen in itertools.product(*axes):
        label = {axis: name for axis, name, _ in chosen}
        values = {**common, **{key: value for _, _, own in chosen for key, value in own.items()}, **given}
        try:
            found += _drawn(label, values, content.get("draws", []))
        except ConfigError as error:
            where = ", ".join(f"{axis} {name}" for axis, name in label.items())
            raise ConfigError(f"{path}: {where + ': ' if where else ''}{error}") from error
    return found


def _drawn(label: dict[str, str], values: Mapping[str, Any], draws: Any) -> list[Setting]:
    """The setting of these values; one for each seed, where seeds draw more than students."""
    seeds = [
        each.key for each in settings() if each.kind is int and each.key.startswith("data.") and "seed" in each.key
    ]
    if not isinstance(draws, list) or not set(draws) <= set(seeds):
        raise ConfigError(f"draws: got {draws!r}, accepted: a list of {', '.join(seeds)}")
    whole = resolve({}, values)
    if whole.run.precision == "auto":
        raise ConfigError("run.precision: got 'auto', accepted: one that is the same on every machine")
    if not draws:
        return [Setting(label, whole)]
    return [
        Setting(label, resolve({}, {**values, "run.seeds": [seed], **dict.fromkeys(draws, seed)}))
        for seed in whole.run.seeds
    ]


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        raise ConfigError(f"{where}: got {value!r}, accepted: tables")
    return value


def _by_key(sections: Any, where: str) -> dict[str, Any]:
    """The values of a table of sections, by key."""
    known = [each.key for each in settings() if each.key not in OWN]
    values: dict[str, Any] = {}
    for section, content in _table(sections, where).items():
        for name, value in content.items():
            key = f"{section}.{name}"
            if key not in known:
                study = f" (a study has {OWN[key]!r} for all runs)" if key in OWN else ""
                raise ConfigError(f"{where}: has {key!r}{study}, accepted: {', '.join(known)}")
            values[key] = value
    return values


def digest(config: Config, method: str, seed: int) -> str:
    """What tells a network from every other: all that decides what becomes of it, but where files lie.

    Other methods' options are no part of it, nor, of a teacher, what is the students'.
    """
    sections = _sections(config)
    if method == TEACHER:
        del sections["models"]["student"], sections["optim"]["epochs"]
        sections["optim"].pop("ema", None)
        sections["models"].pop("student_pretrained", None)
        sections["method"] = {}
    else:
        # Its teacher's, too, and the weights', which the first seed draws.
        sections["run"]["first"] = config.run.seeds[0]
        sections["method"] = config.method.options(method).decisive()
    return _hash(sections, method, seed)


def _sections(config: Config) -> dict[str, dict[str, Any]]:
    found = {
        name: {key: value for key, value in section.items() if key not in PLACES.get(name, ())}
        for name, section in dataclasses.asdict(config).items()
    }
    for name, keys in LATER.items():
        for each in dataclasses.fields(getattr(config, name)):
            if each.name in keys and found[name][each.name] == each.default:
                del found[name][each.name]
    data, method = found["data"], found["method"]
    data["classes"] = sorted(data["classes"])
    if not data["classes"]:
        del data["classes"]
    if not method["kd_weight"]:
        del method["kd_weight"]
    return found


def without_places(config: Config) -> Config:
    """The configuration with the defaults of what says where files lie and what computes; its seeds stay."""
    changed = {}
    for name, keys in PLACES.items():
        section = getattr(config, name)
        fresh = {each.name: each.default for each in dataclasses.fields(section)}
        changed[name] = dataclasses.replace(section, **{key: fresh[key] for key in keys if key != "seeds"})
    return dataclasses.replace(config, **changed)


def _hash(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
