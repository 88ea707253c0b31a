import pytest
import torch

from cid._errors import ConfigError
from cid.train.models import InputSpec, build_model, count_parameters
from tests import draws

CIFAR10 = InputSpec(3, (32, 32), 10)
CIFAR100 = InputSpec(3, (32, 32), 100)


# The literature's: He et al. 2016, table 6; Zagoruyko and Komodakis 2016 and Tian et al. 2020 for the wide ones.
@pytest.mark.parametrize(
    ("name", "spec", "millions"),
    [
        ("resnet20", CIFAR10, 0.27),
        ("resnet32", CIFAR10, 0.46),
        ("resnet44", CIFAR10, 0.66),
        ("resnet56", CIFAR10, 0.85),
        ("resnet110", CIFAR10, 1.73),
        ("resnet8", CIFAR10, 0.08),
        ("wrn-16-2", CIFAR100, 0.70),
        ("wrn-40-2", CIFAR100, 2.26),
        ("wrn-40-4", CIFAR100, 8.97),
    ],
)
def test_parameters_as_published(name: str, spec: InputSpec, millions: float) -> None:
    with torch.device("meta"):
        model = build_model(name, spec)
    assert round(count_parameters(model) / 1e6, 2) == pytest.approx(millions, abs=0.011)


@pytest.mark.parametrize("name", ["cnn-3", "resnet8", "wrn-10-1"])
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


def test_timm() -> None:
    pytest.importorskip("timm")
    model = build_model("timm:resnet10t", InputSpec(1, (32, 32), 4))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 4)
    with pytest.raises(ConfigError, match=r"timm:resnet10'.*close: .*resnet10t"):
        build_model("timm:resnet10", CIFAR10)


@pytest.mark.parametrize("name", ["resnet21", "resnet2", "wrn-17-2", "wrn-4-1", "wrn-16-0", "cnn-0", "vgg", "", "cnn-"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--teacher or --student: got '{name}', accepted: "):
        build_model(name, CIFAR10)
