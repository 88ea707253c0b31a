"""Which layers a model classifies by: those that are named, several of them, and of odd kinds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cid
from tests.capture.models import REFUSED, B, C, D, Heads, distils, labels, make, net, read, rows


def test_the_layer_whose_output_it_is_is_named() -> None:
    with pytest.raises(ValueError, match=r"It is that of 'head': name this"):
        make(Heads(REFUSED["another made last"]))(rows(), labels())
    low_rank = net()
    low_rank[2] = Adapted(low_rank[2])
    with pytest.raises(ValueError, match=r"the output of its layer '2.up' .*'2.base', '2.up'.*It is that of '2'"):
        make(low_rank)(rows(), labels())
    distils(low_rank, rows(), student_layer="2")


class Adapted(nn.Module):
    """A linear layer with a low-rank update beside it, at first of zeros."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(D, 4, bias=False), nn.Linear(4, C, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


@pytest.mark.parametrize("use", ["mean of two", "log-probabilities", "temperature in place"])
@pytest.mark.parametrize("layers", [("head",), ("head", "other"), ["head", "other"]])
def test_several_layers(use: str, layers: Any) -> None:
    model, x = Heads(REFUSED[use]), rows()
    distiller = distils(model, x, student_layer=layers)
    assert distiller.student_layer == tuple(layers)
    f, _ = read(distiller, x)
    model(x)
    assert torch.equal(f, torch.cat([model.f, x][: len(layers)], 1))
    assert distiller.criterion.adapter.in_features == f.shape[1]
    features, logits = cid.teacher_outputs(model, x, num_classes=C, teacher_layer=layers)
    assert torch.equal(features, f)
    assert torch.equal(logits, model(x))


@pytest.mark.parametrize("pick", [lambda out: out[:, 0], lambda out: out.squeeze(1)], ids=["index", "squeeze"])
def test_a_single_token(pick: Callable[[Tensor], Tensor]) -> None:
    """As Perceiver's, which asks one query: by name alone it is refused, as its output is (B, 1, C)."""
    model, x = Heads(lambda m, _: pick(m.head(m.f[:, None]))), rows()
    nn.init.zeros_(model.head.weight)  # values that are all equal are not taken for an average
    nn.init.zeros_(model.head.bias)
    with pytest.raises(ValueError, match=r"^student: what it yields is not .*student_layer=\("):
        make(model, student_layer="head")(x, labels())
    nn.init.normal_(model.head.weight)
    f, _ = read(distils(model, x, student_layer=("head",)), x)
    model(x)
    assert torch.equal(f, model.f)


def test_layers_that_read_the_same_are_there_twice() -> None:
    model, x = Heads(lambda m, x: m.head(m.f) + m.body2(m.f)), rows()
    model.body2 = nn.Linear(D, C)
    f, _ = read(make(model, student_layer=("head", "body2")), x)
    assert torch.equal(f[:, :D], f[:, D:])


class OwnLinear(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight) + self.bias


class Cosine(nn.Module):
    """A classifier without declared sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C, D))

    def forward(self, x: Tensor) -> Tensor:
        return 5 * F.normalize(x) @ F.normalize(self.weight).T


def test_layers_of_other_kinds() -> None:
    body = nn.Sequential(nn.Linear(20, D), nn.ReLU())
    assert distils(nn.Sequential(*body, OwnLinear(D, C)), rows()).student_layer == "2"
    distils(nn.Sequential(*body, Cosine()), rows(), student_layer="2")
    distils(nn.Sequential(*body, nn.Sequential(nn.Dropout(), nn.Linear(D, C))), rows(), student_layer="2")
    parametrized = nn.Sequential(*body, nn.utils.parametrizations.weight_norm(nn.Linear(D, C)))
    distiller = make(parametrized)
    distiller(rows(), labels()).loss.backward()
    distiller.eval()
    torch.testing.assert_close(distiller.student()(x := rows()), distiller.predict(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # PyTorch says that it will move
def test_a_quantised_teacher() -> None:
    teacher = net(64)
    quantised = torch.ao.quantization.quantize_dynamic(teacher, {nn.Linear})
    for layer in (None, "2"):
        distiller = make(teacher=quantised, teacher_layer=layer)
        assert distiller.teacher_layer == "2"
        distiller(rows(), labels()).loss.backward()
    features, logits = cid.teacher_outputs(quantised, x := rows(), num_classes=C)
    assert features.shape == (B, 64)
    assert torch.equal(logits, quantised(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_old_weight_norm() -> None:
    """It leaves the weight as a tensor that was computed, which no copy can be made of."""
    student = net()
    nn.utils.weight_norm(student[2])
    distiller = make(student)
    for _ in range(2):
        distiller(rows(), labels()).loss.backward()
    distiller.eval()
    for fold in (True, False):
        shipped = distiller.student(fold=fold)
        torch.testing.assert_close(shipped(x := rows()), distiller.predict(x), rtol=1e-4, atol=1e-5)
    before = distiller.student(head=False)(x)
    with torch.no_grad():
        student[2].get_parameter("weight_g").mul_(2)
    assert not torch.equal(distiller.student(head=False)(x), before)


def test_lazy_layers_are_refused() -> None:
    for role, options in (("student", {"student": _lazy()}), ("teacher", {"teacher": _lazy()})):
        with pytest.raises(ValueError, match=rf"^{role}: '0.weight' has no size yet.*run one batch"):
            make(**options)
    model = _lazy()
    model(rows())
    distils(model, rows())


def _lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(D), nn.ReLU(), nn.LazyLinear(C))


def test_a_width_that_was_not_declared() -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :-1])

    model = nn.Sequential(nn.Linear(20, D + 1), Odd(D, C))
    with pytest.raises(
        ValueError, match=r"^student: the input of its layer '1' has shape \(8, 17\), accepted: \(B, 16"
    ):
        make(model)(rows(), labels())


def test_layers_by_bad_names() -> None:
    with pytest.raises(TypeError, match=r"^student_layer: got 3, accepted: a name, a sequence of names, or None"):
        make(student_layer=3)
    with pytest.raises(TypeError, match=r"^student_layer: got \(\), accepted"):
        make(student_layer=())
    with pytest.raises(
        ValueError, match=r"^student_layer: got 'no', accepted: a module of the student: '0' \(20 -> 16\)"
    ):
        make(student_layer=("2", "no"))
