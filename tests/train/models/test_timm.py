import pytest
import torch

from cid._errors import ConfigError
from cid.train.models import InputSpec, build_model


def test_timm() -> None:
    pytest.importorskip("timm")
    model = build_model("timm:resnet10t", InputSpec(1, (32, 32), 4))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 4)
    with pytest.raises(ConfigError, match=r"timm:resnet10'.*close: .*resnet10t"):
        build_model("timm:resnet10", InputSpec(3, (32, 32), 10))
