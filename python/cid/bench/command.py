"""The options of `cid bench`, checked before anything is measured; parsed without importing PyTorch."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

from cid._errors import ConfigError
from cid.bench import plan


def register(subparsers: Any) -> None:
    """Adds the command to those of `cid`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure time, memory and accuracy of the losses against PyTorch",
        description="Measures each term, forward and backward, against eager and compiled PyTorch and against what no "
        "implementation can avoid. Without arguments: a selection of terms and sizes.",
        epilog="Terms and their sizes: " + "; ".join(f"{name}: {kind.axes}" for name, kind in plan.KINDS.items()),
    )
    parser.add_argument("terms", nargs="*", type=_term, metavar="TERM", help="terms to measure (default: all)")
    parser.add_argument("--accuracy", action="store_true", help="measure errors against float64, not time")
    parser.add_argument(
        "--preset", choices=plan.PRESET_NAMES, help="a set of rows (default without TERM or --size: goals)"
    )
    parser.add_argument(
        "--size", action="append", type=_size, metavar="SIZE", help="4096x1000 or B64-Ds128-Dt128-C100; repeatable"
    )
    parser.add_argument(
        "--dtype", action="append", choices=plan.DTYPES, help="default: float32, with --accuracy all; repeatable"
    )
    parser.add_argument(
        "--threads", action="append", type=_positive(int, "whole number"), metavar="N", help="repeatable"
    )
    parser.add_argument("--device", choices=tuple(plan.DEVICES), default="cpu", help="where (default: cpu)")
    parser.add_argument("--simd", action="append", choices=plan.TIERS, help="force a tier of the kernels; repeatable")
    parser.add_argument(
        "--seconds", type=_positive(float, "number"), default=5.0, metavar="S", help="time for a row (default: 5)"
    )
    parser.add_argument("--against", choices=plan.AGAINST, default="all", help="contenders (default: all there are)")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="count peak memory (default: yes)"
    )
    parser.add_argument(
        "--chart", action=argparse.BooleanOptionalAction, default=True, help="draw one (default: yes; needs matplotlib)"
    )
    parser.add_argument("--out", type=_out, metavar="PATH", help="FILE.json or a folder: JSON, and a chart beside it")
    parser.set_defaults(run=run)


def _term(name: str) -> str:
    if name not in plan.TERM_NAMES:
        raise argparse.ArgumentTypeError(f"got {name!r}, accepted: {', '.join(plan.TERM_NAMES)}")
    return name


def _size(written: str) -> plan.Size:
    try:
        return plan.parse(written)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(kind: Callable[[str], float], words: str) -> Callable[[str], float]:
    def read(written: str) -> float:
        try:
            value = kind(written)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"got {written!r}, accepted: a {words} above 0")
        return value

    return read


def _out(written: str) -> Path:
    path = Path(written)
    if path.suffix not in ("", ".json") and not path.is_dir():
        raise argparse.ArgumentTypeError(f"got {written!r}, accepted: a folder, or a file that ends in .json")
    return path


def run(options: argparse.Namespace) -> int:
    """Measures and reports, as the options ask.

    Raises:
        ConfigError: options that don't fit together, this machine or this build.
        ModuleNotFoundError: what draws the chart is missing.
    """
    _check_device(options)
    pairs = _pairs(options)
    destination = _destination(options)

    import torch

    from cid.bench.hardware import hardware
    from cid.bench.report import ERRORS, GPU_TIMES, TIMES, head, line, write_json
    from cid.bench.work import Measurements, check_tier

    _check_build()
    for tier in options.simd or ():
        check_tier(tier)
    threads = options.threads or [torch.get_num_threads()]
    dtypes = options.dtype or (plan.DTYPES if options.accuracy else plan.DTYPES[:1])
    cases = tuple(
        plan.Case(*pair, dtype, count, options.device) for count, dtype, pair in product(threads, dtypes, pairs)
    )
    measurements = Measurements(cases, options.accuracy, options.seconds, options.against, options.memory)
    where = hardware(options.device)
    kind = "accuracy" if options.accuracy else options.device
    columns = {"accuracy": ERRORS, "cpu": TIMES, "cuda": GPU_TIMES}[kind]
    print(", ".join(f"{key} {value}" for key, value in where.items() if value is not None))
    print(_LEGENDS[kind])
    print(head(columns), flush=True)
    measured = []
    tiers = [measurements.rows_at(tier) for tier in options.simd] if options.simd else [measurements.rows()]
    for rows in tiers:
        with closing(rows):
            for row in rows:
                print(line(columns, row), flush=True)
                measured.append(row)
                if destination:  # after each row, so that an interrupted bench leaves what it has
                    write_json(destination, where, measured)
    if destination and options.chart and not options.accuracy:
        from cid.bench.plot import plot

        plot(measured, destination.with_suffix(".png"))
    return 0


_LEGENDS = {
    "cpu": "Medians in microseconds; x floor = cid / floor; speed-up over the fastest other; then peak memory beyond "
    "inputs, outputs and gradients: cid, its resident pages, eager, compile.",
    "cuda": "Medians in microseconds on the device, cid host: to queue it; x floor = cid / floor; speed-up over the "
    "fastest other; GB/s of the bytes that must be moved, by cid and by a copy; then peak memory beyond inputs, "
    "outputs and gradients: cid, eager, compile, liger.",
    "accuracy": "Largest error over the largest true value, of the loss (or result) and of the gradients.",
}


def _check_device(options: argparse.Namespace) -> None:
    """Whether the device is there, and what the options ask of it."""
    if options.device == "cpu":
        if options.against == "liger":
            raise ConfigError("--against: got liger together with --device cpu, accepted: --device cuda")
        return
    for name in ("threads", "simd"):
        if given := getattr(options, name):
            raise ConfigError(f"--{name}: got {given[0]} together with --device cuda, accepted: --device cpu")

    import torch

    from cid.bench import liger

    if not torch.cuda.is_available():
        raise ConfigError("--device: got cuda, accepted: cpu (PyTorch sees no CUDA device)")
    if options.against == "liger" and not liger.installed():
        raise ConfigError("--against: liger needs Liger-Kernel: pip install liger-kernel")


def _pairs(options: argparse.Namespace) -> list[tuple[str, plan.Size]]:
    """Terms and sizes, as the options ask."""
    if options.accuracy and options.preset:
        raise ConfigError(f"--preset: got {options.preset} together with --accuracy, accepted: --size")
    preset = "accuracy" if options.accuracy and not options.size else options.preset
    return plan.chosen(options.terms, options.size or (), preset, options.device)


def _destination(options: argparse.Namespace) -> Path | None:
    """The file for the JSON; its folder is made."""
    path: Path | None = options.out
    if path is None:
        return None
    if options.chart and not options.accuracy:
        import matplotlib.figure  # noqa: F401  # if it is missing, that should be said before the measurement
    if path.suffix != ".json":
        path = path / ("accuracy.json" if options.accuracy else "bench.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _check_build() -> None:
    import cid._native as rust

    try:
        build = rust.build_info()
    except RuntimeError as error:  # the environment forces a tier that is none of this CPU's
        raise ConfigError(str(error)) from error
    if build["profile"] != "release":
        raise ConfigError(
            f"native module: got a {build['profile']} build, accepted: a release build (maturin develop --release)"
        )
