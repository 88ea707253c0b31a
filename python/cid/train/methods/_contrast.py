"""Representations against a memory of all samples': a sample's own is to be told from those of other classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cid.train.methods._losses import full

MOMENTUM = 0.5  # how much of a memory's old entry stays


class Contrast(nn.Module):
    """The loss of Tian et al. 2020, and what it remembers.

    Both representations are embedded, `s` and `t` (B, D), of length 1. A student's embedding is held against the
    teacher's of the same sample as it is remembered, and of K samples drawn from other classes; a teacher's against
    the student's: see `noise_contrast`. Then the batch's entries move towards the embeddings.

    Args:
        student_dim: the size of the student's representation.
        teacher_dim: that of the teacher's.
        labels: of the training samples, (N,) int64.
        dim: D.
        negatives: K.
        temperature: of the products of embeddings.

    Attributes:
        memory: what is remembered of the student and of the teacher, (2, N, D).
        scale: the mean of the first batch's scores, of either side; 0 before it.
    """

    memory: Tensor
    scale: Tensor
    labels: Tensor
    order: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(
        self, student_dim: int, teacher_dim: int, labels: Tensor, *, dim: int, negatives: int, temperature: float
    ) -> None:
        super().__init__()
        self.negatives, self.temperature = negatives, temperature
        self.embeddings = nn.ModuleList([nn.Linear(student_dim, dim), nn.Linear(teacher_dim, dim)])
        self.register_buffer("memory", normalize(torch.randn(2, len(labels), dim), dim=2))
        self.register_buffer("scale", torch.zeros(2))
        # The data set's to say: no checkpoint needs these. Samples by class, and where each class begins.
        counts = labels.bincount()
        self.register_buffer("labels", labels.clone(), persistent=False)
        self.register_buffer("order", labels.argsort(), persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("counts", counts, persistent=False)

    def forward(self, indices: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            indices: which of the training samples they are, (B,) int64, each once.
            ours: the student's representations, (B, Ds).
            theirs: the teacher's, (B, Dt).
        """
        embedded = [_embed(layer, x) for layer, x in zip(self.embeddings, (ours, theirs), strict=True)]
        chosen = torch.cat((indices[:, None], self.draw(self.labels[indices])), 1)
        # A copy, as what backward needs of it is written below; all products, which cost less than copies of K entries
        # for each sample.
        students, teachers = full(self.memory.clone())
        products = torch.stack((embedded[0] @ teachers.T, embedded[1] @ students.T))
        scores = (products.gather(2, chosen.expand(2, -1, -1)) / self.temperature).exp()
        with torch.no_grad():
            self.scale.copy_(torch.where(self.scale > 0, self.scale, scores.mean((1, 2))))
            mixed = MOMENTUM * self.memory[:, indices] + (1 - MOMENTUM) * torch.stack(embedded)
            self.memory[:, indices] = normalize(mixed, dim=2).to(self.memory.dtype)
        return torch.stack([noise_contrast(each) for each in scores / full(self.scale)[:, None, None]]).sum()

    def draw(self, own: Tensor) -> Tensor:
        """K samples of other classes than these, (B, K): each as likely, and some perhaps twice."""
        start, count = self.starts[own][:, None], self.counts[own][:, None]
        others = (len(self.labels) - count).clamp_min(1)
        place = torch.randint(2**62, (len(own), self.negatives), device=own.device) % others
        return self.order[torch.where(place >= start, place + count, place) % len(self.order)]


def _embed(layer: nn.Module, x: Tensor) -> Tensor:
    return normalize(full(layer(x.to(next(layer.parameters()).dtype))))


def noise_contrast(scores: Tensor) -> Tensor:
    """`-mean_i (log h_i0 + sum_k log (1 - h_ik))`, with h = x / (x + K) of scores x.

    Args:
        scores: (B, 1 + K), of mean near 1: those of the sample itself first.
    """
    negatives = scores.shape[1] - 1
    own, others = scores[:, 0], scores[:, 1:]
    return -((own / (own + negatives)).log() + (negatives / (others + negatives)).log().sum(1)).mean()
