"""How large networks are, by what was published of them."""

import torch

from cid.train.models import InputSpec, build_model, count_parameters

CIFAR10 = InputSpec(3, (32, 32), 10)
CIFAR100 = InputSpec(3, (32, 32), 100)


def millions(name: str, spec: InputSpec) -> float:
    """The parameters of a network, in millions to two digits, as papers give them."""
    with torch.device("meta"):
        return round(count_parameters(build_model(name, spec)) / 1e6, 2)
