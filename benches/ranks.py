"""Several processes beside one: what they compute, and what it costs that their batches are parts of one.

    python -m benches.ranks agree              # whole runs of 1, 2 and 4 processes beside that of one
    python -m benches.ranks cost --ranks 2     # a step of WRN-40-2 to WRN-16-2, 128 samples a rank, with and without

`cost` interleaves steps that exchange nothing, that average gradients (DistributedDataParallel), that also are parts of
one batch (`process_group`), and whose batch normalisation is over ranks, too, or of whose parameters each rank has a
part (FSDP2, in place of DistributedDataParallel): all ranks take each step at once, as what they share of the machine
counts for all kinds alike. Seconds hold what ranks wait for each other, those of the processor do not. A row is a JSON
line, with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import cid
from cid.bench.hardware import hardware
from cid.train.files import read_json_lines, read_tensors
from cid.train.models import InputSpec, build_model
from cid.train.run.batch_norm import over_ranks
from cid.train.sharding import own_part, shard

CLASSES = 100
KINDS = ("apart", "gradients", "one batch", "one batch and norms", "one batch in parts")


def make(kind: str, teacher: str, student: str) -> tuple[cid.Distiller, nn.Module]:
    torch.manual_seed(0)
    spec = InputSpec(3, (32, 32), CLASSES)
    group = dist.group.WORLD if kind.startswith("one batch") else None
    distiller = cid.Distiller(
        build_model(student, spec), build_model(teacher, spec), num_classes=CLASSES,
        beta=65.0, gamma=1.0, warmup_epochs=0, process_group=group,
    )  # fmt: skip
    if kind.endswith("norms"):
        over_ranks(distiller.student_model, torch.device("cpu"))
    if kind.endswith("parts"):
        shard(distiller, init_device_mesh("cpu", (dist.get_world_size(),)))
        return distiller, distiller
    return distiller, distiller if kind == "apart" else DistributedDataParallel(distiller)


def stepper(
    kind: str, options: argparse.Namespace
) -> tuple[cid.Distiller, Callable[[Tensor, Tensor], None], Callable[[], int]]:
    """A distiller, its step, and how many bytes of parameters, gradients and momentum a rank has after it."""
    distiller, wrapped = make(kind, options.teacher, options.student)
    optimizer = torch.optim.SGD(distiller.param_groups(5e-4), lr=0.01, momentum=0.9, nesterov=True)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        wrapped(x, y).loss.backward()
        optimizer.step()

    def kept() -> int:
        parameters = list(distiller.parameters())
        momentum = [value for state in optimizer.state.values() for value in state.values()]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        values = [value for value in (*parameters, *gradients, *momentum) if isinstance(value, Tensor)]
        return sum(own_part(value.detach()).nbytes for value in values)

    return distiller, step, kept


def work(rank: int, port: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=options.ranks)
    steppers = {kind: stepper(kind, options) for kind in KINDS}
    generator = torch.Generator().manual_seed(rank)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    processor: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round_ in range(options.rounds + 1):
        for kind, (_, step, _) in steppers.items():
            x = torch.randn(options.batch, 3, 32, 32, generator=generator)
            y = torch.randint(CLASSES, (options.batch,), generator=generator)
            dist.barrier()
            began, used = time.perf_counter(), time.process_time()
            step(x, y)
            dist.barrier()  # a step lasts until the slowest rank has done it
            if round_:
                seconds[kind].append(time.perf_counter() - began)
                processor[kind].append(time.process_time() - used)
    if rank == 0:
        kept = {kind: bytes_kept() for kind, (_, _, bytes_kept) in steppers.items()}
        across = steppers["one batch"][0].criterion.across
        assert across is not None
        report(options, seconds, processor, kept, across.received, steppers["apart"][0])
    dist.destroy_process_group()


def report(
    options: argparse.Namespace,
    seconds: dict[str, list[float]],
    processor: dict[str, list[float]],
    kept: dict[str, int],
    received: int,
    distiller: cid.Distiller,
) -> None:
    trained = sum(parameter.numel() for parameter in distiller.parameters() if parameter.requires_grad)
    row = {
        "what": "cost",
        "pair": f"{options.teacher} to {options.student}",
        "ranks": options.ranks,
        "batch a rank": options.batch,
        "rounds": options.rounds,
        "seconds": {kind: statistics.median(each) for kind, each in seconds.items()},
        "over apart": over_apart(seconds),
        "processor seconds": {kind: statistics.median(each) for kind, each in processor.items()},
        "processor over apart": over_apart(processor),
        "bytes of parameters, gradients, momentum": kept,
        "bytes received a step": received,
        "bytes of gradients": 2 * (options.ranks - 1) * 4 * trained // options.ranks,
    }
    print(json.dumps({**row, **hardware()}))


def over_apart(values: dict[str, list[float]]) -> dict[str, float]:
    """How much more than apart: of each round by itself, as other work on the machine slows all of it alike."""
    apart = values["apart"]
    return {
        kind: statistics.median(other / one for other, one in zip(each, apart, strict=True)) - 1
        for kind, each in values.items()
    }


def cost(options: argparse.Namespace) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    spawn(work, args=(port, options), nprocs=options.ranks)


def agree(options: argparse.Namespace) -> None:
    """50 steps and more of each network: of 1,000 digits, 900 to train on, 15 batches of 64 an epoch."""
    settings = [
        *("--limit", "1000", "--teacher", "cnn-16", "--student", "cnn-8", "--epochs", "4", "--teacher-epochs", "2"),
        *("--schedule", "cosine", "--lr", "0.02", "--seeds", "0", "--methods", "labels", "kd", "cid", "cid-ipw"),
        *("--device", "cpu", "--pad", "1", "--precision", options.precision),
    ]
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "1"
        for ranks in (1, 2, 4):
            out = Path(folder) / str(ranks)
            began = time.perf_counter()
            command = [sys.executable, "-m", "cid", "distill", *settings, "--out", str(out), "--devices", str(ranks)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
            took = time.perf_counter() - began
            losses, accuracies = compared(out, one)
            print(json.dumps({
                "what": "agree",
                "precision": options.precision,
                "ranks": ranks,
                "seconds with start": took,
                "seconds of training": sum(json.loads(x.read_text())["seconds"] for x in out.glob("*/result.json")),
                "largest relative difference of a loss": losses,
                "largest difference of an accuracy": accuracies,
                "largest difference of a weight": weights(out, one),
                **hardware(),
            }), flush=True)  # fmt: skip


def compared(out: Path, one: Path) -> tuple[float, float]:
    """How far the metrics of any epoch of any network are from those of one process: losses, accuracies."""
    losses, accuracies = [0.0], [0.0]
    for line, other in zip(*(read_json_lines(each / "metrics.jsonl") for each in (out, one)), strict=True):
        for name, value in line.items():
            if name.endswith("accuracy"):
                accuracies.append(abs(value - other[name]))
            elif isinstance(value, float) and name != "lr":
                losses.append(abs(value - other[name]) / max(abs(other[name]), 1e-12))
    return max(losses), max(accuracies)


def weights(out: Path, one: Path) -> float:
    """How far any value that is saved is from that of one process."""
    furthest = 0.0
    for name in ("teacher.safetensors", "student.safetensors"):
        for file in one.glob(f"*/{name}"):
            found, expected = (read_tensors(each / file.relative_to(one))[0] for each in (out, one))
            furthest = max(furthest, *(float((found[key] - expected[key]).abs().max()) for key in expected))
    return furthest


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(required=True)
    agreeing = subparsers.add_parser("agree")
    agreeing.add_argument("--precision", default="32-true", choices=("32-true", "64-true"))
    agreeing.set_defaults(run=agree)
    costing = subparsers.add_parser("cost")
    costing.add_argument("--ranks", type=int, default=2)
    costing.add_argument("--batch", type=int, default=128)
    costing.add_argument("--rounds", type=int, default=10)
    costing.add_argument("--teacher", default="wrn-40-2")
    costing.add_argument("--student", default="wrn-16-2")
    costing.set_defaults(run=cost)
    options: Any = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
