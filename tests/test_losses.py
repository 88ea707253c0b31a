"""The modules: what they hold, the schedule, and that their state survives whatever is done to modules."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor, nn

import cid
from cid import functional as F
from tests.cases import backends

B, C, DS, DT = 12, 4, 6, 10


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return (
        torch.randn(B, DS, dtype=dtype, requires_grad=True),
        torch.randn(B, C, dtype=dtype, requires_grad=True),
        torch.randn(B, DT, dtype=dtype),
        torch.randn(B, C, dtype=dtype),
        torch.arange(B) % C,
    )


def criterion(**options: object) -> cid.CIDLoss:
    return cid.CIDLoss(DS, DT, C, **({"beta": 3.0, "gamma": 0.5} | options))  # type: ignore[arg-type]


def test_the_modules_are_their_functions() -> None:
    f, s, t, q, y = batch()
    assert torch.equal(cid.KDLoss(temperature=2.0)(s, q), F.kd_loss(s, q, temperature=2.0))
    assert torch.equal(cid.SampleLoss(reduction="sum")(t, t + 1), F.sample_loss(t, t + 1, reduction="sum"))
    assert torch.equal(cid.ClassLoss(ignore_index=0)(f, t, y), F.class_loss(f, t, y, ignore_index=0))


def test_the_total_is_the_weighted_sum_and_reaches_every_parameter() -> None:
    f, s, t, q, y = batch(torch.float64)
    loss = criterion(alpha=2.0, warmup_epochs=0).double()
    loss.bank.context.normal_()
    out = loss(f, s, t, q, y)
    torch.testing.assert_close(out.loss.detach(), 2 * (out.ce + out.kd) + 3 * out.sample + 0.5 * out.class_)
    assert [part.requires_grad for part in out] == [True, False, False, False, False, False]
    out.loss.backward()
    for leaf in (f, s, *loss.parameters()):
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_differentiable_context(backend: str) -> None:
    """The option lets gradients through m into the logits: they are those of the formula."""
    f, s, t, q, y = batch(torch.float64)
    fixed, through = (
        criterion(warmup_epochs=0, differentiable_context=option, backend=backend).double() for option in (False, True)
    )
    through.load_state_dict(fixed.state_dict())
    for module in (fixed, through):
        module.bank.context.copy_(torch.arange(C * DS, dtype=torch.float64).view(C, DS).sin())
    difference = torch.autograd.grad(through(f, s, t, q, y).loss - fixed(f, s, t, q, y).loss, s)[0]
    m = torch.softmax(s / 4, 1) @ through.bank.context
    z = torch.cat([f.detach(), m], 1) @ through.head.weight.T + through.head.bias
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(z, y), s)[0]
    torch.testing.assert_close(difference, expected)


def test_the_schedule() -> None:
    """No ce in warm-up; its last epoch gathers first; the bank of one epoch serves the next."""
    f, s, t, q, y = batch()
    loss = criterion(warmup_epochs=2)
    banks = []
    for epoch in range(4):
        out = loss(f * (epoch + 1), s, t, q, y)
        assert (out.logits is None) == (epoch < 2)
        assert (out.ce == 0) == (epoch < 2)
        assert bool(loss.bank.denominator.sum() > 0) == (epoch >= 1)
        loss.epoch_end()
        banks.append(loss.bank.context.clone())
    assert not banks[0].any()
    for epoch in (2, 3):
        torch.testing.assert_close(banks[epoch], banks[1] * (epoch + 1) / 2)
    assert int(loss.epoch) == 4


def test_evaluation_gathers_nothing() -> None:
    loss = criterion(warmup_epochs=0).eval()
    loss(*batch())
    assert not loss.bank.denominator.any()


def test_no_warmup() -> None:
    loss = criterion(warmup_epochs=0)
    assert not loss.warming_up
    assert loss(*batch()).ce > 0


def test_a_refused_batch_is_not_gathered() -> None:
    f, s, t, q, y = batch()
    loss = criterion(warmup_epochs=0)
    with pytest.raises(ValueError, match="target"):
        loss(f, s, t, q, y + 1)
    assert not loss.bank.numerator.any()


def test_prediction_is_the_output_s_logits() -> None:
    f, s, t, q, y = batch()
    loss = criterion(warmup_epochs=0)
    loss.bank.context.normal_()
    torch.testing.assert_close(loss.predict(f, s).detach(), loss(f, s, t, q, y).logits)


@pytest.mark.parametrize("how", ["state_dict", "deepcopy"])
def test_state_survives(how: str) -> None:
    """Also in the middle of an epoch: the copy goes on exactly as the original."""
    steps = [batch() for _ in range(6)]
    original = criterion(warmup_epochs=1, context_momentum=0.5)
    for i, step in enumerate(steps[:4]):
        original(*step)
        if i % 2:
            original.epoch_end()
    original(*steps[4])
    if how == "deepcopy":
        other = copy.deepcopy(original)
    else:
        other = criterion(warmup_epochs=1, context_momentum=0.5)
        other.load_state_dict(original.state_dict())
    for module in (original, other):
        module.epoch_end()
    assert torch.equal(original.bank.context, other.bank.context)
    assert torch.equal(original(*steps[5]).loss, other(*steps[5]).loss)


def test_conversion_keeps_sums_wide() -> None:
    loss = criterion(warmup_epochs=0)
    loss(*batch())
    before = loss.bank.denominator.clone()
    loss.half()
    assert loss.head.weight.dtype == torch.float16
    assert loss.bank.numerator.dtype == torch.float32
    assert torch.equal(loss.bank.denominator, before)
    loss.double()
    assert loss.bank.context.dtype == torch.float64
    assert loss.to("meta").bank.context.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    loss = criterion(warmup_epochs=0).to(dtype)
    out = loss(*batch(dtype))
    out.loss.backward()
    assert out.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.bank.denominator.sum() > 0
    loss.epoch_end()


def test_param_groups() -> None:
    loss = criterion()
    decayed, undecayed = loss.param_groups(0.1)
    assert decayed["weight_decay"] == 0.1
    assert undecayed["weight_decay"] == 0
    assert {id(p) for p in undecayed["params"]} == {id(p) for p in loss.adapter.parameters()}
    assert {id(p) for p in decayed["params"]} == {id(p) for p in loss.head.parameters()}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"warmup_epochs": 1.5}, "warmup_epochs"),
        ({"context_momentum": 1.1}, "context_momentum"),
        ({"ignore_index": "no"}, "ignore_index"),
    ],
)
def test_bad_options(options: dict[str, object], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{named}: got .*accepted: "):
        criterion(**options)


@pytest.mark.parametrize("sizes", [(0, 4, 3), (4, 0, 3), (4, 4, 0), (4, 4, -1)])
def test_bad_sizes(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"^(student_dim|teacher_dim|num_classes|dim): got .*accepted: 1 and up"):
        cid.CIDLoss(*sizes, beta=1.0, gamma=1.0)


def test_it_is_traced_whole() -> None:
    """Under torch.compile the reference serves, in one graph, the gathering of contexts included."""
    loss, step = criterion(warmup_epochs=0), batch()
    expected = loss(*step)
    gathered = loss.bank.numerator.clone()
    loss.bank.numerator.zero_()
    traced = torch.compile(loss, fullgraph=True, backend="eager")(*step)
    torch.testing.assert_close(traced.loss, expected.loss)
    torch.testing.assert_close(loss.bank.numerator, gathered)


def test_it_runs_on_a_device_without_autocast() -> None:
    loss = criterion(warmup_epochs=0).to("meta")
    out = loss(*(x.to("meta") for x in batch()))
    assert out.loss.is_meta
    assert out.logits is not None
    assert out.logits.shape == (B, C)


def by_epoch_and_by_step(**options: object) -> tuple[cid.CIDLoss, cid.CIDLoss]:
    """The same criterion twice: turned by `epoch_end`, and every three steps."""
    by_epoch, by_step = criterion(**options), criterion(**options, steps_per_turn=3)
    by_step.load_state_dict(by_epoch.state_dict() | {"bank.steps": by_step.bank.steps})
    return by_epoch, by_step


@pytest.mark.parametrize("warmup_epochs", [0, 1, 2])
def test_steps_train_as_epochs_of_their_number(warmup_epochs: int) -> None:
    by_epoch, by_step = by_epoch_and_by_step(warmup_epochs=warmup_epochs, context_momentum=0.5)
    for _ in range(4):
        for _ in range(3):
            step = batch()
            assert torch.equal(by_epoch(*step).loss, by_step(*step).loss)
            assert by_epoch.warming_up == by_step.warming_up
        for module in (by_epoch, by_step):  # an evaluation sees the bank that was trained with
            module.eval()
            module(*batch())
            module.train()
        assert torch.equal(by_epoch.bank.context, by_step.bank.context)
        by_epoch.epoch_end()
        by_step.epoch_end()  # a loop of epochs may still call it: nothing turns twice
    by_step(*batch())
    assert torch.equal(by_epoch.bank.context, by_step.bank.context)
    assert int(by_step.epoch) == 4
    assert int(by_step.bank.steps) == 1


@pytest.mark.parametrize("how", ["state_dict", "deepcopy"])
@pytest.mark.parametrize("after", [2, 3, 4, 7])
def test_counted_steps_survive(how: str, after: int) -> None:
    original = criterion(warmup_epochs=1, steps_per_turn=3)
    for _ in range(after):
        original(*batch())
    if how == "deepcopy":
        other = copy.deepcopy(original)
    else:
        other = criterion(warmup_epochs=1, steps_per_turn=3)
        other.load_state_dict(original.state_dict())
    for _ in range(4):
        step = batch()
        assert torch.equal(original(*step).loss, other(*step).loss)
    assert torch.equal(original.bank.context, other.bank.context)


def test_a_refused_step_is_not_counted() -> None:
    f, s, t, q, y = batch()
    loss = criterion(warmup_epochs=0, steps_per_turn=2)
    bank = cid.ContextBank(C, DS, steps_per_turn=2)
    with pytest.raises(ValueError, match="target"):
        loss(f, s, t, q, y + 1)
    with pytest.raises(ValueError, match="target"):
        bank.update(f, q, y + 1)
    assert int(loss.bank.steps) == int(bank.steps) == 0


def test_a_shorter_turn_than_the_loaded_one() -> None:
    """More steps have been counted than the new option allows: the next step turns."""
    long, short = criterion(warmup_epochs=0, steps_per_turn=9), criterion(warmup_epochs=0, steps_per_turn=2)
    for _ in range(5):
        long(*batch())
    short.load_state_dict(long.state_dict())
    short(*batch())
    assert int(short.epoch) == int(short.bank.steps) == 1


def test_steps_are_counted_under_compile() -> None:
    loss, step = criterion(warmup_epochs=0, steps_per_turn=2), batch()
    traced = torch.compile(loss, backend="eager")
    for _ in range(3):
        traced(*step)
    assert int(loss.epoch) == int(loss.bank.steps) == 1


def test_the_state_is_that_of_epochs_without_the_option() -> None:
    assert not any("steps" in key for key in criterion().state_dict())


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_bad_steps_per_turn(steps: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^steps_per_turn: got .*accepted: "):
        criterion(steps_per_turn=steps)


@pytest.mark.parametrize("warmup_epochs", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("student_features", (B, DS + 1)),
        ("student_logits", (B, C + 1)),
        ("student_logits", (B, C, 1)),
        ("student_logits", (B - 1, C)),
        ("teacher_features", (B, DT + 1)),
        ("teacher_logits", (B, C - 1)),
    ],
)
def test_errors_name_what_was_passed(name: str, shape: tuple[int, ...], warmup_epochs: int) -> None:
    names = ("student_features", "student_logits", "teacher_features", "teacher_logits")
    *inputs, target = batch()
    given = {other: torch.randn(shape) if other == name else x for other, x in zip(names, inputs, strict=True)}
    loss = criterion(warmup_epochs=warmup_epochs)
    with pytest.raises(ValueError, match=rf"^{name}: got shape \({', '.join(map(str, shape))}\), accepted: "):
        loss(*given.values(), target)
    if name == "student_logits":  # two that agree, but are of another number of classes
        with pytest.raises(ValueError, match=r"^(student_logits|teacher_logits): got shape"):
            loss(inputs[0], torch.randn(B, C + 1), inputs[2], torch.randn(B, C + 1), target)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.1", None])
def test_label_smoothing_is_checked(value: Any) -> None:
    for make in (
        lambda: criterion(label_smoothing=value),
        lambda: cid.Distiller(
            nn.Linear(3, 4), nn.Linear(3, 4), num_classes=4, beta=1.0, gamma=1.0, label_smoothing=value
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=r"^label_smoothing: got .*accepted: "):
            make()
    loss = criterion(warmup_epochs=0)
    loss.label_smoothing = value
    with pytest.raises((ValueError, TypeError), match=r"^label_smoothing: got .*accepted: "):
        loss(*batch())


@backends
def test_modules_take_shares_and_smoothing(backend: str) -> None:
    f, s, t, q, _ = batch()
    y = torch.rand(B, C).softmax(1)
    loss = criterion(label_smoothing=0.1, warmup_epochs=0, backend=backend)
    loss.bank.context.normal_()
    out = loss(f, s, t, q, y)
    assert out.logits is not None
    torch.testing.assert_close(out.ce, TF.cross_entropy(out.logits, y, label_smoothing=0.1))
    other = cid.ContextBank(C, DS, backend=backend)
    other.update(f, q, y)
    torch.testing.assert_close(other.numerator, loss.bank.numerator)
    torch.testing.assert_close(other.denominator, (y * torch.softmax(q / 4, 1)).sum(0))
