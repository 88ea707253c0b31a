"""The benches of whole steps: what they compare computes the same, and they report it."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cid
from benches import published_loops, step
from cid import functional as F
from tests import draws

F64 = torch.float64


def outputs(rows: int = 13) -> tuple[Tensor, ...]:
    f, s = torch.randn(rows, 3, dtype=F64).requires_grad_(), torch.randn(rows, 4, dtype=F64).requires_grad_()
    t, q = torch.randn(rows, 5, dtype=F64), torch.randn(rows, 4, dtype=F64)
    return f, s, t, q, torch.randint(4, (rows,))


@pytest.mark.parametrize("rows", [13, 1])
def test_the_loops_compute_the_terms(rows: int) -> None:
    f, _, t, q, y = outputs(rows)
    ours, theirs = F.class_loss(f, t, y), published_loops.class_(f, t, y, 4)
    torch.testing.assert_close(theirs, ours)
    if rows > 1:
        torch.testing.assert_close(torch.autograd.grad(theirs, f), torch.autograd.grad(ours, f))
    sums = [(torch.zeros(4, 3, dtype=F64), torch.zeros(4, dtype=F64)) for _ in range(2)]
    published_loops.gather(f.detach(), q, y, *sums[0])
    F.accumulate_context(f.detach(), F.context_weights(q, y), y, *sums[1])
    torch.testing.assert_close(sums[0], sums[1])


def test_the_criterion_in_loops_is_the_criterion() -> None:
    f, s, t, q, y = outputs()
    results = []
    for name in step.CRITERIA:
        draws.seed(0)
        criterion = step.criterion(name, 3, 5, 4).double()
        criterion.bank.context.copy_(torch.randn(4, 3, dtype=F64))
        out = criterion(f, s, t, q, y)
        grads = torch.autograd.grad(out.loss, [f, s, *criterion.parameters()])
        bank = criterion.bank.numerator, criterion.bank.denominator
        results.append((*(value.detach() for value in out if value is not None), *grads, *bank))
    torch.testing.assert_close(results[0], results[1])


def test_plain_distillation_is_cid_without_its_own_terms() -> None:
    _, s, _, q, y = outputs()
    expected = torch.nn.functional.cross_entropy(s, y) + cid.KDLoss()(s, q)
    torch.testing.assert_close(step.plain(s, q, y), expected)


def test_a_loop_clock_waits_before_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda: log.append("wait"))
    monkeypatch.setitem(step.CALLS, "cuda", 2)
    (seconds,) = step.LoopClock("cuda").times([lambda i: log.append("call")], 0)
    assert log == ["wait", "call", "call", "wait"]
    assert seconds > 0


def test_steps_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    arguments = f"--batch 3 --student cnn-2 --teacher resnet8 --classes 4 --seconds 0.001 --out {out}"
    step.main(arguments.split())
    (row,) = json.loads(out.read_text())["rows"]
    for kind in ("step", "loss"):
        assert set(row[kind]) == {"kd", "cid", "published"}
        assert all(timing["median"] > 0 for timing in row[kind].values())
    assert row["cid_step_over_kd"] == pytest.approx(row["step"]["cid"]["median"] / row["step"]["kd"]["median"])
    assert f"published loss / cid loss {row['published_loss_over_cid']:.1f}" in capsys.readouterr().out


def test_steps_train() -> None:
    options = Namespace(device="cpu", student="cnn-2", teacher="resnet8", classes=4)
    for call in step.steps(options, 3).values():
        call(0)


def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        step.main(["--device", "cuda"])
    assert "--device: got cuda, accepted: cpu" in capsys.readouterr().err
