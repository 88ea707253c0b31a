"""How hard a sample is for a biased network, compared with how hard it is for the one that learns from its failures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

UNSEEN = -1.0


class RelativeDifficulty(nn.Module):
    """The weights of Nam et al. 2020: `W = L_B / (L_B + L_D)`, from 0 to 1.

    `L` is a network's cross-entropy as an average over the times that it saw the sample, `L <- m L + (1 - m) ce` and at
    first `ce` itself, divided by the largest average in the sample's class: so a hard class counts as an easy one does.

    Args:
        labels: of the training samples, (N,) int64.
        classes: how many there are.
        memory: m, how much of the old average stays.

    Attributes:
        averages: of the biased and the debiased network, (2, N), before the division; negative for a sample not seen.
    """

    averages: Tensor
    labels: Tensor

    def __init__(self, labels: Tensor, classes: int, memory: float) -> None:
        super().__init__()
        self.classes = classes
        self.memory = memory
        self.register_buffer("averages", torch.full((2, len(labels)), UNSEEN))
        # The data set's to say: no checkpoint needs it.
        self.register_buffer("labels", labels.clone(), persistent=False)

    @torch.no_grad()
    def forward(self, indices: Tensor, losses: Tensor) -> Tensor:
        """Takes in the losses of a batch, and weighs its samples.

        Args:
            indices: which of the training samples they are, (B,) int64, each once.
            losses: the cross-entropies of the biased and the debiased network, (2, B).

        Returns:
            W, (B,), in the type of the averages.
        """
        losses, old = losses.to(self.averages.dtype), self.averages[:, indices]
        mixed = self.memory * old + (1 - self.memory) * losses
        self.averages[:, indices] = torch.where(old < 0, losses, mixed)
        largest = self.averages.new_zeros(2, self.classes)
        largest.scatter_reduce_(1, self.labels.expand_as(self.averages), self.averages, "amax")
        biased, debiased = _share(self.averages[:, indices], largest[:, self.labels[indices]])
        return _share(biased, biased + debiased)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, and 0 of nothing."""
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)
