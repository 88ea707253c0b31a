"""How much of the bare networks' speed a whole run has: images a second of `cid distill`, beside those of a bare loop.

    python -m benches.throughput [--method kd] [--compile] [--rounds 5] [--out FILE.json]

The whole is what `cid distill` does from the first step of an epoch to its end: batches drawn and augmented, the step
with its method's loss, losses watched, the validation images scored, the checkpoint written. The bare loop has the same
networks in the same precision, compiled where they are: the teacher's forward, the student's forward and backward by
cross-entropy, and the optimizer's step, again and again on one batch on the device. Both take turns after every step
that the whole reports (each on a CPU, fifty elsewhere), so that a machine that grows slower or faster favours
neither; one epoch before is not counted. Images are random, as many as CIFAR-10 has for training and validation at
`--limit`.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cid.bench.hardware import hardware
from cid.train.config import Config, resolve
from cid.train.data import Dataset, Preprocessing, Split
from cid.train.folder import RunFolder
from cid.train.methods import Training
from cid.train.models import InputSpec, build_model
from cid.train.run.fabric import make_fabric
from cid.train.run.inputs import Inputs, cpu_threads
from cid.train.run.progress import Lines
from cid.train.run.runner import Network, Run
from cid.train.run.schedule import make_optimizer
from cid.train.run.signals import StopRequest

SPEC = InputSpec(3, (32, 32), 10)


def random_data(limit: int, validation: float) -> Dataset:
    """Random images, split as CIFAR-10's are."""

    def split(count: int) -> Split:
        images = torch.randint(256, (count, SPEC.channels, *SPEC.size), dtype=torch.uint8)
        return Split(images, torch.randint(SPEC.classes, (count,)))

    held = round(limit * validation)
    classes = tuple(map(str, range(SPEC.classes)))
    return Dataset(
        split(limit - held), split(held), split(64), classes, Preprocessing(255.0, (0.5,) * 3, (0.25,) * 3), {}
    )


class Bare:
    """Steps of the networks alone."""

    def __init__(self, config: Config, fabric: Fabric, *, asks: bool) -> None:
        self.fabric = fabric
        device, optim = fabric.device, config.optim
        self.batch = optim.batch_size
        self.x = torch.randn(self.batch, SPEC.channels, *SPEC.size, device=device)
        self.y = torch.randint(SPEC.classes, (self.batch,), device=device)
        self.student = build_model(config.models.student, SPEC).to(device)
        self.teacher = build_model(config.models.teacher, SPEC).to(device).eval() if asks else None
        self.optimizer = make_optimizer([{"params": list(self.student.parameters())}], optim)
        self.loss = torch.compile(self._loss, dynamic=False) if config.run.compile else self._loss

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            heard = 0.0 if self.teacher is None else 0 * self.teacher(x).sum()
        return nn.functional.cross_entropy(self.student(x), y) + heard

    def step(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        with self.fabric.autocast():
            loss = self.loss(self.x, self.y)
        loss.backward()
        self.optimizer.step()

    def now(self) -> float:
        """The time, once all is done that was asked for."""
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


class Turns(Lines):
    """After the steps that a run reports, as many of the bare networks, and how long these took in all."""

    def __init__(self, bare: Bare) -> None:
        self.bare, self.total, self.steps, self.seconds = bare, 0, 0, 0.0

    def start(self, name: str, total: int, done: int) -> None:
        """Hears how many there will be."""
        self.total = total

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Takes the turns of what was not reported by steps."""
        self.step(self.total - self.steps, 0.0)

    def step(self, count: int, loss: float) -> None:
        """Takes a turn."""
        began = self.bare.now()
        for _ in range(count):
            self.bare.step()
        self.seconds += self.bare.now() - began
        self.steps += count


class Whole:
    """Epochs of a method as `cid distill` has them."""

    def __init__(self, config: Config, fabric: Fabric, method: str, data: Dataset, folder: Path) -> None:
        self.method = method
        self.run = Run(Inputs(config, fabric, data), RunFolder(folder), Lines(), StopRequest())
        student, teacher = (
            build_model(name, SPEC).to(fabric.device) for name in (config.models.student, config.models.teacher)
        )
        self.training = Training(config.method.options(method), self.run.ingredients(student, teacher))

    def epoch(self, number: int, bare: Bare) -> tuple[float, float]:
        """Images a second of one more epoch, and of the bare networks within it."""
        self.run.observer = turns = Turns(bare)
        # Each in a folder of its own, from its own first step: what is compiled serves all.
        network = Network(self.method, number, self.run.config.models.student, 1)
        began = bare.now()
        self.run.train(network, self.training)
        seconds = bare.now() - began - turns.seconds
        return len(self.run.data.train) / seconds, turns.steps * bare.batch / turns.seconds


def measure(config: Config, method: str, rounds: int, limit: int) -> dict[str, Any]:
    """The rates of each round, and the median of their ratios."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, cpu_threads(config.run.threads):
        fabric = make_fabric(config)
        data = random_data(limit, 0.1).to(fabric.device)
        whole = Whole(config, fabric, method, data, Path(folder))
        bare = Bare(config, fabric, asks=method != "labels")
        pairs = [whole.epoch(number, bare) for number in range(rounds + 1)][1:]
    ratios = [one / other for one, other in pairs]
    return {
        "method": method,
        "teacher": config.models.teacher if method != "labels" else None,
        "student": config.models.student,
        "precision": config.run.precision,
        "compile": config.run.compile,
        "threads": torch.get_num_threads() if config.run.threads is None else config.run.threads,
        "batch": config.optim.batch_size,
        "images": len(data.train),
        "whole": [round(one, 1) for one, _ in pairs],
        "bare": [round(other, 1) for _, other in pairs],
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", help="labels: the student alone (default: labels kd cid)")
    parser.add_argument("--precision", action="append", help="(default: 32-true bf16-mixed)")
    parser.add_argument("--teacher", default="wrn-16-2")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=10000, help="images of an epoch, those for validation included")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args(arguments)
    rows = []
    for precision in options.precision or ["32-true", "bf16-mixed"]:
        for method in options.method or ["labels", "kd", "cid"]:
            config = resolve(
                {
                    "data.name": "cifar10",
                    "data.dir": ".",
                    "models.teacher": options.teacher,
                    "models.student": options.student,
                    "method.warmup_epochs": 0,
                    "optim.lr": 1e-4,  # of noise nothing is to be learned
                    "run.precision": precision,
                    "run.compile": options.compile,
                    "run.device": options.device,
                    "run.threads": options.threads,
                }
            )
            row = measure(config, method, options.rounds, options.limit)
            rows.append(row)
            middle = {name: statistics.median(row[name]) for name in ("whole", "bare")}
            print(
                f"{precision} {method}: {middle['whole']:.0f} images/s, bare {middle['bare']:.0f}, "
                f"ratio {row['ratio']:.3f} ({min(row['ratios']):.3f}..{max(row['ratios']):.3f})",
                flush=True,
            )
    if options.out:
        content = {"hardware": hardware(), "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
