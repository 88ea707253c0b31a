"""The distiller around models that it has never seen."""

import copy
import threading
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

import cid
from tests.capture.models import Net

B, C = 8, 5

M = TypeVar("M", bound=nn.Module)


def make(student: nn.Module | None = None, teacher: nn.Module | None = None, **options: object) -> cid.Distiller:
    defaults: dict[str, object] = {"num_classes": C, "beta": 3.0, "gamma": 0.5, "warmup_epochs": 0}
    return cid.Distiller(student or Net(12), teacher or Net(30), **(defaults | options))  # type: ignore[arg-type]


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 20), torch.arange(B) % C


def test_it_captures_what_the_layer_sees() -> None:
    distiller = make()
    x, y = data()
    distiller.eval()
    out = distiller(x, y)
    s, t = distiller.student_model, distiller.teacher_model
    assert isinstance(s, Net)
    assert isinstance(t, Net)
    f, g = s.norm(s.body(x)).relu(), t.norm(t.body(x)).relu()
    expected = distiller.criterion(f, s.fc(f), g, t.fc(g), y)
    torch.testing.assert_close(out.loss, expected.loss)
    assert distiller.criterion.adapter.in_features == 12
    assert distiller.criterion.adapter.out_features == 30


def test_the_teachers_outputs_may_be_given() -> None:
    distiller = make()
    x, y = data()
    teacher = distiller.teacher_model
    assert isinstance(teacher, Net)
    teacher.body.train()
    outputs = cid.teacher_outputs(teacher, x, num_classes=C)
    assert not any(module.training for module in teacher.modules())
    assert [value.shape for value in outputs] == [(B, 30), (B, C)]
    assert not any(value.requires_grad for value in outputs)
    without = make(distiller.student_model)
    alone = cid.Distiller(
        distiller.student_model, None, num_classes=C, teacher_dim=30, beta=3.0, gamma=0.5, warmup_epochs=0
    )
    for other in (without, alone):
        other.criterion.load_state_dict(distiller.criterion.state_dict())
    expected = distiller(x, y).loss
    assert torch.equal(without(x, y, outputs).loss, expected)  # its own teacher is another one
    assert not torch.equal(without(x, y).loss, expected)
    assert torch.equal(alone.train()(x, y, teacher=outputs).loss, expected)
    assert not any(name.startswith("teacher") for name in alone.state_dict())
    assert torch.equal(alone.student()(x), distiller.student()(x))


def test_each_sample_may_have_a_weight() -> None:
    distiller = make()
    x, y = data()
    assert distiller.teacher_model is not None
    teacher = cid.teacher_outputs(distiller.teacher_model, x, num_classes=C)
    plain, weight = distiller(x, y, teacher), torch.arange(B) / 4
    assert torch.equal(distiller(x, y, weight=torch.ones(B)).loss, plain.loss)
    out = distiller(x, y, teacher, weight)
    assert torch.equal(out.loss, distiller(x, y, weight=weight).loss)
    assert torch.equal(out.class_, plain.class_)
    for ours, theirs in zip((out.ce, out.kd, out.sample), (plain.ce, plain.kd, plain.sample), strict=True):
        assert not torch.equal(ours, theirs)
    gathered = distiller.criterion.bank.numerator.clone()
    with pytest.raises(ValueError, match=r"^weight: got -0.25 at index 1, accepted: finite numbers >= 0"):
        distiller(x, y, weight=-weight)
    with pytest.raises(ValueError, match=r"^weight: got shape \(7,\), accepted: \(8,?\)"):
        distiller(x, y, weight=weight[1:])
    assert torch.equal(distiller.criterion.bank.numerator, gathered)


def test_a_distiller_without_a_teacher_says_what_it_needs() -> None:
    options: dict[str, Any] = {"num_classes": C, "beta": 3.0, "gamma": 0.5}
    with pytest.raises(ValueError, match=r"^teacher_dim: got None, accepted: the size"):
        cid.Distiller(Net(12), None, **options)
    with pytest.raises(ValueError, match=r"^teacher_dim: got 30, accepted: the size"):
        cid.Distiller(Net(12), Net(30), teacher_dim=30, **options)
    with pytest.raises(TypeError, match=r"^teacher: got int, accepted: torch.nn.Module or None"):
        cid.Distiller(Net(12), 30, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^teacher_layer: got 'fc', accepted: None where teacher is None"):
        cid.Distiller(Net(12), None, teacher_dim=30, teacher_layer="fc", **options)
    alone = cid.Distiller(Net(12), None, teacher_dim=30, **options)
    x, y = data()
    with pytest.raises(ValueError, match=r"^teacher: not given, accepted: \(features, logits\)"):
        alone(x, y)
    with pytest.raises(ValueError, match=r"^teacher\[0\]: got shape \(8, 31\), accepted: \(B, 30\)"):
        alone(x, y, (torch.randn(B, 31), torch.randn(B, C)))


def test_nothing_stays_on_the_models() -> None:
    distiller = make()
    distiller(*data())
    distiller.predict(data()[0])
    assert hooks(distiller) == 0


def test_a_failed_forward_leaves_nothing_behind() -> None:
    student = Net(12, fails=True)
    distiller = make(student)
    x, y = data()
    with pytest.raises(RuntimeError, match="half-way"):
        distiller(x, y)
    assert hooks(distiller) == 0
    assert not distiller.criterion.bank.denominator.any()
    student.fails = False
    fresh = make(copy.deepcopy(student), distiller.teacher_model)
    fresh.criterion.load_state_dict(distiller.criterion.state_dict())
    assert torch.equal(distiller(x, y).loss, fresh(x, y).loss)


def _replica(module: M) -> M:
    """What torch.nn.parallel.replicate makes for each device."""
    replica: M = module._replicate_for_data_parallel()
    replica._parameters = dict(module._parameters)
    replica._buffers = dict(module._buffers)
    replica._modules = {name: child and _replica(child) for name, child in module._modules.items()}
    return replica


def test_replicas_keep_apart() -> None:
    """Replicas share one dictionary of hooks and run in threads, as in nn.DataParallel."""
    distiller = make().eval()
    x, _ = data()
    replicas = [_replica(distiller) for _ in range(4)]
    inputs = [x + i for i in range(4)]
    expected = [distiller.predict(i) for i in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not torch.equal(replicas[i].predict(inputs[i]), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert hooks(distiller) == 0


def test_the_teacher_never_trains() -> None:
    teacher = Net(30)
    distiller = make(teacher=teacher)
    before = copy.deepcopy(teacher.state_dict())
    distiller.train()
    assert not teacher.training
    teacher.train()
    teacher.norm.train()
    distiller(*data()).loss.backward()
    teacher.eval()
    teacher.norm.train()
    distiller(*data()).loss.backward()
    assert not teacher.norm.training
    assert all(torch.equal(x, before[k]) for k, x in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_frozen_body() -> None:
    """Gradients are asked only of what requires them."""
    student = Net(12)
    student.body.requires_grad_(False)
    distiller = make(student)
    distiller(*data()).loss.backward()
    assert student.body.weight.grad is None
    assert student.fc.weight.grad is not None
    assert all(p.requires_grad for group in distiller.param_groups(0.1) for p in group["params"])


@pytest.mark.parametrize("fold", [True, False])
def test_the_exported_student_stands_alone(fold: bool) -> None:
    distiller = make(warmup_epochs=1)
    x, y = data()
    distiller(x, y)
    distiller.epoch_end()
    distiller.eval()
    student = distiller.student(fold=fold)
    expected = student(x)
    torch.testing.assert_close(expected, distiller.predict(x))
    distiller.train()
    distiller(x, y)
    distiller.epoch_end()
    with torch.no_grad():
        distiller.criterion.head.weight.zero_()
        for p in distiller.student_model.parameters():
            p.zero_()
    assert torch.equal(student(x), expected)
    other = make(warmup_epochs=1).student(fold=fold)
    other.load_state_dict(student.state_dict())
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("fold", [True, False])
def test_gradients_flow_through_the_exported_student(fold: bool) -> None:
    student = make().student(fold=fold)
    student(data()[0]).square().sum().backward()
    assert {name for name, p in student.named_parameters() if p.grad is None} <= {"model.fc.weight", "model.fc.bias"}


def test_the_criterion_follows_the_student_s_type() -> None:
    distiller = make(Net(12).double(), Net(30).double())
    x, y = data()
    assert distiller(x.double(), y).loss.dtype == torch.float64


def test_param_groups_cover_the_student_and_the_loss_once() -> None:
    distiller = make()
    ids = [id(p) for group in distiller.param_groups(0.1) for p in group["params"]]
    expected = [*distiller.student_model.parameters(), *distiller.criterion.parameters()]
    assert sorted(ids) == sorted(map(id, expected))


def test_state_round_trip() -> None:
    a, b = make(warmup_epochs=1), make(warmup_epochs=1)
    x, y = data()
    a(x, y)
    a.epoch_end()
    a(x, y)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.eval().predict(x), b.eval().predict(x))
    assert torch.equal(a(x, y).loss, b(x, y).loss)


def test_without_labels_it_predicts() -> None:
    distiller = make(warmup_epochs=1)
    x, y = data()
    distiller(x, y)
    distiller.eval()
    assert torch.equal(distiller(x), distiller.student_model(x))
    assert torch.equal(distiller.predict(x), distiller.student_model(x))
    distiller.epoch_end()
    assert torch.equal(distiller(x), distiller.student(fold=False)(x))
    distiller(x).sum().backward()
    assert distiller.criterion.head.weight.grad is not None


class _Named(Net):
    """A model that takes its input by name and yields more than a tensor."""

    def forward(self, *, pixel_values: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": super().forward(pixel_values)}


def test_a_mapping_is_passed_on_by_name() -> None:
    a = make(warmup_epochs=0)
    b = make(_Named(12), _Named(30), warmup_epochs=0)
    b.load_state_dict(a.state_dict())
    x, y = data()
    named = {"pixel_values": x}
    assert torch.equal(a(x, y).loss, b(named, y).loss)
    assert torch.equal(a.eval()(x), b.eval()(named))
    assert torch.equal(a.student()(x), b.student()(**named)["logits"])
    assert torch.equal(a.student(fold=False)(x), b.student(fold=False)(named))


def test_it_counts_steps() -> None:
    distiller = make(warmup_epochs=1, steps_per_turn=2)
    for _ in range(3):
        distiller(*data())
    assert not distiller.warming_up
    assert distiller.criterion.bank.context.any()


def test_what_is_trained_is_not_shared_with_the_teacher() -> None:
    """The teacher's parameters stop being trained."""
    body = nn.Linear(4, 6)
    options: dict[str, Any] = {"num_classes": 3, "beta": 1.0, "gamma": 1.0}
    student, teacher = (nn.Sequential(body, nn.ReLU(), nn.Linear(6, 3)) for _ in range(2))
    with pytest.raises(ValueError, match=r"^teacher: shares parameters"):
        cid.Distiller(student, teacher, **options)
    assert all(parameter.requires_grad for parameter in student.parameters())
    body.requires_grad_(False)
    cid.Distiller(student, teacher, **options)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("narrow", ["teacher", "student"])
def test_a_distiller_of_models_of_two_types(half: torch.dtype, narrow: str) -> None:
    """Each model gets the batch in its own type, and keeps its weights in it."""
    student = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5))
    teacher = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
    (teacher if narrow == "teacher" else student).to(half)
    x, y = torch.randn(8, 20), torch.arange(8) % 5
    x = x.to(half)  # so that the conversion between the two is exact
    if narrow == "teacher":
        x = x.float()
    distiller = cid.Distiller(student, teacher, num_classes=5, beta=10.0, gamma=1.0, warmup_epochs=0)
    out = distiller(x, y)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in student.parameters())
    with torch.no_grad():
        features_of, logits_of = teacher[:2], teacher
        own = x.to(next(teacher.parameters()).dtype)
        again = distiller(x, y, teacher=(features_of(own), logits_of(own)))
    assert torch.equal(again.loss, out.loss.detach())
