"""The criterion as loops in Python over samples and classes, to measure against: the form in which it was published.

Not that code: written anew after a description of it. Two lists of C lists hold the representations of each class, and
each label and each weight is read as a number of Python, for which a GPU is waited for. What is computed in whole
batches there too (the softened logits, the sample representation, the intervention) is taken from `cid.bench.eager`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import cid
from cid.bench import eager
from cid.functional import CIDOutput


def class_(f: Tensor, t: Tensor, y: Tensor, classes: int) -> Tensor:
    """`||G^t_k - G^s_k||_F^2 / n_k^2`, the mean over the classes with two samples: class by class."""
    students: list[list[Tensor]] = [[] for _ in range(classes)]
    teachers: list[list[Tensor]] = [[] for _ in range(classes)]
    for i in range(len(y)):
        label = int(y[i].item())
        students[label].append(f[i])
        teachers[label].append(t[i])
    total, pairs = f.new_zeros(()), 0
    for student, teacher in zip(students, teachers, strict=True):
        if len(student) > 1:
            s, q = F.normalize(torch.stack(student)), F.normalize(torch.stack(teacher))
            total = total + F.mse_loss(s @ s.T, q @ q.T)
            pairs += 1
    return total / max(pairs, 1)


@torch.no_grad()
def gather(f: Tensor, q: Tensor, y: Tensor, numerator: Tensor, denominator: Tensor) -> None:
    """`numerator[y] += w f` and `denominator[y] += w`, sample by sample."""
    belief = torch.softmax(q / eager.TEMPERATURE, 1)
    for i in range(len(y)):
        label = int(y[i].item())
        weight = belief[i, label].item()
        numerator[label] += weight * f[i]
        denominator[label] += weight


class PublishedLoops(cid.CIDLoss):
    """`cid.CIDLoss` after its warm-up, at the temperature of the benches, in loops."""

    def forward(
        self,
        student_features: Tensor,
        student_logits: Tensor,
        teacher_features: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
    ) -> CIDOutput:
        """See `cid.CIDLoss`; the published code has no weights."""
        assert weight is None
        f, s, t, q, y = student_features, student_logits, teacher_features, teacher_logits, target
        x = torch.cat([f, eager.marginal_context(s, self.bank.context)], 1)
        z = F.linear(x, self.head.weight, self.head.bias)
        gather(f, q, y, self.bank.numerator, self.bank.denominator)
        ce, kd = eager.cross_entropy(z, y), eager.kd(s, q)
        sample, class_term = eager.sample(self.adapter(f), t), class_(f, t, y, s.shape[1])
        loss = self.alpha * (ce + kd) + self.beta * sample + self.gamma * class_term
        return CIDOutput(loss, ce.detach(), kd.detach(), sample.detach(), class_term.detach(), z.detach())
