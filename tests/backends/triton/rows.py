"""What the tests of the kernels that go row by row share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cid.backends import reference
from cid.backends.options import KDOptions
from cid.backends.triton import kernels
from tests import bounds, draws
from tests.bounds import Bound, close
from tests.cases import IGNORE
from tests.gpu import DEVICE

DIVERGENCES = [("forward", 0.5), ("reverse", 0.5), ("js", 0.5), ("js", 0.1)]
divergences = pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
types = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
CASES = [  # few, as the interpreter is slow
    ((1, 1), "f32"),
    ((5, 2), "bf16"),
    ((7, 37), "f32"),
    ((33, 10), "f16"),
    ((3, 333), "bf16"),
    ((2, 129), "f32"),
]
cases = pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, TYPES[name]) for shape, name in CASES],
    ids=[f"{name}-{shape}" for shape, name in CASES],
)
by_pieces = pytest.mark.usefixtures("pieces")
NAN, INF = float("nan"), float("inf")


def truth(student: Tensor, formula: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The value of the reference in float64, and the derivative of its sum."""
    student = student.double().requires_grad_()
    value = formula(student)
    (grad,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), grad


def run(kernel: Callable[..., None], student: Tensor, *arguments: object, each: bool = False) -> tuple[Tensor, Tensor]:
    """What a kernel writes over what was there before."""
    student = student.to(DEVICE)
    on_device = [x.to(DEVICE) if isinstance(x, Tensor) else x for x in arguments]
    loss = torch.full((len(student),) if each else (), 7.0, device=DEVICE)
    grad = torch.full_like(student, 7.0)
    kernel(student, *on_device, loss, grad)
    return loss, grad


def both_close(ours: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], bound: Bound) -> None:
    """The value and the derivative."""
    close(ours[0], truth[0], bound.value)
    close(ours[1], truth[1], bound.grad)


def kd(
    s: Tensor,
    q: Tensor,
    y: Tensor | None = None,
    *,
    temperature: float = 4.0,
    divergence: str = "forward",
    beta: float = 0.5,
    reduction: str = "none",
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Bound]:
    """Ours, the truth, and how far they may be apart."""
    mean = reduction == "mean"
    ours = run(kernels.kd, s, q, y, None, temperature, divergence, beta, IGNORE, mean, each=reduction == "none")
    options = KDOptions(temperature, divergence, beta, IGNORE, reduction)
    return ours, truth(s, lambda s: reference.kd_loss(s, q.double(), y, options)), bounds.kd(s, q, y, options)


def sample_truth(s: Tensor, t: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    return truth(s, lambda s: reference.sample_loss(s, t.double(), reduction))


def ce_truth(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return truth(z, lambda z: reference.cross_entropy(z, y, IGNORE))


def shares(rows: int, classes: int) -> Tensor:
    """About every other class has one, and about one row in six none; that of a row may be other than 1."""
    y = torch.where(draws.uniform(rows, classes) < 0.5, 0.0, draws.uniform(rows, classes))
    y[:, 0] += 0.1
    return torch.where(draws.uniform(rows, 1) < 1 / 6, 0.0, y * (0.5 + draws.uniform(rows, 1)) / y.sum(1, keepdim=True))
