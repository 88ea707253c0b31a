"""The kernels as PyTorch's operators."""

import torch

from tests import draws
from tests.cases import kernel_arguments, kernels


@kernels
def test_opcheck(name: str) -> None:
    draws.seed(0)
    arguments = kernel_arguments()[name]
    operator = getattr(torch.ops.cid, name).default
    torch.library.opcheck(operator, arguments)
    without = tuple(None if argument.type.kind() == "OptionalType" else given for argument, given in zip(
        operator._schema.arguments, arguments, strict=True
    ))  # fmt: skip
    torch.library.opcheck(operator, without)
