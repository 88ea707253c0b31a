"""timm's models, in a loop that counts steps."""

from itertools import cycle, islice

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

import cid
import digits


def network(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=10, in_chans=1)


torch.manual_seed(0)
train = DataLoader(digits.train, 64, shuffle=True)
model = network("test_resnet")
teacher = digits.trained(network("test_efficientnet"), epochs=3)
model = cid.Distiller(model, teacher, num_classes=10, beta=10.0, gamma=1.0, warmup_epochs=1, steps_per_turn=20)
optimizer = torch.optim.SGD(model.param_groups(weight_decay=5e-4), lr=0.05, momentum=0.9)
for x, y in islice(cycle(train), 80):
    loss = model(x, y).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
with torch.no_grad():
    x, y = digits.test.tensors
    print(f"accuracy {(model(x).argmax(1) == y).float().mean():.3f}")
