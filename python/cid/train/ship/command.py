"""The command `cid predict`."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cid.train.settings import count_of

if TYPE_CHECKING:
    from cid.train.ship.predict import Prediction


def register(subparsers: Any) -> None:
    """Adds the command to those of `cid`."""
    parser = subparsers.add_parser(
        "predict",
        help="classes and probabilities of images, by a saved student",
        description="Prints what a student says of each image: the most likely classes and their probabilities. Images "
        "are brought to the size that it was trained for. One that can't be read is said so, and the exit code is 2.",
    )
    parser.add_argument(
        "student", type=Path, metavar="STUDENT", help="RUN/METHOD-seedN, or an exported safetensors file"
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, or folders of such")
    parser.add_argument("--to", choices=tuple(WRITERS), default="table", help="how to print (default: table)")
    parser.add_argument("--top", type=count_of, default=3, metavar="N", help="so many classes of each (default: 3)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    from cid.train.ship.predict import predict_images

    found = list(predict_images(options.student, options.images, options.top))
    WRITERS[options.to]([each for each in found if not each.error])
    for each in found:
        if each.error:
            print(f"cid: error: {each.path}: cannot be read: {each.error}", file=sys.stderr)
    return 2 if any(each.error for each in found) else 0


def _table(found: Sequence[Prediction]) -> None:
    width = max((len(str(each.path)) for each in found), default=0)
    for each in found:
        print(f"{str(each.path).ljust(width)}  " + "  ".join(f"{name} {value:.1%}" for name, value in each.classes))


def _csv(found: Sequence[Prediction]) -> None:
    """A line for each image and class, so that there are as many columns however many classes."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability"])
    for each in found:
        for rank, said in enumerate(each.classes, 1):
            writer.writerow([each.path, rank, *said])


def _json(found: Sequence[Prediction]) -> None:
    content = [
        {
            "image": str(each.path),
            "classes": [{"class": name, "probability": value} for name, value in each.classes],
        }
        for each in found
    ]
    print(json.dumps(content, indent=2))


WRITERS = {"table": _table, "csv": _csv, "json": _json}
