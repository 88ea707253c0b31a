"""What a distiller takes for a model's logits and representation, and what it refuses."""

import copy
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cid

B, C, D = 8, 10, 16
IMAGES = (B, 3, 8, 8)


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


def test_each_mode_is_checked() -> None:
    """As vision transformers with a distillation token, which average only when they evaluate."""
    distiller = make(Heads(lambda m, x: m.other(x) if m.training else (m.head(m.f) + m.other(x)) / 2))
    distiller(rows(), labels())
    with pytest.raises(ValueError, match=r"^student: what it yields"):
        distiller.eval().predict(rows())


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


@pytest.mark.parametrize("use", CONVOLUTIONS)
def test_convolutions(use: str) -> None:
    x = torch.randn(IMAGES)
    model = Convolutional(CONVOLUTIONS[use])
    distiller = distils(model, x, teacher=Convolutional(CONVOLUTIONS[use]))
    f, s = read(distiller, x)
    torch.testing.assert_close(f, model.body(x).relu().mean((2, 3)))
    if use != "rectified":
        torch.testing.assert_close(s, F.linear(f, model.classifier.weight[..., 0, 0], model.classifier.bias))


@pytest.mark.parametrize(
    "use",
    [
        lambda c, x: F.avg_pool2d(c(x), 5).flatten(1),  # of 6 x 6: not all positions
        lambda c, x: c(x).amax((2, 3)),
        lambda c, x: c(x).mean((2, 3)).log_softmax(1),
        lambda c, x: F.silu(c(x)).mean((2, 3)),
    ],
)
def test_other_pooling_is_refused(use: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"^student: what it yields is not the output of its layer 'classifier'"):
        make(Convolutional(use), Convolutional(CONVOLUTIONS["mean"]))(torch.randn(IMAGES), labels())
    distils(Convolutional(use), torch.randn(IMAGES), teacher=Convolutional(use), student_layer=("classifier",),
            teacher_layer=("classifier",))  # fmt: skip


@pytest.mark.parametrize("export", [True, False])
def test_what_is_shipped_of_a_convolution_is_traced(export: bool) -> None:
    x = torch.randn(IMAGES)
    distiller = make(Convolutional(CONVOLUTIONS["rectified"]), Convolutional(CONVOLUTIONS["mean"])).eval()
    expected = distiller.predict(x)
    student = distiller.student().requires_grad_(False)
    if export:
        program = torch.export.export(student, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        traced: Any = program.module()
    else:
        traced = torch.compile(student, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student(x), expected, rtol=1e-4, atol=1e-5)


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


def test_the_check_sees_into_compiled_models() -> None:
    torch._dynamo.reset()
    student = net()
    student.compile(backend="eager", fullgraph=True)
    distils(student, rows())
    refused = Heads(REFUSED["mean of two"])
    refused.compile(backend="eager")
    with pytest.raises(ValueError, match=r"^student: what it yields"):
        make(refused)(rows(), labels())
    torch._dynamo.reset()


@pytest.mark.parametrize("use", ["mean of two", "another made last", "log-probabilities", "temperature in place"])
def test_refused_in_a_trace(use: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(make(Heads(REFUSED[use])), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="what it yields is not the output"):
        compiled(rows(), labels())
    torch._dynamo.reset()


@pytest.mark.parametrize("use", CONVOLUTIONS)
def test_convolutions_in_a_trace(use: str) -> None:
    torch._dynamo.reset()
    distiller = make(Convolutional(CONVOLUTIONS[use]), Convolutional(CONVOLUTIONS["mean"]))
    expected = copy.deepcopy(distiller)(x := torch.randn(IMAGES), labels()).loss
    if use == "average of all":  # that the window is as large as the image is a number, which no trace has
        with pytest.raises(Exception, match="what it yields is not the output"):
            torch.compile(copy.deepcopy(distiller), fullgraph=True, backend="eager")(x, labels())
        distiller.eval()(x, labels())
        distiller.train()(x, labels())
        distiller.criterion.bank.numerator.zero_()
        distiller.criterion.bank.denominator.zero_()
    compiled = torch.compile(distiller, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, labels()).loss, expected)
    torch._dynamo.reset()
