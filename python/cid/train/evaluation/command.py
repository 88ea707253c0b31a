"""The command `cid eval`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cid._errors import ConfigError
from cid.train.methods import registry
from cid.train.settings import count_of

if TYPE_CHECKING:
    from cid.train.folder import RunFolder


def register(subparsers: Any) -> None:
    """Adds the command to those of `cid`."""
    parser = subparsers.add_parser(
        "eval",
        help="score saved students",
        description="Scores a run's saved students on its test data, and on its further tests; or, with --corruptions, "
        "its teacher and students on test images that something has happened to.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--method", choices=tuple(registry()), help="only students of this method")
    parser.add_argument("--seed", type=int, help="only the student of this seed")
    parser.add_argument("--data-dir", metavar="FOLDER", help="where the data set is now, if it was moved")
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="noise, blur, weather and compression at five strengths; needs the extra cid-distill[corruptions]",
    )
    parser.add_argument(
        "--limit-test", type=count_of, metavar="N", help="with --corruptions: only N of the test images"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON: beside accuracy and loss, each class's precision, recall and count, and the confusion matrix",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    from cid.train.folder import RunFolder, in_words
    from cid.train.scoring import score_students

    folder = RunFolder(options.folder)
    if options.corruptions and options.json:
        raise ConfigError("--json: given, accepted: not together with --corruptions, which writes corruptions.json")
    if options.corruptions:
        return _run_corruptions(folder, options)
    if options.limit_test is not None:
        raise ConfigError(f"--limit-test: got {options.limit_test}, accepted: none without --corruptions")
    if options.json:
        return _print_json(folder, options)
    score_students(
        folder,
        method=options.method,
        seed=options.seed,
        data_dir=options.data_dir,
        report_score=lambda name, scores: print(f"{name}: {in_words(scores)}"),
    )
    return 0


def _print_json(folder: RunFolder, options: argparse.Namespace) -> int:
    from cid.train.evaluation.per_class import measure

    found = measure(folder, method=options.method, seed=options.seed, data_dir=options.data_dir)
    print(json.dumps(found, indent=2))
    return 0


def _run_corruptions(folder: RunFolder, options: argparse.Namespace) -> int:
    from cid.train.evaluation import show
    from cid.train.evaluation.robustness import measure

    found = measure(
        folder,
        method=options.method,
        seed=options.seed,
        data_dir=options.data_dir,
        limit=options.limit_test,
        report=lambda line: print(line, flush=True),
    )
    picture = folder.path / "corruptions.png"
    show.plot(found, picture)
    print(f"\n{show.table(found)}\n\nEach corruption: {picture} and {picture.with_suffix('.json').name}")
    return 0
