"""The terms as one would write them in vectorised PyTorch: what the kernels are measured against."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 4.0
BETA = 65.0
"""Weight of the sample representation in the whole criterion."""


def kd(s: Tensor, q: Tensor) -> Tensor:
    """`T^2 KL(softmax(q/T) || softmax(s/T))`, the mean over the rows."""
    log_p, log_q = F.log_softmax(s / TEMPERATURE, 1), F.log_softmax(q / TEMPERATURE, 1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * TEMPERATURE**2


def kd_reverse(s: Tensor, q: Tensor) -> Tensor:
    """`T^2 KL(softmax(s/T) || softmax(q/T))`, the mean over the rows."""
    log_p, log_q = F.log_softmax(s / TEMPERATURE, 1), F.log_softmax(q / TEMPERATURE, 1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * TEMPERATURE**2


def kd_js(s: Tensor, q: Tensor, beta: float = 0.5) -> Tensor:
    """`T^2 JS_beta` of teacher and student, the mean over the rows: Agarwal et al. 2024 (GKD).

    `JS_beta(P || Q) = beta KL(P || M) + (1 - beta) KL(Q || M)` with P the teacher's softened belief, Q the student's
    and `M = beta P + (1 - beta) Q`.
    """
    student, teacher = F.log_softmax(s / TEMPERATURE, 1), F.log_softmax(q / TEMPERATURE, 1)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    from_teacher = F.kl_div(mixture, teacher, reduction="batchmean", log_target=True)
    from_student = F.kl_div(mixture, student, reduction="batchmean", log_target=True)
    return (beta * from_teacher + (1 - beta) * from_student) * TEMPERATURE**2


def sample(f: Tensor, t: Tensor) -> Tensor:
    """`||f - t||^2 / ||t||^2`, the mean over the rows."""
    return ((f - t).square().sum(1) / t.square().sum(1)).mean()


def class_(f: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """`||G^t_k - G^s_k||_F^2 / n_k^2`, the mean over the classes with two samples: a masked B x B product."""
    same = y[:, None] == y
    count = same.sum(1)
    paired = count > 1
    f, t = F.normalize(f), F.normalize(t)
    difference = (t @ t.T - f @ f.T) * same
    by_row = difference.square().sum(1) / count.square()
    classes = (paired / count).sum()
    return torch.where(paired, by_row, 0).sum() / classes.clamp(min=1)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """`-log softmax(z)[y]`, the mean over the rows."""
    return F.cross_entropy(z, y)


def context_weights(q: Tensor, y: Tensor) -> Tensor:
    """`softmax(q/T)[y]` of each row."""
    return torch.softmax(q / TEMPERATURE, 1).gather(1, y[:, None]).squeeze(1)


def accumulate_context(f: Tensor, w: Tensor, y: Tensor, numerator: Tensor, denominator: Tensor) -> None:
    """`numerator[y] += w f` and `denominator[y] += w`."""
    numerator.index_add_(0, y, (w[:, None] * f).to(numerator.dtype))
    denominator.index_add_(0, y, w.to(denominator.dtype))


def marginal_context(s: Tensor, m: Tensor) -> Tensor:
    """`softmax(s/T) M`, not differentiated."""
    return torch.softmax(s.detach() / TEMPERATURE, 1) @ m


def criterion(
    f: Tensor,
    s: Tensor,
    t: Tensor,
    q: Tensor,
    y: Tensor,
    adapter_weight: Tensor,
    adapter_bias: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    context: Tensor,
    numerator: Tensor,
    denominator: Tensor,
) -> Tensor:
    """A step of the whole criterion, with the gathering of the contexts."""
    z = F.linear(torch.cat([f, marginal_context(s, context)], 1), head_weight, head_bias)
    with torch.no_grad():
        accumulate_context(f.detach(), context_weights(q, y), y, numerator, denominator)
    adapted = F.linear(f, adapter_weight, adapter_bias)
    return cross_entropy(z, y) + kd(s, q) + BETA * sample(adapted, t) + class_(f, t, y)
