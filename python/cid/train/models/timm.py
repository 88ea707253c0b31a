"""The networks of the library timm."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import nn

from cid._errors import ConfigError
from cid.train.models.spec import NAMED_BY, InputSpec, Library, Native, Published, synonyms


def _build(name: str, spec: InputSpec, _config: dict[str, Any] | None) -> nn.Module:
    """With fresh weights: nothing is downloaded."""
    timm = _timm(name)
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ConfigError(f"{NAMED_BY}: got 'timm:{name}', accepted: a name of timm.list_models(){hint}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=spec.classes, in_chans=spec.channels)
    except RuntimeError as error:  # which of its weights are meant, after the point
        raise ConfigError(f"{NAMED_BY}: got 'timm:{name}': {error}") from error
    return model


def _native(name: str, model: Any) -> Native:
    config = _timm(name).data.resolve_model_data_config(model)
    _, height, width = config["input_size"]
    channels = model.in_chans if hasattr(model, "in_chans") else _read_channels(model)
    return Native(channels, (height, width), tuple(config["mean"]), tuple(config["std"]))


def _read_channels(model: nn.Module) -> int:
    """Of the first layer that reads maps."""
    return next(layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))


def _published(name: str, folder: Path | None) -> Published:
    timm = _timm(name)
    overlay = {} if folder is None else {"pretrained_cfg_overlay": {"file": str(_file(timm, name, folder))}}
    model = timm.create_model(name, pretrained=True, **overlay)
    return Published(model.state_dict(), _classes(timm, model))


def _file(timm: Any, name: str, folder: Path) -> Path:
    """The weights of a model in a folder, by the names under which they are published."""
    architecture, _, tag = name.partition(".")
    config = timm.get_pretrained_cfg(architecture, tag or None)
    full = f"{architecture}.{config.tag}" if config is not None and config.tag else architecture
    names = [f"{each}{end}" for each in dict.fromkeys((full, architecture)) for end in (".safetensors", ".pth", ".bin")]
    if config is not None and config.url:
        names.append(config.url.rpartition("/")[2])
    names += [f"{full}/model.safetensors", "model.safetensors", "pytorch_model.bin"]
    for each in names:
        if (folder / each).is_file():
            return folder / each
    raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")


def _classes(timm: Any, model: Any) -> tuple[tuple[str, ...], ...]:
    """The names of a model's classes, if they are those of ImageNet or it says them."""
    if labels := model.pretrained_cfg.get("label_names"):
        return tuple(synonyms(label) for label in labels) if len(labels) == model.num_classes else ()
    subset = timm.data.infer_imagenet_subset(model)
    if not subset:
        return ()
    info = timm.data.ImageNetInfo(subset)
    return tuple(
        (info.index_to_label_name(index), *synonyms(info.index_to_description(index, detailed=False)))
        for index in range(info.num_classes())
    )


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{NAMED_BY}: 'timm:{name}' needs timm: pip install timm") from error
    return timm


TIMM = Library(_build, _native, _published)
