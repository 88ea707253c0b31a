"""Models whose logits come about in some odd way, and what a distiller makes of them."""

import copy
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cid

B, C, D = 8, 10, 16
IMAGES = (B, 3, 8, 8)

M = TypeVar("M", bound=nn.Module)


def rows() -> Tensor:
    return torch.randn(B, 20)


def labels() -> Tensor:
    return torch.arange(B) % 4


def net(width: int = D) -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, C))


def make(student: nn.Module | None = None, teacher: nn.Module | None = None, **options: Any) -> cid.Distiller:
    defaults: dict[str, Any] = {"num_classes": C, "beta": 10.0, "gamma": 1.0, "warmup_epochs": 0}
    distiller = cid.Distiller(student or net(), teacher or net(64), **(defaults | options))
    distiller.criterion.bank.context.normal_()
    return distiller


def read(distiller: cid.Distiller, x: Any) -> tuple[Tensor, Tensor]:
    """f and s as the criterion gets them."""
    seen: list[Tensor] = []
    handle = distiller.criterion.register_forward_pre_hook(lambda _, args: seen.extend(args[:2]))
    distiller(x, labels())
    handle.remove()
    return seen[0], seen[1]


def logits_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits: Tensor = output["logits"] if isinstance(output, dict) else output[0]
    return logits


def distils(model: nn.Module, x: Tensor, **options: Any) -> cid.Distiller:
    """Step, ship, and compare with what is predicted; s is what the model yields."""
    model.eval()
    distiller = make(model, **options)
    distiller.eval()
    _, s = read(distiller, x)
    assert torch.equal(s, logits_of(model(x)))
    distiller.train()
    distiller(x, labels()).loss.backward()
    distiller.eval()
    expected = distiller.predict(x)
    kept = distiller.student(fold=False)
    assert isinstance(kept, cid.InterventionalStudent)
    for shipped in (distiller.student(), copy.deepcopy(distiller.student()), kept.fold()):
        torch.testing.assert_close(logits_of(shipped(x)), expected, rtol=1e-4, atol=1e-5)
        assert set(model.state_dict()) < set(shipped.state_dict())
    torch.testing.assert_close(kept(x), expected, rtol=1e-4, atol=1e-5)
    return distiller


class Heads(nn.Module):
    """A model with two classifying layers, and how its output comes of them."""

    def __init__(self, use: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Linear(20, D)
        self.norm = nn.BatchNorm1d(D)
        self.head = nn.Linear(D, C)
        self.other = nn.Linear(20, C)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        self.f = self.norm(self.body(x)).relu()
        self.head(self.f), self.other(x)  # also where it makes nothing of one
        return self.use(self, x)


def _in_place(m: Any, _: Tensor) -> Tensor:
    logits: Tensor = m.head(m.f)
    return logits.div_(2)


def _through_a_view(m: Any, _: Tensor) -> Tensor:
    logits: Tensor = m.head(m.f)
    logits[:, 0].mul_(2)
    return logits


REFUSED: dict[str, Callable[[Any, Tensor], Any]] = {
    "mean of two": lambda m, x: (m.head(m.f) + m.other(x)) / 2,
    "another made last": lambda m, x: (m.head(m.f), m.other(x)),
    "log-probabilities": lambda m, x: m.head(m.f).log_softmax(1),
    "temperature in place": _in_place,
    "through a view": _through_a_view,
    "a sum with nothing": lambda m, x: m.head(m.f) + 0 * m.other(x),
    "another order": lambda m, x: m.head(m.f).flip(1),
}


class Convolutional(nn.Module):
    """Classifies by a 1 x 1 convolution before or after the pooling."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.classifier, self.use = nn.Conv2d(3, D, 3), nn.Conv2d(D, C, 1), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.classifier, self.body(x).relu())


CONVOLUTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "pooled before": lambda c, x: c(F.adaptive_avg_pool2d(x, 1)).flatten(1),
    "pooled after": lambda c, x: F.adaptive_avg_pool2d(c(x), 1).flatten(1),
    "mean": lambda c, x: c(x).mean((2, 3)),
    "average of all": lambda c, x: F.avg_pool2d(c(x), 6).squeeze(-1).squeeze(-1),
    "flattened first": lambda c, x: c(x).flatten(2).mean(-1),
    "rectified": lambda c, x: F.relu(c(x), inplace=True).mean((2, 3)),
}


class Net(nn.Module):
    """A classifier of five classes, whose forward is more than its layers in a row."""

    def __init__(self, width: int, *, fails: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(20, width)
        self.norm = nn.BatchNorm1d(width)
        self.fc = nn.Linear(width, 5)
        self.fails = fails
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.body(x)).relu()
        if self.twice:
            self.fc(h * 7)
        out: Tensor = self.fc(h)
        if self.fails:
            raise RuntimeError("half-way")
        return out


def replica(module: M) -> M:
    """What torch.nn.parallel.replicate makes for each device."""
    made: M = module._replicate_for_data_parallel()
    made._parameters = dict(module._parameters)
    made._buffers = dict(module._buffers)
    made._modules = {name: child and replica(child) for name, child in module._modules.items()}
    return made


def differ(compute: Callable[[int], Tensor], expected: list[Tensor]) -> list[int]:
    """Where results that are computed over and over, each in a thread of its own, are not what is expected."""
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not torch.equal(compute(i), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(expected))]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: threads take turns within a forward
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    return wrong
