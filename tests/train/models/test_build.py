import pytest
import torch

from cid._errors import ConfigError
from cid.train.models import InputSpec, build_model
from tests import draws
from tests.train.models.counts import CIFAR10


@pytest.mark.parametrize("name", ["cnn-3", "convnet-2", "resnet8", "wrn-10-1", "patches-4"])
@pytest.mark.parametrize("spec", [InputSpec(1, (12, 12), 10), InputSpec(3, (32, 32), 7)])
def test_maps_images_to_logits(name: str, spec: InputSpec) -> None:
    model = build_model(name, spec)
    assert model(torch.randn(2, spec.channels, *spec.size)).shape == (2, spec.classes)


def test_weights_come_from_the_global_seed() -> None:
    draws.seed(5)
    one = build_model("wrn-10-1", CIFAR10).state_dict()
    draws.seed(5)
    other = build_model("wrn-10-1", CIFAR10).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "name", ["resnet21", "resnet2", "wrn-17-2", "wrn-4-1", "wrn-16-0", "cnn-0", "patches-0", "convnet-", "vgg", ""]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--teacher, --student or --ipw-context: got '{name}', accepted: "):
        build_model(name, CIFAR10)
