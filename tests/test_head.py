"""The interventional head, folded for inference."""

import copy

import pytest
import torch
from torch import Tensor, nn

import cid
from tests import bounds, draws

B, D = 7, 6


def head_and_inputs(
    num_classes: int, dtype: torch.dtype = torch.float64, **options: object
) -> tuple[cid.InterventionalHead, Tensor, Tensor, Tensor]:
    head = cid.InterventionalHead(D, num_classes, dtype=dtype, **options)  # type: ignore[arg-type]
    context = draws.normal(num_classes, D, dtype=dtype)
    return head, context, draws.normal(B, D, dtype=dtype), 5 * draws.normal(B, num_classes, dtype=dtype)


@pytest.mark.parametrize("temperature", [1e-30, 0.1, 4, 1e30])
@pytest.mark.parametrize("num_classes", [1, 5, 2 * D, 2 * D + 1, 40])
@pytest.mark.parametrize("differentiable", [False, True])
def test_folded_is_unfolded(num_classes: int, temperature: float, differentiable: bool) -> None:
    head, context, f, s = head_and_inputs(num_classes, temperature=temperature, differentiable=differentiable)
    torch.testing.assert_close(head.fold(context)(f, s), head(f, s, context), rtol=1e-10, atol=1e-10)


def test_gradients_reach_features_and_logits() -> None:
    head, context, f, s = head_and_inputs(5, differentiable=True)
    f.requires_grad_()
    s.requires_grad_()
    folded, unfolded = (
        torch.autograd.grad(z.square().sum(), (f, s)) for z in (head.fold(context)(f, s), head(f, s, context))
    )
    torch.testing.assert_close(folded, unfolded, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("num_classes", "shapes"), [(12, [(12, 12)]), (13, [(13, D), (D, 13)])])
def test_the_product_is_made_where_it_is_smaller(num_classes: int, shapes: list[tuple[int, int]]) -> None:
    head, context, *_ = head_and_inputs(num_classes)
    folded = head.fold(context)
    assert [tuple(factor.shape) for factor in folded.mixing] == shapes
    held = sum(p.numel() for p in folded.parameters())
    assert held <= sum(p.numel() for p in head.parameters()) + context.numel()


def test_a_folded_head_shares_nothing() -> None:
    head, context, f, s = head_and_inputs(13)
    folded = head.fold(context)
    expected = folded(f, s)
    with torch.no_grad():
        for tensor in (*head.parameters(), context):
            tensor.zero_()
    assert torch.equal(folded(f, s), expected)
    assert torch.equal(copy.deepcopy(folded)(f, s), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_keeps_the_type_of_the_head(dtype: torch.dtype) -> None:
    head, context, f, s = head_and_inputs(5, dtype)
    folded = head.fold(context.float())  # a bank is never in half precision
    assert {p.dtype for p in folded.parameters()} == {dtype}
    expected = head(f, s, context)
    bounds.close(folded(f, s), expected, bounds.logits(expected, layers=3, terms=2 * D, dtype=dtype))


def test_bad_contexts() -> None:
    head = cid.InterventionalHead(D, 5)
    with pytest.raises(ValueError, match=r"^context: got shape \(6, 5\), accepted: \(5, 6\)"):
        head.fold(torch.zeros(D, 5))
    with pytest.raises(TypeError, match=r"^context: got list, accepted: torch.Tensor"):
        head.fold([[0.0]])  # type: ignore[arg-type]


# --- in a student -----------------------------------------------------------------------------------------------------


class Aliased(nn.Module):
    """A classifier that calls its layer by another name, and yields more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(20, D)
        self.fc = nn.Linear(D, 5)
        self.heads = nn.ModuleList([self.fc])
        self.plain = [self.fc]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.plain[0](self.body(x).relu())}


def distilled(student: nn.Module, num_classes: int = 5, inputs: int = 20) -> cid.Distiller:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 9), nn.Linear(9, num_classes))
    distiller = cid.Distiller(student, teacher, num_classes=num_classes, beta=1.0, gamma=1.0, warmup_epochs=0)
    context = distiller.criterion.bank.context
    context.copy_(draws.normal(*context.shape))
    return distiller.eval()


def test_the_student_is_the_model_with_other_logits() -> None:
    model = Aliased()
    distiller = distilled(model)
    x = draws.normal(B, 20)
    student = distiller.student()
    assert type(student) is Aliased
    assert not student.training
    assert set(model.state_dict()) < set(student.state_dict())
    expected = distiller.predict(x)
    bounds.close(student(x)["logits"], expected, bounds.logits(expected, layers=3, terms=20))
    assert torch.equal(copy.deepcopy(student)(x)["logits"], student(x)["logits"])
    assert torch.equal(distiller.student(head=False)(x)["logits"], model(x)["logits"])
    assert set(distiller.student(head=False).state_dict()) == set(model.state_dict())
    assert not any(module._forward_hooks for module in model.modules())


def test_folding_a_student_that_was_kept_open() -> None:
    distiller = distilled(Aliased())
    kept = distiller.student(fold=False)
    assert isinstance(kept, cid.InterventionalStudent)
    x = draws.normal(B, 20)
    bounds.close(kept.fold()(x)["logits"], kept(x), bounds.logits(kept(x), layers=3, terms=20))
    assert not any(module._forward_hooks for module in kept.modules())


def test_a_distilled_student_may_teach_but_not_learn_again() -> None:
    x, y = draws.normal(B, 20), torch.arange(B) % 5
    student = distilled(nn.Sequential(nn.Linear(20, D), nn.Linear(D, 5))).student()
    again = cid.Distiller(Aliased(), student, num_classes=5, beta=1.0, gamma=1.0)
    assert again(x, y).loss.isfinite()
    with pytest.raises(ValueError, match=r"^student: its layer '1' has an interventional head already"):
        cid.Distiller(student, student, num_classes=5, beta=1.0, gamma=1.0)


def test_it_compiles_into_one_graph() -> None:
    distiller = distilled(nn.Sequential(nn.Linear(20, D), nn.Linear(D, 5)))
    x = draws.normal(B, 20)
    compiled = torch.compile(distiller.student(), fullgraph=True, backend="eager")
    expected = distiller.predict(x)
    bounds.close(compiled(x), expected, bounds.logits(expected, layers=3, terms=20))


def test_torchvision_s_resnet_is_exported() -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    distiller = distilled(torchvision.models.resnet18(num_classes=5), inputs=3 * 32 * 32)
    student = distiller.student().requires_grad_(False)
    x = draws.normal(4, 3, 32, 32)
    program = torch.export.export(student, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert {str(node.target).partition(".")[0] for node in program.graph.nodes if node.op == "call_function"} == {
        "aten"
    }
    for count in (1, 4):
        expected = distiller.predict(x[:count])
        bounds.close(program.module()(x[:count]), expected, bounds.logits(expected, layers=19, terms=512 * 9))
