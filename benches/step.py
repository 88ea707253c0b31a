"""Whole training steps: plain distillation, CID, and CID in the loops in which it was published.

    python -m benches.step [--device cuda] [--batch 64 --batch 1024] [--out FILE.json]

A step is both forwards, the loss, the backward and the optimizer, on random images of 3 x 32 x 32. "Loss alone" goes
from the models' outputs to the gradients of all that the loss reaches. The numbers are those of a loop, by the clock on
the wall: some calls, then a wait for the device, divided by how many they were. So they hold what the host waits for.
On a GPU also how long the host takes to queue a call on an idle device, and how often a call waits for the device; the
turn of the context bank at an epoch's end too.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cid
from benches.published_loops import PublishedLoops
from cid.bench import eager
from cid.bench.hardware import hardware
from cid.bench.report import write_json
from cid.bench.timing import Call, interleaved, queueing
from cid.train.models import InputSpec, build_model

CRITERIA = {"cid": cid.CIDLoss, "published": PublishedLoops}
CALLS = {"cpu": 1, "cuda": 20}
"""How many make a sample."""


class LoopClock:
    """For calls as a training loop makes them: the host runs ahead of the device, where nothing holds it up."""

    def __init__(self, device: str) -> None:
        self.calls = CALLS[device]
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def times(self, calls: Sequence[Call], i: int) -> list[float]:
        """See `cid.bench.timing.Clock`."""
        seconds = []
        for call in calls:
            self.wait()
            start = time.perf_counter()
            for _ in range(self.calls):
                call(i)
            self.wait()
            seconds.append((time.perf_counter() - start) / self.calls)
        return seconds


def plain(s: Tensor, q: Tensor, y: Tensor) -> Tensor:
    """Plain distillation's loss, with this package's kd."""
    return F.cross_entropy(s, y) + cid.functional.kd_loss(s, q, temperature=eager.TEMPERATURE)


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The paper's optimizer."""
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def plain_step(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor) -> Call:
    """A step of plain distillation."""
    teacher.requires_grad_(False).eval()
    optimizer = sgd([{"params": list(student.parameters())}])

    def step(_: int) -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            q = teacher(x)
        plain(student(x), q, y).backward()
        optimizer.step()

    return step


def cid_step(name: str, student: nn.Module, teacher: nn.Module, classes: int, x: Tensor, y: Tensor) -> Call:
    """A step of CID after its warm-up, with one of `CRITERIA`."""
    distiller = cid.Distiller(student, teacher, num_classes=classes, beta=eager.BETA, gamma=1.0, warmup_epochs=0)
    adapter = distiller.criterion.adapter
    distiller.criterion = criterion(name, adapter.in_features, adapter.out_features, classes).to(x.device)
    optimizer = sgd(distiller.train().param_groups(5e-4))

    def step(_: int) -> None:
        optimizer.zero_grad()
        distiller(x, y).loss.backward()
        optimizer.step()

    return step


def criterion(name: str, student_dim: int, teacher_dim: int, classes: int) -> cid.CIDLoss:
    """One of `CRITERIA`, after its warm-up, with the paper's weights for WRN-40-2 to WRN-16-2."""
    return CRITERIA[name](student_dim, teacher_dim, classes, beta=eager.BETA, gamma=1.0, warmup_epochs=0)


def steps(options: argparse.Namespace, batch: int) -> dict[str, Call]:
    """The contenders of whole steps, each with models of its own that start with the same weights."""
    spec = InputSpec(3, (32, 32), options.classes)

    def models() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        student, teacher = (build_model(name, spec).to(options.device) for name in (options.student, options.teacher))
        return student, teacher

    x, y = torch.randn(batch, 3, 32, 32), torch.randint(options.classes, (batch,))
    x, y = x.to(options.device), y.to(options.device)
    contenders = {"kd": plain_step(*models(), x, y)}
    return contenders | {name: cid_step(name, *models(), options.classes, x, y) for name in CRITERIA}


def losses(options: argparse.Namespace, batch: int) -> dict[str, Call]:
    """The contenders of the loss alone, on random outputs of models of these sizes."""
    spec = InputSpec(3, (32, 32), options.classes)
    student_dim, teacher_dim = (_dim(build_model(name, spec)) for name in (options.student, options.teacher))
    with torch.device(options.device):
        f, s = torch.randn(batch, student_dim).requires_grad_(), torch.randn(batch, options.classes).requires_grad_()
        t, q = torch.randn(batch, teacher_dim), torch.randn(batch, options.classes)
        y = torch.randint(options.classes, (batch,))
        criteria = {name: criterion(name, student_dim, teacher_dim, options.classes) for name in CRITERIA}

    def whole(loss: cid.CIDLoss) -> Call:
        leaves = [f, s, *loss.parameters()]
        return lambda _: torch.autograd.grad(loss(f, s, t, q, y).loss, leaves)

    return {"kd": lambda _: torch.autograd.grad(plain(s, q, y), s)} | {k: whole(loss) for k, loss in criteria.items()}


def _dim(model: nn.Module) -> int:
    """The size of what the last linear layer reads."""
    return [layer.in_features for layer in model.modules() if isinstance(layer, nn.Linear)][-1]


def turns(options: argparse.Namespace, batch: int) -> dict[str, Call]:
    """The end of an epoch, when the contexts that it gathered replace those before."""
    criteria = {name: criterion(name, 128, 128, options.classes).to(options.device) for name in CRITERIA}

    def turn(loss: cid.CIDLoss) -> Call:
        return lambda _: loss.epoch_end()

    return {name: turn(loss) for name, loss in criteria.items()}


def waits(call: Call) -> int:
    """How often PyTorch waits for the CUDA device in a call that has run before."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call(0)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


def measure(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """A row: `step` and `loss`, seconds by contender, and the two ratios that the goals are about.

    On a GPU also `host`, seconds to queue a call, and `waits`, both by kind and contender.
    """
    row: dict[str, Any] = {key: getattr(options, key) for key in ("device", "student", "teacher", "classes")}
    row |= {"batch": batch, "calls": CALLS[options.device]}
    kinds: Mapping[str, Callable[[argparse.Namespace, int], dict[str, Call]]] = {"step": steps, "loss": losses}
    for kind, contenders in kinds.items():
        calls = contenders(options, batch)
        times = interleaved(calls, seconds=options.seconds, clock=LoopClock(options.device))
        row[kind] = {name: asdict(timing) for name, timing in times.items()}
        if options.device == "cuda":
            row.setdefault("host", {})[kind] = {name: queueing(call) for name, call in calls.items()}
            row.setdefault("waits", {})[kind] = {name: waits(call) for name, call in calls.items()}
    if options.device == "cuda":
        row["waits"]["turn"] = {name: waits(call) for name, call in turns(options, batch).items()}
    row["cid_step_over_kd"] = row["step"]["cid"]["median"] / row["step"]["kd"]["median"]
    row["published_loss_over_cid"] = row["loss"]["published"]["median"] / row["loss"]["cid"]["median"]
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(CALLS), default="cpu")
    parser.add_argument("--batch", type=int, action="append", help="default: 64 and 1024; repeatable")
    parser.add_argument("--student", default="wrn-16-2")
    parser.add_argument("--teacher", default="wrn-40-2")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0, help="for the steps of a batch, and for its losses")
    parser.add_argument("--out", type=Path, help="a file for the JSON")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, accepted: cpu (PyTorch sees no CUDA device)")
    where, rows = hardware(options.device), []
    print(", ".join(f"{key} {value}" for key, value in where.items() if value is not None))
    print("Medians in milliseconds.", "           " + "step".center(34) + "   " + "loss alone".center(34), sep="\n")
    names = ("kd", *CRITERIA)
    print(f"{'batch':>8}   " + "   ".join(" ".join(f"{name:>10}" for name in names) for _ in range(2)), flush=True)
    for batch in options.batch or (64, 1024):
        row = measure(options, batch)
        cells = (" ".join(f"{row[kind][name]['median'] * 1e3:10.3f}" for name in names) for kind in ("step", "loss"))
        print(f"{batch:8}   {'   '.join(cells)}   cid step / kd step {row['cid_step_over_kd']:.3f}, ", end="")
        print(f"published loss / cid loss {row['published_loss_over_cid']:.1f}", flush=True)
        for what, factor, unit in (("host", 1e6, "us to queue"), ("waits", 1, "waits for the device")):
            for kind, found in row.get(what, {}).items():
                listed = ", ".join(f"{name} {value * factor:.0f}" for name, value in found.items())
                print(f"{'':8}   {kind}: {listed} {unit}", flush=True)
        rows.append(row)
        if options.out:
            write_json(options.out, where, rows)


if __name__ == "__main__":
    main()
