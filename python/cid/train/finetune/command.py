"""The command `cid finetune`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cid.train.config import read_toml, resolve
from cid.train.options import add_settings, given_settings

SETTINGS = (
    "data",
    "models.teacher",
    "models.teacher_checkpoint",
    "models.pretrained_dir",
    "models.teacher_inputs",
    "models.teacher_size",
    "optim.batch_size",
    "run.device",
    "run.threads",
)


def register(subparsers: Any) -> None:
    """Adds the command to those of `cid`."""
    parser = subparsers.add_parser(
        "finetune",
        help="train the classifying layer of a published teacher on your data",
        description="Takes a teacher with its published weights, or those of --teacher-checkpoint, and trains its "
        "classifying layer alone: its features of the images, as they are, are computed once, and a logistic "
        "regression of them, whose regularisation validation data choose, becomes the layer. Writes a "
        "teacher.safetensors for cid distill --teacher-checkpoint.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings, as a run's config.toml")
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="new folder of the teacher")
    add_settings(parser, SETTINGS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    from cid.train.finetune.head import finetune
    from cid.train.folder import in_words

    given, file = given_settings(options), read_toml(options.config) if options.config else {}
    if "models.teacher_checkpoint" not in {**file, **given}:
        given["models.pretrained"] = True
    config = resolve(given, file)
    path, result = finetune(config, options.out, lambda line: print(line, flush=True))
    print(
        f"{path}: {in_words(result)}, {result.validation_accuracy:.2%} (validation)\n"
        f"Use it with: cid distill --teacher {config.models.teacher} --teacher-checkpoint {path}, and the same data"
    )
    return 0
