"""The terms as one would write them in vectorised PyTorch: what the kernels are measured against."""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 4.0


def kd(s: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(s / TEMPERATURE, 1), F.log_softmax(q / TEMPERATURE, 1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * TEMPERATURE**2


def sample(f: Tensor, t: Tensor) -> Tensor:
    return ((f - t).square().sum(1) / t.square().sum(1)).mean()


def class_(f: Tensor, t: Tensor, y: Tensor) -> Tensor:
    same = y[:, None] == y
    count = same.sum(1)
    paired = count > 1
    f, t = F.normalize(f), F.normalize(t)
    difference = (t @ t.T - f @ f.T) * same
    by_row = difference.square().sum(1) / count.square()
    classes = (paired / count).sum()
    return torch.where(paired, by_row, 0).sum() / classes.clamp(min=1)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y)


def weights(q: Tensor, y: Tensor) -> Tensor:
    return torch.softmax(q / TEMPERATURE, 1).gather(1, y[:, None]).squeeze(1)


def accumulate(f: Tensor, w: Tensor, y: Tensor, numerator: Tensor, denominator: Tensor) -> None:
    numerator.index_add_(0, y, w[:, None] * f)
    denominator.index_add_(0, y, w)


def marginal(s: Tensor, m: Tensor) -> Tensor:
    return torch.softmax(s.detach() / TEMPERATURE, 1) @ m


def whole(
    f: Tensor,
    s: Tensor,
    t: Tensor,
    q: Tensor,
    y: Tensor,
    adapter: tuple[Tensor, Tensor],
    head: tuple[Tensor, Tensor],
    m: Tensor,
    bank: tuple[Tensor, Tensor],
) -> Tensor:
    """A step of the whole criterion, with the gathering of the contexts."""
    z = F.linear(torch.cat([f, marginal(s, m)], 1), *head)
    with torch.no_grad():
        accumulate(f.detach(), weights(q, y), y, *bank)
    return cross_entropy(z, y) + kd(s, q) + 65.0 * sample(F.linear(f, *adapter), t) + class_(f, t, y)
