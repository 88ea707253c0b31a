"""The networks of the library torchvision."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cid._errors import ConfigError
from cid.train.models.spec import NAMED_BY, InputSpec, Library, Native, Published, synonyms, yield_logits
from cid.train.states import fitted, read_state

DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
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
    state = _models(name).get_model(name, weights=weights).state_dict() if folder is None else _read(name, folder)
    return Published(state, tuple(map(synonyms, weights.meta["categories"])))


def _read(name: str, folder: Path) -> dict[str, Tensor]:
    """The published weights in a folder; not by torchvision, which runs what a file holds."""
    weights = _weights(name)
    path = folder / weights.url.rpartition("/")[2]
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {path.name}")
    # As it was published, with its second classifier.
    more = {"init_weights": False} if name in OPTIONS else {}
    expected = _models(name).get_model(name, weights=None, num_classes=len(weights.meta["categories"]), **more)
    # Those of DenseNet were published before names of tensors could not have such points.
    state = {DENSE.sub(r"\1\2.", key): value for key, value in read_state(path).items()}
    return fitted(state, expected.state_dict(), path, name)


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
