"""The image classifiers of the library Transformers, by their names or as folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from cid._errors import ConfigError
from cid.train.models.spec import NAMED_BY, InputSpec, Library, Native, Published, synonyms, yield_logits

# Of a configuration what a network of a run says otherwise: its classes, and where it is from.
OTHERS = ("_name_or_path", "id2label", "label2id")


def _build(name: str, spec: InputSpec, config: dict[str, Any] | None) -> nn.Module:
    """With fresh weights, of its configuration, which is `config` where that is given."""
    transformers = _transformers(name)
    if config is None:
        own = _config(name)
    else:
        kinds = transformers.models.auto.configuration_auto.CONFIG_MAPPING
        if config.get("model_type") not in kinds:
            raise ConfigError(
                f"'hf:{name}': is a {config.get('model_type')!r}, accepted: one that this release of Transformers has"
            )
        own = kinds[config["model_type"]].from_dict(config)
    if own.num_labels != spec.classes:
        own.num_labels = spec.classes
    own.return_dict = True
    try:
        model: nn.Module = transformers.AutoModelForImageClassification.from_config(own)
    except ValueError as error:
        raise ConfigError(f"{NAMED_BY}: 'hf:{name}': {_first_line(error)}") from error
    model.register_forward_hook(yield_logits)
    return model.train()


def _native(name: str, model: Any) -> Native:
    config = model.config
    side = getattr(config, "image_size", None)
    try:
        processor = _transformers(name).AutoImageProcessor.from_pretrained(name, local_files_only=_is_folder(name))
    except (OSError, ValueError, ImportError):  # it has none, as what is not published need not
        processor = None
    if side is None and processor is not None:
        sizes = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
        side = sizes.get("height") or sizes.get("shortest_edge")
    side = side or 224
    size = (side, side) if isinstance(side, int) else (side[0], side[1])
    return Native(getattr(config, "num_channels", 3), size, *_normalisation(processor))


def _normalisation(processor: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std of an image processor, of values in 0..1."""
    if processor is None:
        return None, None
    mean, std = ([0.0], [1.0]) if not processor.do_normalize else (processor.image_mean, processor.image_std)
    # Bytes become values in 0..1 by a factor of 1/255, or by another.
    factor = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)


def _published(name: str, folder: Path | None) -> Published:
    transformers = _transformers(name)
    path = name if folder is None else str(folder / name)
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        path, local_files_only=_is_folder(path), output_loading_info=True
    )
    labels = model.config.id2label
    names = tuple(synonyms(labels[index]) for index in range(model.config.num_labels))
    # What its files do not have is fresh, as the classifier of a body that was published alone.
    state = {key: value for key, value in model.state_dict().items() if key not in info["missing_keys"]}
    return Published(state, names)


def config_of(network: nn.Module) -> dict[str, Any] | None:
    """The configuration of the model of Transformers that a network is or holds, as JSON has it; None of others."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return None
    for module in network.modules():
        if isinstance(module, transformers.PreTrainedModel):
            content: dict[str, Any] = json.loads(module.config.to_json_string(use_diff=True))
            return {key: value for key, value in content.items() if key not in OTHERS}
    return None


def _config(name: str) -> Any:
    try:
        return _transformers(name).AutoConfig.from_pretrained(name, local_files_only=_is_folder(name))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{NAMED_BY}: got 'hf:{name}', accepted: a folder with the config.json of an image classifier of "
            f"Transformers, or a model's name where its files can be downloaded: {_first_line(error)}"
        ) from error


def _is_folder(name: str) -> bool:
    return Path(name).is_dir()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"{NAMED_BY}: 'hf:{name}' needs Transformers: pip install \"cid-distill[transformers]\""
        ) from error
    return transformers


HF = Library(_build, _native, _published)
