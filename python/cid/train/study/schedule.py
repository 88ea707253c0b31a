"""The work of a study in its order, by several processes at a time, a row for every network that is done."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cid._errors import InterruptedRunError
from cid._files import write_atomically
from cid.train.config import Config, to_toml
from cid.train.folder import TEACHER, Result, RunFolder, network_name
from cid.train.run.signals import StopRequest
from cid.train.study.plan import Setting, digest
from cid.train.study.rows import Row, append_row, read_rows

LOOK = 0.5  # seconds between looks at whether somebody asked to stop


@dataclass(frozen=True)
class Task:
    """What one process does.

    Attributes:
        name: for messages.
        folder: of the run that it is part of.
        arguments: of the worker.
        network: method and seed of the network that it yields; None where it yields none.
        key: the network's digest.
        label: of the row.
        then: what can begin when it is done.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    network: tuple[str, int] | None = None
    key: str = ""
    label: Mapping[str, str] = field(default_factory=dict)
    then: tuple[Task, ...] = ()


def plan_tasks(study: Sequence[Setting], out: Path, done: Mapping[str, Row]) -> list[Task]:
    """What is left to do, teachers first, each followed by what needs it; those that can share a teacher do."""
    waiting: dict[str, list[Task]] = {}
    configs: dict[str, Config] = {}
    for setting in study:
        key = digest(setting.config, TEACHER, setting.config.run.seeds[0])
        left = [(one, digest(setting.config, *one)) for one in setting.students()]
        left = [(one, own) for one, own in left if own not in done]
        configs[key] = setting.config
        tasks = waiting.setdefault(key, [])
        if left:
            tasks.append(_prepared(setting, out, _teacher_file(out, key), left))
    return [
        _teacher(configs[key], out, key, tasks, known=key in done)
        for key, tasks in waiting.items()
        if tasks or key not in done
    ]


def _teacher_file(out: Path, key: str) -> Path:
    return RunFolder(out / "teachers" / key).weights(TEACHER)


def _teacher(config: Config, out: Path, key: str, then: list[Task], *, known: bool) -> Task:
    """The teacher of some settings, in a run that has no students; it yields no row where that is known."""
    alone = dataclasses.replace(
        config,
        method=dataclasses.replace(config.method, methods=("labels",)),
        models=dataclasses.replace(config.models, cache_teacher=False),  # each run has its own views
    )
    folder = _folder(out / "teachers" / key, alone)
    network = None if known else (TEACHER, config.run.seeds[0])
    return Task(f"teacher {config.models.teacher}", folder, (str(folder),), network, key, then=tuple(then))


def _prepared(setting: Setting, out: Path, teacher: Path, left: list[tuple[tuple[str, int], str]]) -> Task:
    """What comes before the students of a setting, and these."""
    models = dataclasses.replace(setting.config.models, teacher_checkpoint=str(teacher))
    folder = _folder(out / "runs" / setting.name, dataclasses.replace(setting.config, models=models))
    words = " ".join(setting.label.values())
    students = []
    for one, key in left:
        name, arguments = f"{words} {network_name(*one)}".strip(), (str(folder), one[0], str(one[1]))
        students.append(Task(name, folder, arguments, one, key, setting.label))
    return Task(f"{words} weights".strip(), folder, (str(folder),), then=tuple(students))


def _folder(path: Path, config: Config) -> Path:
    """The folder of a run, made if it is not there; else with the methods and seeds that the study has by now."""
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "config.toml", to_toml(config).encode())
    return path


@dataclass
class Progress:
    """How far a study is.

    Attributes:
        total: networks to make.
        jobs: processes at a time.
        seconds: how long each took that was made by now.
    """

    total: int
    jobs: int
    seconds: list[float] = field(default_factory=list)

    def line(self, name: str, result: Result) -> str:
        """What is said of a network that is done, and of the rest, by the median of those that were."""
        done = len(self.seconds)
        left = statistics.median(self.seconds) * (self.total - done) / self.jobs
        return f"[{done}/{self.total}, about {_duration(left)} left] {name}: {result.test_accuracy:.2%} (test)"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def run_study(
    study: Sequence[Setting], out: Path, jobs: int, hardware: Mapping[str, Any], report: Callable[[str], None]
) -> list[str]:
    """Does what is left of a study.

    Args:
        study: its settings.
        out: the folder with its rows, and a run for each setting.
        jobs: processes at a time.
        hardware: of the rows.
        report: takes a line for each network that is done, and for each that can't be.

    Returns:
        The names of what failed, with all that needed it left out.

    Raises:
        InterruptedRunError: a signal came; what was in work is checkpointed.
        OSError: a file can't be written.
    """
    rows = out / "rows.jsonl"
    ready = plan_tasks(study, out, {row["digest"]: row for row in read_rows(rows)})
    progress = Progress(sum(map(_networks, ready)), jobs)
    failed: list[str] = []
    running: dict[Future[subprocess.CompletedProcess[str]], tuple[Task, float]] = {}
    workers = Workers()
    with StopRequest() as stop, ThreadPoolExecutor(jobs) as pool:
        while ready or running:
            while ready and len(running) < jobs:
                task = ready.pop(0)
                running[pool.submit(workers.run, task)] = (task, time.monotonic())
            done, _ = wait(running, LOOK, FIRST_COMPLETED)
            if stop.signal_number is not None:
                workers.stop()
                wait(running)
                raise InterruptedRunError(str(out), stop.signal_number)
            for future in done:
                task, began = running.pop(future)
                outcome = future.result()
                if outcome.returncode:
                    failed.append(task.name)
                    report(f"{task.name} failed: {outcome.stderr.strip()[-1000:]}")
                    continue
                ready[:0] = task.then
                if task.network is not None:
                    progress.seconds.append(time.monotonic() - began)
                    report(progress.line(task.name, _keep(rows, task, hardware)))
                elif task.key and _is_another(rows, task):
                    _keep(rows, task, hardware)
                    report(f"{task.name}: not known to be what rows of before are of; its students are another series")
    return failed


def _networks(task: Task) -> int:
    return (task.network is not None) + sum(map(_networks, task.then))


def _keep(rows: Path, task: Task, hardware: Mapping[str, Any]) -> Result:
    """Appends the row of a network that is done: a student's, or else the teacher's."""
    name = TEACHER if task.network is None or task.network[0] == TEACHER else network_name(*task.network)
    result = Result.read(task.folder / name / "result.json")
    about = {"digest": task.key, "label": dict(task.label), "teacher": _training_of(task.folder)}
    append_row(rows, {**about, **result.to_json(), "hardware": dict(hardware)})
    return result


def _is_another(rows: Path, task: Task) -> bool:
    """Whether the teacher of a task is not known to be the one that the rows have."""
    return _training_of(task.folder) not in {row.get("teacher") for row in read_rows(rows) if row["digest"] == task.key}


def _training_of(run: Path) -> str:
    """What tells the teacher of a run from others of the same settings, as other machines' roundings make them."""
    return hashlib.sha256(RunFolder(run).weights(TEACHER).read_bytes()).hexdigest()[:16]


WORKER = (sys.executable, "-m", "cid.train.study.worker")


class Workers:
    """The processes that work now; each is `command` with a task's arguments."""

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, task: Task) -> subprocess.CompletedProcess[str]:
        """Does a task, in a group of its own: an interrupt of the terminal is passed on by `stop`, once."""
        command = [*self._command, *task.arguments]
        with self._lock:
            if self._stopped:
                return subprocess.CompletedProcess(command, 1, "", "not begun")
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            self._processes.add(process)
        _, errors = process.communicate()
        with self._lock:
            self._processes.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, "", errors)

    def stop(self) -> None:
        """Asks all to write a checkpoint and end; none begins any more."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()
