"""The Triton backend through the public functions: on a GPU where there is one, else in Triton's interpreter.

What only a GPU can show (no waiting for it, capture in a CUDA graph) is skipped without one.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import cid
import cid.functional as F
from cid import _checks
from cid.backends.options import KDOptions
from tests import bounds, draws
from tests.cases import IGNORE, TERMS, Term
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
on_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
BATCH, CLASSES, STUDENT, TEACHER = 9, 10, 12, 20


def moved(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(DEVICE) for x in inputs)


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_each_term_against_the_reference(term: Term, dtype: torch.dtype) -> None:
    inputs = term.draw(13, 37, dtype)
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    ours, truth = term.value_and_grad(moved(inputs), "triton"), term.value_and_grad(wide, "reference")
    bound = term.bound(*inputs)
    bounds.close(ours[0], truth[0], bound.value)
    bounds.close(ours[1], truth[1], bound.grad)


@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_criterion_against_the_reference(warm_up: bool, dtype: torch.dtype) -> None:
    results = []
    for backend, device, kind in (("triton", DEVICE, dtype), ("reference", "cpu", torch.float64)):
        draws.seed(0)
        step = Step(dtype, warmup_epochs=int(warm_up), backend=backend).to(device, kind)
        output = step.run()
        output.loss.backward()
        results.append(step.everything(output))
    f, s, t, q = (x.detach().cpu() for x in step.floats)
    loose = {
        "kd": bounds.kd(s, q, None, KDOptions(4.0, "forward", 0.5, IGNORE, "mean")).value,
        "class_": bounds.class_(f, t, step.labels.cpu(), IGNORE).value,
    }
    loose["loss"] = loose["kd"] + loose["class_"]
    for name, truth in results[1].items():
        # Of the largest of each tensor: some ten operations, and sums of up to twenty terms.
        bounds.close(
            results[0][name], truth, 16 * torch.finfo(dtype).eps * truth.abs().max() + loose.get(name, 0.0), name
        )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("target", ["labels", "smoothed", "shares"])
def test_types_and_targets_against_the_reference(half: torch.dtype, target: str) -> None:
    """A student in float32 beside a teacher in half precision, with each kind of target."""
    results = []
    for backend, device, kind in (("triton", DEVICE, torch.float32), ("reference", "cpu", torch.float64)):
        draws.seed(0)
        smoothing = 0.1 if target == "smoothed" else 0.0
        step = Step(torch.float32, warmup_epochs=0, label_smoothing=smoothing, backend=backend).to(device, kind)
        step.floats[2:] = [x.to(half) if backend == "triton" else x.to(half).double() for x in step.floats[2:]]
        if target == "shares":
            hot = (step.labels[:, None] == torch.arange(CLASSES, device=device)).float()
            step.labels = 0.7 * hot + 0.3 * hot.roll(1, 1)
        output = step.run()
        output.loss.backward()
        results.append(step.everything(output))
    for name, truth in results[1].items():
        atol = 16 * torch.finfo(torch.float32).eps * float(truth.abs().max())
        torch.testing.assert_close(results[0][name].cpu().double(), truth, rtol=0, atol=atol, msg=name)


class Step:
    """A criterion and a batch for it, the values those of `dtype`."""

    def __init__(self, dtype: torch.dtype, **options: Any) -> None:
        self.criterion = cid.CIDLoss(STUDENT, TEACHER, CLASSES, beta=10.0, gamma=1.0, **options)
        self.criterion.bank.context.copy_(draws.normal(CLASSES, STUDENT))
        with torch.no_grad():
            for x in (*self.criterion.parameters(), self.criterion.bank.context):
                x.copy_(x.to(dtype))
        sizes = (STUDENT, CLASSES, TEACHER, CLASSES)
        self.floats = [draws.normal(BATCH, size, dtype=dtype) for size in sizes]
        self.labels = torch.tensor([0, 1, 0, 1, 1, 2, IGNORE, 9, 9])

    def to(self, device: str, dtype: torch.dtype) -> "Step":
        self.criterion.to(device, dtype)
        self.floats = [x.to(device, dtype) for x in self.floats]
        for x in self.floats[:2]:
            x.requires_grad_()
        self.labels = self.labels.to(device)
        return self

    def run(self) -> cid.CIDOutput:
        output: cid.CIDOutput = self.criterion(*self.floats, self.labels)
        return output

    def everything(self, output: cid.CIDOutput) -> dict[str, Tensor]:
        found = {name: x.detach() for name, x in output._asdict().items() if x is not None}
        found |= {f"grad_{name}": x.grad for name, x in zip("fs", self.floats, strict=False) if x.grad is not None}
        found |= {f"grad_{name}": x.grad for name, x in self.criterion.named_parameters() if x.grad is not None}
        return found | dict(self.criterion.bank.named_buffers())


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_a_second_backward_and_another_factor(term: Term) -> None:
    inputs = term.draw(5, 12, torch.float32)
    student, *others = moved(inputs)
    student = student.clone().requires_grad_()
    loss = term.call(student, *others, backend="triton").sum()
    (once,) = torch.autograd.grad(loss, student, retain_graph=True)
    kept = once.clone()
    (thrice,) = torch.autograd.grad(3 * loss, student, retain_graph=True)
    (last,) = torch.autograd.grad(loss / 2, student)
    bounds.close(thrice, 3 * kept, 6 * term.bound(*inputs).grad)
    assert torch.equal(last, kept / 2)
    assert torch.equal(once, kept)


def test_autocast_computes_widely() -> None:
    s, q = draws.normal(5, 7, dtype=torch.bfloat16), draws.normal(5, 7, dtype=torch.bfloat16)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = F.kd_loss(s.to(DEVICE), q.to(DEVICE), backend="triton")
    assert loss.dtype == torch.float32
    bound = bounds.kd(s, q, None, KDOptions(4.0, "forward", 0.5, IGNORE, "mean"))
    bounds.close(loss, F.kd_loss(s.double(), q.double(), backend="reference"), bound.value)


def test_a_scaled_loss_in_float16_keeps_its_gradient() -> None:
    """As a GradScaler scales it: what the factor saves must not have been rounded to 0 before."""
    s = (draws.normal(64, 10) * 1e-3).half().to(DEVICE).requires_grad_()
    loss = F.kd_loss(s, s.detach() + 1e-3 * draws.normal(64, 10, dtype=torch.half).to(DEVICE), backend="triton")
    (2.0**16 * loss).backward()
    assert s.grad is not None
    assert s.grad.dtype == torch.float16
    assert (s.grad != 0).float().mean() > 0.9


def test_what_it_can_not_take_is_named() -> None:
    x = draws.normal(4, 5).to(DEVICE)
    with pytest.raises(RuntimeError, match=r"'triton' can't take this call: a tensor is torch.float64.*'reference'"):
        F.kd_loss(x.double(), x.double(), backend="triton")
    with pytest.raises(RuntimeError, match=r"torch.func transform; backend='reference' can"):
        torch.func.grad(lambda s: F.kd_loss(s, x, backend="triton"))(x)
    s = x.clone().requires_grad_()
    loss = F.kd_loss(s, x, backend="triton")
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend='reference' has"):
        torch.autograd.grad(loss, s, create_graph=True)
    with pytest.raises(ValueError, match=r"^teacher_logits: is on meta, accepted"):
        F.kd_loss(x, x.to("meta"), backend="triton")


def test_labels_on_a_device_can_be_asserted() -> None:
    """What `CID_CHECK_LABELS=1` does to a GPU's labels; on a CPU the same operation raises at once."""
    good = torch.tensor([0, 4, IGNORE])
    _checks.assert_labels("target", good, 5, IGNORE)
    _checks.assert_labels("target", good + 1000, None, IGNORE)
    for bad, classes in ((torch.tensor([0, 5]), 5), (torch.tensor([-1]), 5), (torch.tensor([-1]), None)):
        with pytest.raises(RuntimeError, match="target: a label is out of range"):
            _checks.assert_labels("target", bad, classes, IGNORE)


@on_gpu
def test_labels_out_of_range_count_as_ignored() -> None:
    q, y = draws.normal(3, 5).to(DEVICE), torch.tensor([1, 99, -7], device=DEVICE)
    assert (F.context_weights(q, y, backend="triton")[1:] == 0).all()


_IMPORTS = """
import sys
import torch, cid
cid.functional.kd_loss(torch.randn(3, 4), torch.randn(3, 4))
assert "triton" not in sys.modules, "imported triton"
try:
    cid.functional.kd_loss(torch.randn(3, 4), torch.randn(3, 4), backend="triton")
except RuntimeError as error:
    print(error)
"""


def test_triton_is_not_imported_without_need() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == (
        "backend 'triton' can't take this call: a tensor is on cpu, accepted: cuda; backend='reference' can"
    )


# --- On a GPU ------------------------------------------------------------------------------------------------------


@contextmanager
def _no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_step_never_waits_for_the_device(warmup: int) -> None:
    step = Step(torch.float32, warmup_epochs=warmup).to(DEVICE, torch.float32)
    optimizer = torch.optim.SGD(step.criterion.param_groups(5e-4), lr=0.05, momentum=0.9, nesterov=True)
    step.run().loss.backward()  # compiles
    with _no_waiting():
        for _ in range(3):
            optimizer.zero_grad()
            step.run().loss.backward()
            optimizer.step()
        step.criterion.epoch_end()
        step.run().loss.backward()


@on_gpu
@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_no_term_waits_for_the_device(term: Term) -> None:
    student, *others = moved(term.draw(64, 100, torch.float32))
    student.requires_grad_()
    call: Callable[[], Tensor] = lambda: term.call(student, *others, backend="triton").sum()  # noqa: E731
    call().backward()
    with _no_waiting():
        call().backward()


@on_gpu
def test_a_step_is_captured_in_a_graph() -> None:
    step = Step(torch.float32, warmup_epochs=0).to(DEVICE, torch.float32)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step.run().loss.backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    step.criterion.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        output = step.run()
        output.loss.backward()
    with torch.no_grad():
        for x in step.floats[:2]:
            x.copy_(draws.normal(*x.shape))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(output.loss, step.run().loss)
