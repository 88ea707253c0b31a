"""timm's models, in a loop that counts steps."""

from itertools import cycle, islice

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

import digits


def network(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=10, in_chans=1)


torch.manual_seed(0)
train = DataLoader(digits.train, 64, shuffle=True)
model = network("test_resnet")
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
for x, y in islice(cycle(train), 80):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
with torch.no_grad():
    x, y = digits.test.tensors
    print(f"accuracy {(model(x).argmax(1) == y).float().mean():.3f}")
