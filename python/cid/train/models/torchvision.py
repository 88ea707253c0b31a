"""The networks of the library torchvision."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cid._errors import ConfigError
from cid.train.models.spec import NAMED_BY, InputSpec, Library, Native, Published, synonyms, yield_logits

# Without a second classifier for training alone; their published weights expect that they normalise once more.
INCEPTION = {"aux_logits": False, "transform_input": True}
OPTIONS: dict[str, dict[str, Any]] = {"inception_v3": INCEPTION, "googlenet": INCEPTION}


def _build(name: str, spec: InputSpec, _config: dict[str, Any] | None) -> nn.Module:
    """With fresh weights. It reads three channels."""
    models = _models(name)
    more = {**OPTIONS[name], "init_weights": True} if name in OPTIONS else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=spec.classes, **more)
    model.register_forward_hook(yield_logits)
    return model


def _native(name: str, _model: nn.Module) -> Native:
    transforms = _weights(name).transforms()
    (side,) = transforms.crop_size
    return Native(3, (side, side), tuple(transforms.mean), tuple(transforms.std))


def _published(name: str, folder: Path | None) -> Published:
    weights = _weights(name)
    with _downloads(folder, weights.url.rpartition("/")[2]):
        model = _models(name).get_model(name, weights=weights)
    return Published(model.state_dict(), tuple(map(synonyms, weights.meta["categories"])))


@contextmanager
def _downloads(folder: Path | None, file: str) -> Iterator[None]:
    """Within it a folder is where PyTorch keeps what it downloads."""
    if folder is None:
        yield
        return
    if not (folder / file).is_file():
        raise FileNotFoundError(f"{folder} has no {file}")
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as hub:
        (Path(hub) / "checkpoints").symlink_to(folder.absolute())
        torch.hub.set_dir(hub)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def _weights(name: str) -> Any:
    return _models(name).get_model_weights(name).DEFAULT


def _models(name: str) -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise ConfigError(f"{NAMED_BY}: 'torchvision:{name}' needs torchvision: pip install torchvision") from error
    names = models.list_models(module=models)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ConfigError(
            f"{NAMED_BY}: got 'torchvision:{name}', accepted: a classifier of torchvision.models.list_models(){hint}"
        )
    return models


TORCHVISION = Library(_build, _native, _published)
