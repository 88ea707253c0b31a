"""What is taken for a model's logits, and what is refused."""

import copy
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cid
from tests.capture.models import REFUSED, C, Heads, distils, labels, make, read, rows


# That a layer is named makes "another made last" right: what it makes is yielded.
@pytest.mark.parametrize(
    ("use", "layer"),
    [
        (use, layer)
        for use in REFUSED
        for layer in (None, "head", "other")
        if not (layer and use == "another made last")
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_another_output_is_refused_before_anything_changes(use: str, layer: str | None, training: bool) -> None:
    model = Heads(REFUSED[use])
    distiller = make(model, student_layer=layer).train(training)
    before = copy.deepcopy(distiller.state_dict())
    for _ in range(2):  # also at the second try
        with pytest.raises(ValueError, match=r"^student: what it yields is not .*'(head|other)'.*student_layer=\("):
            distiller(rows(), labels())
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    with pytest.raises(ValueError, match=r"^teacher: what it yields is not .*'(head|other)'.*teacher_layer=\("):
        cid.teacher_outputs(model, rows(), num_classes=C, teacher_layer=layer)


def test_each_mode_is_checked() -> None:
    """As vision transformers with a distillation token, which average only when they evaluate."""
    distiller = make(Heads(lambda m, x: m.other(x) if m.training else (m.head(m.f) + m.other(x)) / 2))
    distiller(rows(), labels())
    with pytest.raises(ValueError, match=r"^student: what it yields"):
        distiller.eval().predict(rows())


Pair = namedtuple("Pair", ["aux", "logits"])
YIELDS: dict[str, Callable[[Any, Tensor], Any]] = {
    "tuple": lambda m, x: (m.head(m.f), m.f),
    "list": lambda m, x: [m.head(m.f), m.f, None],
    "mapping": lambda m, x: {"aux": m.other(x), "logits": m.head(m.f)},
    "view": lambda m, x: m.head(m.f).view(-1, C),
    "float": lambda m, x: m.head(m.f).float(),
}


@pytest.mark.parametrize("what", YIELDS)
def test_models_that_yield_more_than_a_tensor(what: str) -> None:
    x = rows()
    distiller = distils(Heads(YIELDS[what]), x, student_layer="head")
    assert type(distiller.student()(x)) is type(distiller.student_model(x))
    distils(Heads(YIELDS[what]), x, student_layer=("head", "other"))
    distils(nn.Sequential(Heads(YIELDS[what])), x, student_layer="0.head")


def test_a_named_tuple_keeps_its_names() -> None:
    x = rows()
    for layer in ("head", ("head",)):
        distiller = make(Heads(lambda m, x: Pair(m.other(x), m.head(m.f))), student_layer=layer).eval()
        z = distiller.predict(x)
        torch.testing.assert_close(distiller.student()(x).logits, z, rtol=1e-4, atol=1e-5)
        assert torch.equal(distiller.student()(x).aux, distiller.student_model(x).aux)


def test_a_named_layer_tells_features_from_logits() -> None:
    """As many features as classes: the first member of that shape is not what the layer makes."""
    model = Heads(lambda m, x: (m.other(x), m.head(m.f)))
    _, s = read(make(model, student_layer="head").eval(), x := rows())
    assert torch.equal(s, model(x)[1])


def test_a_model_without_logits() -> None:
    @dataclass
    class Result:
        scores: Tensor

    for use, got in (
        (lambda m, x: m.head(m.f)[..., None], r"a tensor of shape \(8, 10, 1\)"),
        (lambda m, x: (m.head(m.f)[0], m.f), r"a tuple with tensors of shapes \(10,\), \(8, 16\)"),
        (lambda m, x: Result(m.head(m.f)), "a Result"),
    ):
        with pytest.raises(ValueError, match=rf"^student: yields {got}, accepted: logits of shape \(B, 10\)"):
            make(Heads(use), student_layer="head")(rows(), labels())
