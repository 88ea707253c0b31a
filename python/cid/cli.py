"""The command `cid`.

Options are parsed with the standard library alone; what a command needs is imported when it runs, so that `cid --help`
is quick and a missing extra is answered with what to install.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cid._errors import ConfigError, InterruptedRunError, RunError
from cid.bench import command as bench
from cid.train.config import read_toml, resolve
from cid.train.evaluation import command as evaluation
from cid.train.finetune import command as finetune
from cid.train.methods import registry
from cid.train.options import add_settings, given_settings
from cid.train.ship import EXPORTS
from cid.train.ship import command as predict
from cid.train.study import command as study

SECONDS_FOR_OTHERS = 3.0
SECONDS_FOR_LAUNCHER = 20.0  # our own, which ends all that it started, and says why
Subparsers = Any  # argparse's own class for this is private


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: what follows `cid`; those of the process by default.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="cid", description="Comprehensive, interventional knowledge distillation.")
    parser.add_argument("--version", action="version", version=f"cid {version('cid-distill')}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for register in COMMANDS:
        register(subparsers)
    options = parser.parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code: int = options.run(options)
    except RunError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _fail(f'{package} is missing: pip install "cid-distill[{EXTRAS[package]}]"', 2)
    except RuntimeError as error:
        from cid.train.run.launch import has_launcher, is_of_another

        if not is_of_another(error):
            raise
        # In which this one is ended, too, unless that was on another machine.
        time.sleep(SECONDS_FOR_LAUNCHER if has_launcher() else SECONDS_FOR_OTHERS)
        why = str(error).partition("\n")[0]
        return _fail(f"another process of the run has ended, or can't be reached: {why}", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return code


# Which extra brings what, as imported.
EXTRAS = {
    **dict.fromkeys(
        ("PIL", "jinja2", "lightning_fabric", "matplotlib", "rich", "safetensors", "scipy", "sklearn", "tomli_w"),
        "train",
    ),
    **dict.fromkeys(("lightning", "mlflow", "tensorboard", "wandb"), "loggers"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    **dict.fromkeys(("cv2", "imagecorruptions", "numba", "skimage"), "corruptions"),
    **dict.fromkeys(("datasets", "torchvision"), "data"),
}


def _fail(message: str, code: int) -> int:
    """Says what is wrong; of several processes one does, the first if it is wrong there, too."""
    rank = int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0
    if rank:
        time.sleep(SECONDS_FOR_OTHERS)  # its launcher ends this one when the first ends
    print(f"cid: error{f' on rank {rank}' if rank else ''}: {message}", file=sys.stderr)
    return code


# --- cid distill ---------------------------------------------------------------------------------------------------


def _register_distill(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "distill",
        help="train a teacher, and students by several methods; print a table",
        description="Trains a teacher, then students by several methods, and prints a table that compares them. "
        "Without options: scikit-learn's digits, in a few minutes.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings; options go over it")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="new folder of the run (default: runs/TIME-DATA)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run, as it was set up")
    add_settings(parser)
    parser.set_defaults(run=_distill)


def _distill(options: argparse.Namespace) -> int:
    from cid.train.distillation import open_run
    from cid.train.folder import RunFolder
    from cid.train.results import table
    from cid.train.run.launch import follow_launcher, launch, launched
    from cid.train.run.progress import Silent, make_observer
    from cid.train.run.runner import distill

    given, config = given_settings(options), None
    if options.resume is None:
        config = resolve(given, read_toml(options.config) if options.config else None)
    elif other := [*(given.keys() - {"run.devices"}), *(name for name in ("config", "out") if getattr(options, name))]:
        raise ConfigError(
            f"--resume: goes on as the run was set up, accepted: no other option but --devices, got {', '.join(other)}"
        )
    if launched() is None:
        processes = given.get("run.devices") or (config or RunFolder(options.resume).config()).run.devices
        if processes > 1:
            return launch(processes, options.arguments)
    follow_launcher()
    inputs, folder = open_run(config, options.out, options.resume)
    first = inputs.ranks.first
    if first:
        print("".join(f"{line}\n" for line in inputs.said), end="")
        print(table.data_line(inputs.data.summary), flush=True)
        if config is not None and config.run.precision == "auto":
            print(f"Precision: {inputs.config.run.precision} (measured)", flush=True)
    try:
        with make_observer() if first else Silent() as observer:
            results = distill(inputs, folder, observer)
    except (InterruptedRunError, KeyboardInterrupt) as error:
        code = error.exit_code if isinstance(error, InterruptedRunError) else 130
        if first:
            print(f"cid: interrupted; go on with: cid distill --resume {folder.path}", file=sys.stderr)
        return code
    if not first:
        return 0
    print(f"\n{table.table(results)}\n")
    print(_closing(folder.path, inputs.config.method.methods[-1], inputs.config.run.seeds[0]))
    return 0


def _closing(folder: Path, method: str, seed: int) -> str:
    student = folder / f"{method}-seed{seed}"
    return (
        f"Run folder: {folder} (table, curves.png, metrics.jsonl, config.toml, data.json)\n"
        f'Load a student: from cid.train import load_student; student = load_student("{student}")'
    )


# --- cid cache -----------------------------------------------------------------------------------------------------

CACHE_SETTINGS = (
    "data",
    "models.teacher",
    "models.teacher_checkpoint",
    "models.pretrained",
    "models.pretrained_dir",
    "models.teacher_inputs",
    "models.teacher_size",
    "optim.teacher_epochs",
    "optim.batch_size",
    "method.temperature",
    "run.device",
    "run.threads",
)


def _register_cache(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "cache",
        help="run a teacher once over the training images and keep its outputs",
        description="Keeps a teacher's features and logits for --views augmented views of each training image; "
        "cid distill --teacher-cache reads them in place of running the teacher. After a kill the same command goes "
        "on where it was.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings, as a run's config.toml")
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="folder of the cache")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="type on disk (%(default)s)")
    parser.add_argument("--top-k", type=int, metavar="INT", help="keep this many logits of each sample (default: all)")
    add_settings(parser, CACHE_SETTINGS)
    parser.set_defaults(run=_cache)


def _cache(options: argparse.Namespace) -> int:
    from cid.train.run.runner import cache_teacher

    config = resolve(given_settings(options), read_toml(options.config) if options.config else None)
    try:
        cache = cache_teacher(
            config,
            options.out,
            dtype=options.dtype,
            top_k=options.top_k,
            progress=lambda done, total: print(f"shard {done} of {total}", flush=True),
        )
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on where it was", 130)
    layout = cache.layout
    size = layout.samples * layout.views * layout.sample_bytes
    views = f"{layout.views} view{'s' * (layout.views > 1)}"
    print(
        f"{options.out}: {layout.samples:,} samples in {views}, {layout.sample_bytes} bytes each, "
        f"{size / 1e6:.1f} MB\nUse it with: cid distill --teacher-cache {options.out}, and the same data and teacher"
    )
    return 0


# --- cid transfer --------------------------------------------------------------------------------------------------


def _register_transfer(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "transfer",
        help="probe saved networks' representations on other data",
        description="Fits a linear classifier of each network's representations, which stay as they are, to other "
        "data, and prints how well it tells that: what a network has learned beyond its own classes. Images are "
        "brought to the size and the channels that the networks were trained for.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--to", dest="data.name", required=True, metavar="DATA", help="as --data of cid distill")
    parser.add_argument("--method", choices=tuple(registry()), help="only students of this method")
    parser.add_argument("--seed", type=int, help="only the students of this seed")
    add_settings(
        parser,
        [
            "data.dir",
            "data.classes",
            "data.resize",
            "data.limit",
            "data.limit_test",
            "data.validation",
            "data.split_seed",
            "data.rho",
        ],
    )
    parser.set_defaults(run=_transfer)


def _transfer(options: argparse.Namespace) -> int:
    from cid.train.data import load_dataset
    from cid.train.folder import RunFolder
    from cid.train.results import table
    from cid.train.transfer import NOTES, transfer

    folder = RunFolder(options.folder)
    folder.students(options.method, options.seed)  # before the data, which takes longer
    data = load_dataset(resolve(given_settings(options)).data)
    parts = f"{len(data.train):,} to fit to, {len(data.validation):,} to choose by, {len(data.test):,} to test on"
    print(f"Images: {parts}", flush=True)
    results = transfer(folder, data, options.method, options.seed, lambda line: print(line, flush=True))
    print(f"\n{table.table(results, NOTES)}")
    return 0


# --- cid report ----------------------------------------------------------------------------------------------------


def _register_report(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="show runs as one HTML page",
        description="Writes finished runs as one HTML page that loads nothing: table, curves, confusion, what the "
        "intervention mixes, and the decisions that it changed.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="HTML file (default with one run: RUN/report.html)")
    parser.add_argument("--data-dir", metavar="FOLDER", help="where the data set is now, if it was moved")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from cid.train.results.page import write_page

    page = write_page(
        options.folders,
        options.out,
        data_dir=options.data_dir,
        scoring=lambda name: print(f"scoring {name}", file=sys.stderr),
    )
    print(f"Report: {page}")
    return 0


# --- cid export ----------------------------------------------------------------------------------------------------


def _register_export(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a saved student as ONNX, torch.export or safetensors",
        description="Writes a run's student to one file for where this package is not: the head is folded into the "
        "classifying layer. onnx and torch map images, float32 (batch, channels, height, width) with values in 0..1, "
        "to logits: for batches of any size, and they normalise by themselves. safetensors is the weights, for "
        "cid.train.load_student or for your own code, which has to normalise. Each file describes itself (classes, "
        "normalisation) in JSON: the metadata 'json' of ONNX and safetensors, the extra file 'description.json' of "
        "torch.export.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--to", choices=EXPORTS, required=True, help="onnx needs the extra cid-distill[onnx]")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="new file (default: RUN/METHOD-seedN, with its suffix)"
    )
    parser.add_argument("--method", choices=tuple(registry()), default="cid", help="whose student (default: cid)")
    parser.add_argument("--seed", type=int, help="of which seed (default: the first)")
    parser.add_argument(
        "--no-head", action="store_false", dest="head", help="cid: predict with the student's own logits"
    )
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from cid.train.folder import RunFolder
    from cid.train.ship.export import export_student

    written = export_student(
        RunFolder(options.folder),
        to=options.to,
        method=options.method,
        seed=options.seed,
        head=options.head,
        out=options.out,
    )
    print(written)
    return 0


COMMANDS: tuple[Callable[[Subparsers], None], ...] = (
    _register_distill,
    finetune.register,
    _register_cache,
    evaluation.register,
    _register_transfer,
    _register_report,
    _register_export,
    predict.register,
    study.register,
    bench.register,
)

if __name__ == "__main__":
    sys.exit(main())
