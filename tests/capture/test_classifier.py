"""Which layer classifies, and what it is given."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

import cid
from tests.capture.models import Net

B, C = 8, 5


def make(student: nn.Module | None = None, teacher: nn.Module | None = None, **options: object) -> cid.Distiller:
    defaults: dict[str, object] = {"num_classes": C, "beta": 3.0, "gamma": 0.5, "warmup_epochs": 0}
    return cid.Distiller(student or Net(12), teacher or Net(30), **(defaults | options))  # type: ignore[arg-type]


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 20), torch.arange(B) % C


def test_the_last_fitting_layer_is_found() -> None:
    student = nn.Sequential(nn.Linear(20, C), nn.ReLU(), nn.Linear(C, 9), nn.ReLU(), nn.Linear(9, C), nn.Linear(C, 3))
    assert make(student).student_layer == "4"
    assert make(student, student_layer="0").student_layer == "0"


def test_no_fitting_layer() -> None:
    with pytest.raises(
        ValueError, match=r"^student: no linear layer yields num_classes=5.*'0' \(20 -> 4\).*student_layer"
    ):
        make(nn.Sequential(nn.Linear(20, 4)))
    with pytest.raises(ValueError, match=r"^teacher: no linear layer.*no linear layer at all"):
        make(teacher=nn.Sequential(nn.Conv2d(1, C, 3)))


def test_bad_names() -> None:
    with pytest.raises(ValueError, match=r"^student_layer: got 'head', accepted: .*'fc' \(12 -> 5\)"):
        make(student_layer="head")
    with pytest.raises(ValueError, match=r"^student_layer: 'norm' is a BatchNorm1d, accepted: "):
        make(student_layer="norm")
    with pytest.raises(ValueError, match=r"^teacher_layer: 'body' yields 30 values, accepted: num_classes=5"):
        make(teacher_layer="body")
    with pytest.raises(TypeError, match=r"^student: got function, accepted: torch.nn.Module"):
        cid.Distiller(lambda x: x, Net(3), num_classes=C, beta=1.0, gamma=1.0)  # type: ignore[arg-type]


def test_a_layer_that_is_not_called() -> None:
    class Idle(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)[:, :C]

    with pytest.raises(RuntimeError, match=r"^student: its layer 'fc' was not called"):
        make(Idle(12))(*data())


def test_features_must_be_rows() -> None:
    with pytest.raises(
        ValueError, match=r"^student: the input of its layer 'fc' has shape \(8, 3, 12\), accepted: \(B, D\)"
    ):
        make(_Tokens(12))(*data())


class _Tokens(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.body(x))[:, None].expand(-1, 3, -1)).mean(1)


def test_a_layer_used_twice_counts_with_its_last_call() -> None:
    x, y = data()
    once, twice = Net(12), Net(12, twice=True)
    twice.load_state_dict(once.state_dict())
    teacher = Net(30)
    a, b = make(once, teacher), make(twice, teacher)
    b.criterion.load_state_dict(a.criterion.state_dict())
    assert torch.equal(a(x, y).loss, b(x, y).loss)


def test_a_layer_called_by_keyword() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.layer(input=x))

    distiller = cid.Distiller(Model(), nn.Linear(4, 3), num_classes=3, beta=1.0, gamma=1.0)
    x = torch.randn(5, 4)
    torch.testing.assert_close(distiller(x), distiller.student_model(x))
