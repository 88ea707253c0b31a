"""The command `cid study`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cid._errors import ConfigError, InterruptedRunError
from cid.train.settings import count_of


def register(subparsers: Any) -> None:
    """Adds the command to those of `cid`."""
    parser = subparsers.add_parser(
        "study",
        help="many runs from one file, by several processes, a row for every network",
        description="Does all runs that a file describes, several networks at a time, and appends a row for each to "
        "rows.jsonl in its folder. After a kill, or with more seeds, methods or settings in the file, the same command "
        "does what is left; rows of other machines, appended to that file, count as done.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY.toml", help="methods, seeds, settings and the grid")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of the rows and runs (default: beside the file, named as it is)"
    )
    parser.add_argument("--jobs", type=count_of, default=1, metavar="N", help="networks at a time (default: 1)")
    parser.add_argument("--device", metavar="STR", help="auto, cpu, cuda, cuda:N or mps (default: the file's)")
    parser.add_argument("--data-dir", metavar="FOLDER", help="folder that holds the published files of the data sets")
    parser.add_argument("--table", action="store_true", help="only print the table of the rows that are there")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the rows that are there, too: a dot for every network"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the rows that are there as one HTML page, too")
    parser.add_argument(
        "--baseline", metavar="METHOD", help="what each method is compared with (default: kd, or else the first)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    from cid.train.study.plan import read_study
    from cid.train.study.rows import alone, read_rows
    from cid.train.study.table import lines, study_table

    given = {"run.device": options.device, "data.dir": options.data_dir}
    study = read_study(options.study, {key: value for key, value in given.items() if value is not None})
    out = options.out or options.study.with_suffix("")
    methods = study[0].config.method.methods
    baseline = options.baseline or ("kd" if "kd" in methods else methods[0])
    if baseline not in methods:
        raise ConfigError(f"--baseline: got {baseline!r}, accepted: {', '.join(methods)}")
    failed: list[str] = []
    if not options.table:
        from cid.bench.hardware import hardware
        from cid.train.study.schedule import run_study

        out.mkdir(parents=True, exist_ok=True)
        machine = {**hardware(), "threads": study[0].config.run.threads}
        try:
            with alone(out):
                failed = run_study(study, out, options.jobs, machine, lambda line: print(line, flush=True))
        except InterruptedRunError as error:
            print("cid: interrupted; the same command goes on", file=sys.stderr)
            return error.exit_code
    rows = read_rows(out / "rows.jsonl")
    print(study_table(study, rows, baseline))
    found = lines(study, rows, baseline)
    for option, file in (("--plot", options.plot), ("--page", options.page)):
        if file is not None and not found and not failed:
            raise ConfigError(f"{option}: {out} has no rows of this study yet")
    if found and options.plot is not None:
        from cid.train.study.plot import plot_study

        plot_study(found, options.plot)
    if found and options.page is not None:
        from cid.train.study.page import write_study_page

        write_study_page(study, found, baseline, options.study.stem, options.page)
    if failed:
        print(f"cid: error: failed: {', '.join(failed)}; the same command tries again", file=sys.stderr)
    return 1 if failed else 0
