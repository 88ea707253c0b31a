"""The networks of the library timm."""

from __future__ import annotations

import difflib

from torch import nn

from cid._errors import ConfigError
from cid.train.models.spec import NAMED_BY, InputSpec


def build_timm(name: str, spec: InputSpec) -> nn.Module:
    """A model of timm, with fresh weights: nothing is downloaded."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{NAMED_BY}: 'timm:{name}' needs timm: pip install timm") from error
    if name not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ConfigError(f"{NAMED_BY}: got 'timm:{name}', accepted: a name of timm.list_models(){hint}")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=spec.classes, in_chans=spec.channels)
    return model
