"""A plain PyTorch loop."""

import torch
from torch import nn
from torch.utils.data import DataLoader

import digits


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


torch.manual_seed(0)
train, test = DataLoader(digits.train, 64, shuffle=True), DataLoader(digits.test, 64)
model = network(width=32)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
for epoch in range(5):
    model.train()
    for x, y in train:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
    print(f"epoch {epoch}: accuracy {right / len(digits.test):.3f}")
