"""What the examples share: scikit-learn's digits, and a stand-in for a teacher that you have trained already."""

from typing import TypeVar

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

Model = TypeVar("Model", bound=nn.Module)


def _split() -> tuple[TensorDataset, TensorDataset]:
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    return TensorDataset(x[:1437], y[:1437]), TensorDataset(x[1437:], y[1437:])


train, test = _split()


def trained(model: Model, epochs: int = 8) -> Model:
    """`model`, trained on the labels, as a checkpoint of yours would be."""
    x, y = train.tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            output = model(x[batch])
            logits = getattr(output, "logits", output)  # Hugging Face's models yield more
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, y[batch]).backward()
            optimizer.step()
    return model
