"""The configuration of a run: every setting once, from four layers.

A run is described by the frozen dataclass `Config`. Values come from four layers, each over the one before: the
defaults of the fields, the preset of the data set, a TOML file, the command line. The resolved configuration holds no
unspoken value and is written to the run folder, where it alone repeats the run.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cid._errors import ConfigError
from cid.train.methods import DEFAULT_METHODS, Method, option_fields, registry
from cid.train.presets import preset
from cid.train.sections import DataConfig, ModelsConfig, OptimConfig, RunConfig
from cid.train.settings import Setting, distinct, one_of, setting, settings_of


@dataclass(frozen=True)
class MethodConfig:
    """The methods to compare; subclasses have a field for each option of each method, which methods share by name."""

    methods: tuple[str, ...] = setting(DEFAULT_METHODS, "methods to compare", rule=distinct(one_of(*registry())))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def options(self, method: str) -> Method:
        """A method with its options."""
        chosen = registry()[method]
        return chosen(**{item.name: getattr(self, item.name) for item in dataclasses.fields(chosen)})


def _with_options() -> type[MethodConfig]:
    """The section with the options of all methods that there are."""
    return dataclasses.make_dataclass(
        "MethodConfig", option_fields(), bases=(MethodConfig,), namespace={"__module__": __name__}, frozen=True
    )


@dataclass(frozen=True)
class Config:
    """All settings of one run, a section a job."""

    data: DataConfig = field(default_factory=DataConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    method: MethodConfig = field(default_factory=_with_options())
    run: RunConfig = field(default_factory=RunConfig)


# The class of each section.
SECTIONS: dict[str, Any] = {section.name: section.default_factory for section in dataclasses.fields(Config)}


def settings() -> Iterator[Setting]:
    """Every setting, in the order of `Config`."""
    for section, section_class in SECTIONS.items():
        yield from settings_of(section, section_class)


def resolve(given: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> Config:
    """The configuration that a TOML file's values and, over them, given ones yield.

    Args:
        given: values by key (`section.name`), as from the command line.
        file: values by key, as `read_toml` returns them.

    Raises:
        ConfigError: a value is not accepted, or values contradict each other.
    """
    known = {each.key: each for each in settings()}
    from_file = {key: known[key].check(value, key) for key, value in (file or {}).items()}
    from_flags = {key: known[key].check(value, known[key].flag or key) for key, value in given.items()}
    values = {**from_file, **from_flags}
    name, cropped = values.get("data.name", DataConfig.name), values.get("data.crop") is not None
    return _complete(_build({**preset(name, cropped=cropped), **_with_implied(from_file), **_with_implied(from_flags)}))


def _with_implied(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a layer, and what methods infer from them, unless the layer says that itself."""
    names = [key.removeprefix("method.") for key in layer if key.startswith("method.")]
    implied = {name: value for method in registry().values() for name, value in method.implied(names).items()}
    return {**{f"method.{name}": value for name, value in implied.items()}, **layer}


def _build(values: Mapping[str, Any]) -> Config:
    sections: dict[str, Any] = {}
    for section, section_class in SECTIONS.items():
        prefix = section + "."
        own = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        sections[section] = section_class(**own)
    return Config(**sections)


def _complete(config: Config) -> Config:
    """Fills what depends on other settings, and checks these dependencies."""
    data, optim, method = config.data, config.optim, config.method
    if config.models.teacher_cache is not None and config.models.teacher_checkpoint is None:
        raise ConfigError(
            "--teacher-cache: needs the weights that it was made with, accepted: together with --teacher-checkpoint"
        )
    _check_given(config.models, optim)
    if data.views not in (None, 1) and not data.augments:
        raise ConfigError(
            f"--views: got {data.views}, accepted: 1 where nothing is random (no --pad, --flip, --crop, --randaugment)"
        )
    if config.models.cache_teacher and config.models.teacher_cache is not None:
        raise ConfigError("--cache-teacher: given, accepted: not together with --teacher-cache")
    if config.models.cache_teacher and data.views is None:
        if data.augments:
            raise ConfigError("--cache-teacher: needs fixed views, accepted: together with --views")
        data = dataclasses.replace(data, views=1)
    if optim.batch_size % optim.accumulate or optim.batch_size < 2 * optim.accumulate:
        raise ConfigError(
            f"--accumulate: got {optim.accumulate}, accepted: what divides --batch-size, here {optim.batch_size}, into "
            "equal parts of two images or more"
        )
    if optim.teacher_epochs is None:
        optim = dataclasses.replace(optim, teacher_epochs=optim.epochs)
    for options in map(method.options, registry()):
        method = dataclasses.replace(method, **dataclasses.asdict(options.completed(config.models, optim)))
    for options in map(method.options, method.methods):
        options.check(optim)
    _check_mixing(data, config.models, method)
    return dataclasses.replace(config, data=data, optim=optim, method=method)


def _check_given(models: ModelsConfig, optim: OptimConfig) -> None:
    """Checks what is said of networks that others have trained."""
    if models.pretrained_dir is not None and not (models.pretrained or models.student_pretrained):
        raise ConfigError("--pretrained-dir: given, accepted: together with --pretrained or --student-pretrained")
    if models.teacher_inputs is not None and models.teacher_checkpoint is None:
        raise ConfigError("--teacher-inputs: given, accepted: together with --teacher-checkpoint")
    if optim.teacher_epochs == 0 and not models.pretrained and models.teacher_checkpoint is None:
        raise ConfigError("--teacher-epochs: got 0, accepted: at least 1, but for --pretrained")


def _check_mixing(data: DataConfig, models: ModelsConfig, method: MethodConfig) -> None:
    """Refuses to mix samples where somebody takes each for one class's, or has seen them before they were mixed."""
    if not data.mixes:
        return
    flag = "--cutmix" if data.mixup is None else "--mixup"
    if models.teacher_cache is not None or models.cache_teacher:
        raise ConfigError(
            f"{flag}: given, accepted: not together with a teacher's outputs of images that are not mixed"
        )
    able = [each.name for each in map(method.options, registry()) if each.takes_shares and each.weighting() is None]
    if others := [name for name in method.methods if name not in able]:
        raise ConfigError(
            f"{flag}: given, and --methods {' '.join(others)}, accepted: methods that take shares of classes for "
            f"labels: {', '.join(able)}"
        )


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a configuration file into values by key.

    Raises:
        ConfigError: the file is missing, no TOML, or has a key that is no setting.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} is no TOML: {error}") from error
    return values_by_key(document, f"--config: {path}")


def values_by_key(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values by key (`section.name`) of a mapping of sections, or of keys.

    Args:
        document: the mapping.
        source: how a message calls it.

    Raises:
        ConfigError: it has a key that is no setting.
    """
    known = [each.key for each in settings()]
    values: dict[str, Any] = {}
    for section, content in document.items():
        for name, value in content.items() if isinstance(content, Mapping) else [("", content)]:
            key = f"{section}.{name}" if name else section
            if key not in known:
                raise ConfigError(f"{source} has {key!r}, accepted: {', '.join(known)}")
            values[key] = value
    return values


def to_toml(config: Config) -> str:
    """The configuration as the text of a TOML file; what is unset (None) is left out."""
    import tomli_w

    sections = {
        section: {name: value for name, value in content.items() if value is not None}
        for section, content in dataclasses.asdict(config).items()
    }
    return tomli_w.dumps(sections)
