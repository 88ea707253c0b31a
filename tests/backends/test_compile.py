"""torch.compile: every function and module in one graph, with the kernels in it, and the same results as without."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cid
import cid.functional as F
from tests import bounds, draws
from tests.cases import IGNORE, Term, terms

CLASSES, STUDENT, TEACHER = 5, 6, 7
Inputs = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(rows: int, dtype: torch.dtype = torch.float32) -> Inputs:
    def matrix(size: int, *, trained: bool) -> Tensor:
        return draws.normal(rows, size, dtype=dtype).requires_grad_(trained)

    return {
        "f": matrix(STUDENT, trained=True),
        "s": matrix(CLASSES, trained=True),
        "a": matrix(TEACHER, trained=True),
        "t": matrix(TEACHER, trained=False),
        "q": matrix(CLASSES, trained=False),
        "y": torch.where(draws.uniform(rows) < 0.2, IGNORE, torch.arange(rows) % CLASSES),
        "w": torch.arange(rows) % 3 / 2,
    }


def _context(like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, CLASSES * STUDENT, dtype=like.dtype).reshape(CLASSES, STUDENT)


def _head(like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, CLASSES * 2 * STUDENT, dtype=like.dtype).reshape(CLASSES, 2 * STUDENT)


def _shares(y: Tensor) -> Tensor:
    """Most of a label's class, and some of the one before."""
    classes = torch.arange(CLASSES)
    own, before = ((y[:, None] == of % CLASSES) for of in (classes, classes + 1))
    return 0.75 * own + 0.25 * before


def _gathered(x: Inputs) -> Tensor:
    numerator, denominator = torch.zeros(CLASSES, STUDENT), torch.zeros(CLASSES)
    weights = F.context_weights(x["q"], x["y"])
    F.accumulate_context(x["f"], weights, x["y"], numerator, denominator)
    return numerator.sum() + denominator.square().sum() + 0 * x["f"].sum()


FUNCTIONS: dict[str, Callable[[Inputs], Tensor]] = {
    "kd": lambda x: F.kd_loss(x["s"], x["q"]),
    "kd of each": lambda x: F.kd_loss(x["s"], x["q"], reduction="none").square().sum(),
    "kd of tokens": lambda x: F.kd_loss(x["s"][None], x["q"][None], target=x["y"][None], divergence="js", beta=0.3),
    "kd of weights": lambda x: F.kd_loss(x["s"], x["q"], target=x["y"], weight=x["w"], divergence="reverse"),
    "sample of weights": lambda x: F.sample_loss(x["a"], x["t"], weight=x["w"]),
    "sample": lambda x: 3 * F.sample_loss(x["a"], x["t"]),
    "class": lambda x: F.class_loss(x["f"], x["t"], x["y"]),
    "kd beside a half": lambda x: F.kd_loss(x["s"], x["q"].bfloat16()),
    "kd of a half": lambda x: F.kd_loss(x["s"].half(), x["q"]),
    "class of shares": lambda x: F.class_loss(x["f"], x["t"], _shares(x["y"])),
    "contexts": _gathered,
    "contexts of shares": lambda x: _gathered(x | {"y": _shares(x["y"])}),
    "marginal": lambda x: F.marginal_context(x["s"], _context(x["s"]), differentiable=True).square().sum(),
    "interventional": lambda x: (
        F.interventional_logits(x["f"], x["s"], _context(x["s"]), _head(x["s"]), x["s"].new_zeros(CLASSES))
        .square()
        .sum()
    ),
}


def criterion(**options: Any) -> cid.CIDLoss:
    draws.seed(0)
    loss = cid.CIDLoss(STUDENT, TEACHER, CLASSES, beta=10.0, gamma=1.0, **options)
    loss.bank.context.copy_(draws.normal(CLASSES, STUDENT))
    return loss


def _grads(inputs: Inputs, loss: Tensor) -> dict[str, Tensor]:
    trained = {name: x for name, x in inputs.items() if x.requires_grad}
    grads = torch.autograd.grad(loss, [*trained.values()], allow_unused=True)
    return {name: grad for name, grad in zip(trained, grads, strict=True) if grad is not None}


def _same(ours: Any, truth: Any, name: str = "result") -> None:
    """The same but for rounding, of one tensor or of some.

    A compiler may change the order of a sum, and what is rounded between two operations: a step is some ten of them
    one after another, with sums of up to twenty terms, and rounds each to the largest of its tensor.
    """
    if isinstance(truth, dict):
        for key, value in truth.items():
            _same(ours[key], value, key)
    elif isinstance(truth, tuple):
        for one, other in zip(ours, truth, strict=True):
            _same(one, other, name)
    elif truth is None or not truth.is_floating_point():
        assert ours is truth or torch.equal(ours, truth), name
    else:
        eps = torch.finfo(truth.dtype).eps
        bounds.close(ours, truth, 16 * eps * float(truth.detach().abs().max()), name)


def _agree(compiled: Callable[[Inputs], Tensor], eager: Callable[[Inputs], Tensor], inputs: Inputs) -> None:
    ours, truth = compiled(inputs), eager(inputs)
    _same(ours, truth)
    _same(_grads(inputs, ours), _grads(inputs, truth))


@terms
def test_terms(term: Term) -> None:
    inputs = [x.requires_grad_(i == 0) for i, x in enumerate(term.draw(8, CLASSES, torch.float32))]
    compiled = torch.compile(term.call, fullgraph=True, backend="aot_eager")
    ours, truth = compiled(*inputs, backend="native").sum(), term.call(*inputs, backend="native").sum()
    _same(ours, truth)
    _same(torch.autograd.grad(ours, inputs[0]), torch.autograd.grad(truth, inputs[0]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    draws.seed(0)
    function = FUNCTIONS[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for rows in (8, 9, 13):
        _agree(compiled, function, batch(rows))


@pytest.mark.parametrize("warmup", [0, 1, 2], ids=["trained", "gathering", "warm-up"])
@pytest.mark.parametrize("target", ["labels", "smoothed", "shares", "weighted"])
def test_criterion(warmup: int, target: str) -> None:
    """The bank's sums, which the step changes, included."""
    smoothing = 0.1 if target == "smoothed" else 0.0
    eager, traced = (criterion(warmup_epochs=warmup, label_smoothing=smoothing) for _ in range(2))
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for rows in (8, 9, 13):
        x = batch(rows)
        x["y"] = _shares(x["y"]) if target == "shares" else x["y"]
        weight = x["w"] if target == "weighted" else None
        outputs = [module(x["f"], x["s"], x["t"], x["q"], x["y"], weight) for module in (compiled, eager)]
        for name, ours, truth in zip(cid.CIDOutput._fields, *outputs, strict=True):
            _same(ours, truth, name)
        for output in outputs:
            output.loss.backward()
        for (name, ours), truth in zip(traced.named_parameters(), eager.parameters(), strict=True):
            _same(ours.grad, truth.grad, name)
        _same(dict(traced.bank.named_buffers()), dict(eager.bank.named_buffers()))
    assert traced.bank.numerator.any() == (warmup < 2)


def test_the_compiled_graph_calls_the_kernels() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(criterion(warmup_epochs=0), fullgraph=True, backend=keep)
    x = batch(8)
    with torch.no_grad():
        compiled(x["f"], x["s"], x["t"], x["q"], x["y"])
    (graph,) = graphs
    called = {str(node.target) for node in graph.graph.nodes}
    assert {"cid.cid_before.default", "cid.cid_after.default"} <= called


def test_another_batch_size_compiles_nothing_anew() -> None:
    compiled = torch.compile(FUNCTIONS["kd"], fullgraph=True, backend="aot_eager")
    for rows in (8, 9):  # the second makes the size a variable
        compiled(batch(rows))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (2, 10, 64, 1000):
            compiled(batch(rows))


def test_a_size_marked_as_dynamic_stays_so() -> None:
    compiled = torch.compile(criterion(warmup_epochs=0), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (8, 9, 64):
            x = batch(rows)
            for tensor in x.values():
                torch._dynamo.mark_dynamic(tensor, 0)
            compiled(x["f"], x["s"], x["t"], x["q"], x["y"]).loss.backward()


def _distiller(student: nn.Module | None = None, **options: Any) -> cid.Distiller:
    draws.seed(0)
    student = student or nn.Sequential(nn.Linear(4, STUDENT), nn.ReLU(), nn.Linear(STUDENT, CLASSES))
    teacher = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, CLASSES))
    return cid.Distiller(student, teacher, num_classes=CLASSES, beta=10.0, gamma=1.0, **options)


def _steps_agree(compiled: Callable[..., Any], traced: cid.Distiller, eager: cid.Distiller) -> None:
    for rows in (8, 9, 13):
        x, y = draws.normal(rows, 4), torch.arange(rows) % CLASSES
        outputs = [module(x, y) for module in (compiled, eager)]
        _same(*outputs)
        for output in outputs:
            output.loss.backward()
        _same(compiled(x), eager(x))
    for (name, ours), truth in zip(traced.named_parameters(), eager.parameters(), strict=True):
        _same(ours.grad, truth.grad, name)
    _same(dict(traced.named_buffers()), dict(eager.named_buffers()))


@pytest.mark.parametrize("warmup", [0, 2], ids=["trained", "warm-up"])
def test_a_distiller(warmup: int) -> None:
    """Both models, the losses, the gathering of contexts and the prediction, in one graph."""
    traced, eager = _distiller(warmup_epochs=warmup), _distiller(warmup_epochs=warmup)
    _steps_agree(torch.compile(traced, fullgraph=True, backend="aot_eager"), traced, eager)


def test_epochs_compile_nothing_anew() -> None:
    """But for the phases: warming up, gathering, trained."""
    traced = _distiller(warmup_epochs=3)
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    x, y = draws.normal(8, 4), torch.arange(8) % CLASSES
    for epoch in range(10):
        with torch._dynamo.config.patch(error_on_recompile=epoch not in (0, 2, 3)):
            compiled(x, y).loss.backward()
        traced.epoch_end()


class _Uses(nn.Module):
    """A student whose forward does more with the weights of its layer."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Linear(4, STUDENT)
        self.layer = nn.Linear(STUDENT, CLASSES)
        self.other = nn.Linear(STUDENT, CLASSES)
        self.other.weight = self.layer.weight
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, self.body(x).relu())


USES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "called twice": lambda m, f: m.layer(f) + m.layer(2 * f),
    "weight of another layer": lambda m, f: m.layer(f) + m.other(2 * f),
    "weight in a product": lambda m, f: m.layer(f) + nn.functional.linear(2 * f, m.layer.weight),
    "keywords": lambda m, f: m.layer(input=nn.functional.linear(f, weight=torch.eye(STUDENT))),
}


@pytest.mark.parametrize("use", USES)
def test_a_distiller_takes_its_layer_for_no_other(use: str) -> None:
    traced, eager = (_distiller(_Uses(USES[use]), warmup_epochs=0, student_layer=("layer",)) for _ in range(2))
    eager.load_state_dict(traced.state_dict())
    _steps_agree(torch.compile(traced, fullgraph=True, backend="aot_eager"), traced, eager)


def test_a_weight_without_a_bias_is_used_once_in_a_graph() -> None:
    student = _Uses(USES["called twice"])
    student.layer = nn.Linear(STUDENT, CLASSES, bias=False)
    traced = _distiller(student, warmup_epochs=0, student_layer=("layer",))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="without a bias is used twice"):
        torch.compile(traced, fullgraph=True, backend="aot_eager")(draws.normal(8, 4), torch.arange(8) % CLASSES)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks, at the break
def test_a_compiled_model_that_is_called_by_itself() -> None:
    """Dynamo does not see that there is a hook now: what a trace without it leaves out must not go unnoticed."""
    student = nn.Sequential(nn.Linear(4, STUDENT), nn.Linear(STUDENT, CLASSES))
    student.compile(backend="aot_eager")
    x, y = draws.normal(8, 4), torch.arange(8) % CLASSES
    distiller = _distiller(student, warmup_epochs=0)
    first = distiller(x, y).loss
    student(x)
    said = ""
    try:  # PyTorch 2.10 looks whether there is a hook
        _same(distiller(x, y).loss, first)
    except RuntimeError as error:
        said = str(error)
    assert not said or "compile the distiller instead" in said


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks, at the break
def test_a_distiller_whose_layer_is_more_than_a_product() -> None:
    """A hook breaks the graph, and sees what the layer's own hooks make of the product."""
    traced, eager = _distiller(warmup_epochs=0), _distiller(warmup_epochs=0)
    for distiller in (traced, eager):
        distiller.student_model.get_submodule("2").register_forward_hook(lambda layer, args, output: 2 * output)
    _steps_agree(torch.compile(traced, backend="aot_eager"), traced, eager)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="cid captures a Linear with hooks"):
        torch.compile(traced, fullgraph=True, backend="aot_eager")(draws.normal(8, 4), torch.arange(8) % CLASSES)


def test_labels_are_checked_when_the_kernel_runs() -> None:
    compiled = torch.compile(FUNCTIONS["class"], fullgraph=True, backend="aot_eager")
    x = batch(8)
    x["y"][3] = -7
    with pytest.raises(ValueError, match="label -7 at index 3"):
        compiled(x)


def test_weights_are_checked_when_the_kernel_runs() -> None:
    compiled = torch.compile(FUNCTIONS["kd of weights"], fullgraph=True, backend="aot_eager")
    x = batch(8)
    x["w"][3] = -7
    with pytest.raises(ValueError, match=r"^weight: got -7.0 at index 3, accepted: finite numbers >= 0"):
        compiled(x)


def test_float16_and_autocast() -> None:
    compiled = torch.compile(FUNCTIONS["kd"], fullgraph=True, backend="aot_eager")
    _agree(compiled, FUNCTIONS["kd"], batch(8, torch.float16))
    x = batch(8, torch.bfloat16)
    with torch.autocast("cpu"):
        _agree(compiled, FUNCTIONS["kd"], x)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_inductor(backend: str) -> None:
    """The real compiler, once: what it does with operators that write into what they are given."""
    eager, traced = (criterion(warmup_epochs=0, backend=backend) for _ in range(2))
    compiled = torch.compile(traced, fullgraph=True, dynamic=True)
    x = batch(8)
    ours, truth = (module(x["f"], x["s"], x["t"], x["q"], x["y"]).loss for module in (compiled, eager))
    _same(ours, truth)
    _same(_grads(x, ours), _grads(x, truth))
    _same(dict(traced.bank.named_buffers()), dict(eager.bank.named_buffers()))


def test_inside_torch_func() -> None:
    """As without torch.compile, the reference serves: that a tensor is differentiated is not seen everywhere."""
    x = batch(8)

    def gradient(s: Tensor) -> Tensor:
        grad: Tensor = torch.func.grad(lambda s: F.kd_loss(s, x["q"]))(s)
        return grad

    s = x["s"].detach()
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    _same(compiled(s), gradient(s))
    assert gradient(s).any()
