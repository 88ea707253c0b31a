"""What is captured of a model's layers, and what a classifier is to who has no distiller."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from cid.capture import Call, Classifier, capture
from tests.capture.models import differ, replica

B, C, D = 6, 5, 12


class Net(nn.Module):
    """Calls its layers in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, D), nn.ReLU())
        self.twice = nn.Linear(D, D)
        self.bilinear = nn.Bilinear(D, D, D)
        self.constant = Constant()
        self.head = nn.Linear(D, C)
        self.idle = nn.Linear(D, C)
        self.fails = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.twice(self.twice(self.body(x)))
        f = self.bilinear(input1=f, input2=f + 1) + self.constant()
        if self.fails:
            raise RuntimeError("half-way")
        return self.head(f), f


class Constant(nn.Module):
    """Reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(D))

    def forward(self) -> Tensor:
        return self.value


def rows() -> Tensor:
    return torch.randn(B, 20)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_what_layers_read_and_yield() -> None:
    net, x = Net(), rows()
    names = ["head", "body", "body.0", ""]
    output, calls = capture(net, x, names)
    assert list(calls) == names
    assert calls[""] == Call(x, output)
    assert calls["head"].input is output[1]
    assert calls["head"].output is output[0]
    assert calls["body.0"].input is calls["body"].input is x
    assert torch.equal(calls["body"].output, net.body(x))
    assert all(map(torch.equal, output, net(x)))
    assert hooks(net) == 0
    assert capture(net, x, [])[1] == {}


def test_the_last_call_counts_and_arguments_may_be_named() -> None:
    net, x = Net(), rows()
    output, calls = capture(net, x, ("twice", "bilinear", "constant"))
    f = net.body(x)
    assert torch.equal(calls["twice"].input, net.twice(f))
    assert calls["bilinear"].input is calls["twice"].output
    assert calls["constant"] == Call(None, net.constant.value)
    assert torch.equal(output[1], calls["bilinear"].output + net.constant.value)


def test_a_mapping_is_passed_on_by_name() -> None:
    net, x = Net(), rows()
    _, calls = capture(net, {"x": x}, ["", "body"])
    assert calls[""].input is calls["body"].input is x


def test_gradients_flow_through_what_is_captured() -> None:
    """As a hint does it: a student's layer is led to what the teacher's yields."""
    student, teacher, x = Net(), Net().requires_grad_(False), rows()
    with torch.no_grad():
        _, taught = capture(teacher, x, ["body"])
    (logits, _), calls = capture(student, x, ["body", "twice"])
    assert not taught["body"].output.requires_grad
    nn.functional.mse_loss(calls["body"].output, taught["body"].output).backward(retain_graph=True)
    assert student.body[0].weight.grad is not None
    assert student.twice.weight.grad is None
    (gradient,) = torch.autograd.grad(logits.sum(), calls["twice"].output)
    assert gradient.any()


def test_it_sees_what_other_hooks_and_later_operations_leave() -> None:
    net, x = nn.Sequential(nn.Linear(20, D), nn.ReLU(inplace=True)), rows()
    output, calls = capture(net, x, ["0"])
    assert calls["0"].output is output
    with net[0].register_forward_hook(lambda layer, args, output: 2 * output):
        _, doubled = capture(net, x, ["0"])
    torch.testing.assert_close(doubled["0"].output, 2 * output)


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("neck", r"'body', 'twice', 'bilinear', 'constant', 'head', 'idle'$"),
        ("body.2", r"'body.0', 'body.1'$"),
        ("nobody.0", "'body', "),
        ("head.weight", "none in 'head'$"),
    ],
)
def test_unknown_names(name: str, beside: str) -> None:
    net = Net()
    with pytest.raises(ValueError, match=rf"^layers: got '{name}', accepted: a module of the model: {beside}"):
        capture(net, rows(), ["body", name])
    assert hooks(net) == 0


@pytest.mark.parametrize("layers", ["body", None, 3, [nn.Linear(2, 2)], {"body"}])
def test_layers_are_a_sequence_of_names(layers: Any) -> None:
    with pytest.raises(TypeError, match=r"^layers: got .*, accepted: a sequence of names"):
        capture(Net(), rows(), layers)


def test_a_model_is_a_module() -> None:
    with pytest.raises(TypeError, match=r"^model: got function, accepted: torch.nn.Module"):
        capture(lambda x: x, rows(), [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^model: got function, accepted: torch.nn.Module"):
        Classifier(lambda x: x, C)  # type: ignore[arg-type]


def test_a_layer_that_is_not_called() -> None:
    net = Net()
    with pytest.raises(RuntimeError, match=r"^layers: 'idle' was not called in the forward"):
        capture(net, rows(), ["body", "idle"])
    assert hooks(net) == 0


def test_a_failed_forward_leaves_nothing_behind() -> None:
    net = Net()
    net.fails = True
    with pytest.raises(RuntimeError, match="half-way"):
        capture(net, rows(), ["body", "head"])
    assert hooks(net) == 0


def test_a_layer_that_takes_no_hook_leaves_nothing_behind() -> None:
    class Stubborn(nn.Linear):
        def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no hooks here")

    net = nn.Sequential(nn.Linear(20, D), Stubborn(D, C))
    with pytest.raises(RuntimeError, match="no hooks here"):
        capture(net, rows(), ["0", "1"])
    assert hooks(net) == 0


@pytest.mark.parametrize("replicated", [True, False])
def test_threads_keep_apart(replicated: bool) -> None:
    """Replicas share one dictionary of hooks and run in threads, as in nn.DataParallel; a server shares the model."""
    net = Net()
    models = [replica(net) if replicated else net for _ in range(4)]
    inputs = [rows() for _ in range(4)]
    expected = [net.body(x) for x in inputs]
    assert not differ(lambda i: capture(models[i], inputs[i], ["body", "head"])[1]["body"].output, expected)
    assert hooks(net) == 0


# Dynamo asks what a graph goes on with for its gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_caller_breaks_its_graph_once() -> None:
    torch._dynamo.reset()
    net, counter = Net(), CompileCounter()

    def traced(x: Tensor) -> tuple[Tensor, Tensor]:
        output, calls = capture(net, x + 1, ["body", "head"])
        return output[0] * 2, calls["body"].output * 2

    compiled, made = torch.compile(traced, backend=counter), 0
    for i in range(4):
        x = rows()
        for got, expected in zip(compiled(x), traced(x), strict=True):
            torch.testing.assert_close(got, expected)
        made = made or counter.frame_count
        if torch.__version__ >= "2.11":  # PyTorch 2.10 looks which hooks there are
            assert counter.frame_count == made, f"call {i} compiles anew"
    assert hooks(net) == 0
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"cid\.capture captures layers by hooks"):
        torch.compile(traced, backend="eager", fullgraph=True)(rows())
    torch._dynamo.reset()


def test_a_compiled_model() -> None:
    torch._dynamo.reset()
    net = Net()
    net.compile(backend="eager")
    for _ in range(3):
        x = rows()
        _, calls = capture(net, x, ["body"])
        assert torch.equal(calls["body"].output, net.body(x))
    torch._dynamo.reset()


# --- a classifier ---------------------------------------------------------------------------------------------------


def test_a_classifier_reads_a_batch() -> None:
    net, x = Net(), rows()
    classifier = Classifier(net, C, "head")
    assert (classifier.layers, classifier.names, classifier.dim, classifier.num_classes) == ("head", ("head",), D, C)
    features, logits = classifier.read(net, x)
    assert torch.equal(features, net(x)[1])
    assert torch.equal(logits, net(x)[0])
    assert hooks(net) == 0


@pytest.mark.parametrize(("role", "model", "layers"), [(None, "model", "layers"), ("expert", "expert", "expert_layer")])
def test_errors_of_a_classifier_name_its_role(role: str | None, model: str, layers: str) -> None:
    net = Net()
    with pytest.raises(ValueError, match=rf"^{layers}: got 'neck', accepted: a module of the {model}: 'body.0' "):
        Classifier(net, C, "neck", role=role)
    with pytest.raises(ValueError, match=rf"^{model}: no linear layer .*Name the classifying layer with {layers}$"):
        Classifier(net, 7, role=role)
    with pytest.raises(RuntimeError, match=rf"^{model}: its layer 'idle' was not called"):
        Classifier(net, C, role=role).read(net, rows())
    with pytest.raises(ValueError, match=r"^num_classes: got 0, accepted: "):
        Classifier(net, 0, role=role)
