"""Runs of `cid distill` on data of a known bias, each with draws of its own, and what came of them.

    python -m benches.bias run OUT.jsonl --setting "coloured-digits --rho 0.9" --options="--methods kd kd-ipw"
    python -m benches.bias table OUT.jsonl

A run of seed k draws everything from k: the contexts and the wrong labels, the split, the teacher, the weights and the
students. So runs are independent, and intervals are over all that chance decides but the images themselves. Rows are
appended; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cid.bench.hardware import hardware
from cid.train.results.table import estimate

Row = Mapping[str, Any]


def run(
    out: Path, settings: Iterable[str], seeds: Iterable[int], options: list[str], data_dir: str | None, jobs: int
) -> None:
    """Makes the rows that `out` lacks, a line of JSON for each network."""
    place = [] if data_dir is None else ["--data-dir", data_dir]
    made = {(row["setting"], row["options"], row["seed"]) for row in rows(out)}
    machine, text = hardware(), shlex.join(options)
    todo = [(s, k) for s in settings for k in seeds if (s, text, k) not in made]

    def one(setting: str, seed: int) -> None:
        found = distil(setting, seed, [*options, *place])
        with out.open("a", encoding="utf-8") as file:
            for result in found:
                line = {"setting": setting, "options": text, "seed": seed, **result, "hardware": machine}
                file.write(json.dumps(line) + "\n")
        print(f"{setting} seed {seed}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(lambda each: one(*each), todo):
            pass


def distil(setting: str, seed: int, options: list[str]) -> list[dict[str, Any]]:
    """The results of one run, the teacher's first, with what the weights were."""
    draws = [text for name in ("--seeds", "--split-seed", "--data-seed") for text in (name, str(seed))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cid.cli", "distill", "--data", *shlex.split(setting), *draws, *options]
        done = subprocess.run(
            [*command, "--threads", "1", "--out", f"{folder}/run"],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: {done.stderr[-2000:]}")
        results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("run/*/result.json"))]
        weights = {path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("run/weights/*/*.json")}
        trained = {path.parent.name: len(rows(path)) for path in Path(folder).glob("run/weights/*/metrics.jsonl")}
    for result in results:
        result["weights"] = {name: found for name, found in weights.items() if name in result["method"]}
        result["weights_epochs"] = sum(trained.get(name, 0) for name in result["weights"])
    return sorted(results, key=lambda result: result["method"] != "teacher")


def rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(found: list[dict[str, Any]], baseline: str = "kd") -> str:
    """Each method's accuracies in each setting, mean and 95% interval, and how it differs from the baseline."""
    lines = [
        "| setting | method | as biased | unbiased | unbiased, against " + baseline + " | n |",
        "|---|---|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in found:
        groups.setdefault((row["setting"], row["method"]), {})[row["seed"]] = row
    for (setting, method), by_seed in groups.items():
        other = groups.get((setting, baseline), {})
        shared = sorted(by_seed.keys() & other.keys())
        gains = [unbiased(by_seed[seed]) - unbiased(other[seed]) for seed in shared]
        cells = [
            setting,
            method,
            _interval([row["test_accuracy"] for row in by_seed.values()]),
            _interval([unbiased(row) for row in by_seed.values()]),
            _interval(gains, "+") if gains and method != baseline else "",
            str(len(by_seed)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def unbiased(row: Row) -> float:
    """The accuracy on the test without the bias; on the one test of data that has no other."""
    return float(row["tests"].get("unbiased", row["test_accuracy"]))


def _interval(values: list[float], sign: str = "") -> str:
    found = estimate(values)
    text = f"{100 * found.mean:{sign}.1f}"
    return text if found.half_width is None else f"{text} +/- {100 * found.half_width:.1f}"


def main() -> None:
    """Runs, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("out", type=Path)
    running.add_argument("--setting", nargs="+", required=True, help="a data set and its options, in one argument")
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    running.add_argument("--data-dir", help="see `cid distill`; not part of a row")
    running.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    running.add_argument("--options", default="", help="of every run, in one argument")
    printing = commands.add_parser("table")
    printing.add_argument("rows", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "run":
        run(given.out, given.setting, given.seeds, shlex.split(given.options), given.data_dir, given.jobs)
    else:
        print(table([row for path in given.rows for row in rows(path)]))


if __name__ == "__main__":
    main()
