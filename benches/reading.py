"""What it costs to read images as they are needed: images a second, and the most memory that was ever held.

    python -m benches.reading FOLDER [--workers 0 1 2] [--limit N] [--out FILE.json]
    python -m benches.reading --made 20000 --made 200000 [--workers 1]

The first is of a folder of images, as `cid distill --data` takes it. A row has the images read whole into memory, or as
they are needed by so many processes: how long it takes until the data is open, the images a second of an epoch that is
only read (batches made and augmented, no network), of one in which a student is trained by `kd`, and the largest
resident set of the run and of a worker. Each row is of a process of its own; what it takes to start workers is in
neither rate.

The second makes images of 16 x 16 as they are asked for, so many one after the other in one process: what is held for
each image shows as growth of the peak.
"""

import argparse
import contextlib
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cid.bench.hardware import hardware
from cid.train.config import Config, resolve
from cid.train.data import Batches, Split
from cid.train.data.images import PHOTOGRAPHS
from cid.train.data.stored.images import Storage, StoredImages
from cid.train.data.stored.views import Views

MIB = 2**20
IN_MEMORY = "memory"


def peak() -> float:
    """The largest resident set of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB


def peak_of_workers(split: Split) -> float | None:
    """That of the largest of the processes that read a split; None where there are none, or where nobody says."""
    loader: Any = split.kept.storage.readers._loader if isinstance(split.kept, StoredImages) else None
    files = [Path(f"/proc/{worker.pid}/status") for worker in loader._iterator._workers] if loader is not None else []
    lines = [line.split() for file in files if file.is_file() for line in file.read_text().splitlines()]
    return max((int(words[1]) * 1024 / MIB for words in lines if words[:1] == ["VmHWM:"]), default=None)


# --- a folder --------------------------------------------------------------------------------------------------------


def config_of(options: argparse.Namespace, workers: str) -> Config:
    """The configuration of a row."""
    kept = workers == IN_MEMORY
    return resolve(
        {
            "data.name": str(options.folder),
            "data.memory": 1e6 if kept else 0.0,
            "data.workers": 0 if kept else int(workers),
            "data.limit": options.limit,
            "data.limit_test": 100,
            "models.teacher": options.teacher,
            "models.student": options.student,
            "optim.epochs": 1,
            "optim.batch_size": options.batch_size,
            "optim.lr": 0.01,
            "run.device": options.device,
            "run.threads": options.threads,
        }
    )


def row_of(options: argparse.Namespace, workers: str) -> dict[str, Any]:
    """Reads an epoch, then trains in one."""
    # Here, as workers import what is above.
    from cid.train.folder import RunFolder
    from cid.train.methods import Training
    from cid.train.models import build_model
    from cid.train.run.inputs import Inputs, cpu_threads
    from cid.train.run.progress import Lines
    from cid.train.run.runner import Network, Run
    from cid.train.run.signals import StopRequest

    config = config_of(options, workers)
    began = time.perf_counter()
    inputs = Inputs.load(config)
    opened = time.perf_counter() - began
    data, device = inputs.data, inputs.fabric.device
    with tempfile.TemporaryDirectory() as folder, cpu_threads(config.run.threads):
        run = Run(inputs, RunFolder(Path(folder)), Lines(), StopRequest())
        student, teacher = (build_model(name, inputs.spec).to(device) for name in (options.student, options.teacher))
        training = Training(config.method.options("kd"), run.ingredients(student, teacher.eval()))
        next(run.batches(data.train, 1).epoch(0))  # workers start
        began = time.perf_counter()
        for batch in run.batches(data.train, 0).epoch(0):
            last = batch.inputs
        last.sum().item()  # a device may still be at it
        read = time.perf_counter() - began
        began = time.perf_counter()
        run.train(Network("kd", 0, options.student, 1), training)
        trained = time.perf_counter() - began
    workers_peak = peak_of_workers(data.train)
    return {
        "kept": IN_MEMORY if workers == IN_MEMORY else "files",
        "workers": None if workers == IN_MEMORY else int(workers),
        "images": len(data.train),
        "size": list(data.size),
        "seconds_to_open": round(opened, 2),
        "read": round(len(data.train) / read, 1),
        "run": round(len(data.train) / trained, 1),
        "peak_mib": round(peak(), 1),
        "worker_peak_mib": None if workers_peak is None else round(workers_peak, 1),
    }


# --- images that are made --------------------------------------------------------------------------------------------


class Made:
    """Images that are drawn as they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(np.full((16, 16, 3), index % 256, np.uint8))

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return str(self._count)


def made(count: int, workers: int) -> dict[str, Any]:
    """An epoch of so many images."""
    storage = Storage.open([Made(count)], Views(), (3, 16, 16), workers=workers)
    split = Split(storage.images(0), torch.arange(count) % 10)
    batches = Batches(split, PHOTOGRAPHS, batch_size=250, pad=2, flip=True, seed=0)
    total, seen = 0, 0
    began = time.perf_counter()
    for batch in batches.epoch(0):
        total += int(batch.indices.sum())
        seen += len(batch.target)
    seconds = time.perf_counter() - began
    if (seen, total) != (count, count * (count - 1) // 2):
        raise RuntimeError(f"{seen} images were read, expected each of {count} once")
    workers_peak = peak_of_workers(split)
    storage.readers.close()
    return {
        "made": count,
        "workers": workers,
        "read": round(count / seconds, 1),
        "peak_mib": round(peak(), 2),
        "worker_peak_mib": None if workers_peak is None else round(workers_peak, 2),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--made", action="append", type=int, default=[], help="so many images that are made")
    parser.add_argument("--workers", nargs="+", default=None, help="memory, or numbers (default: memory 0 1 2)")
    parser.add_argument("--limit", type=int, help="images, those for validation included")
    parser.add_argument("--teacher", default="cnn-16")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        print(json.dumps(row_of(options, options.workers[0])))
        return
    given = list(sys.argv[1:] if arguments is None else arguments)
    rows = [made(count, int(workers)) for workers in options.workers or ["1"] for count in options.made]
    for row in rows:
        print(json.dumps(row), flush=True)
    for workers in options.workers or [IN_MEMORY, "0", "1", "2"] if options.folder else ():
        command = [sys.executable, "-m", "benches.reading", *given, "--row", "--workers", workers]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        # Workers import what they read, and not the script that runs.
        importlib.import_module("benches.reading").main()
