"""The order of a study's work, and what is left of it: by workers that only pretend, but once."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cid.cli
from cid._errors import InterruptedRunError
from cid.train.config import read_toml
from cid.train.folder import TEACHER, Result, RunFolder, network_name
from cid.train.study.plan import Setting, read_study
from cid.train.study.rows import read_rows
from cid.train.study.schedule import Task, Workers, run_study

STUDY = """
methods = ["labels", "kd-ipw"]
seeds = [0, 1]
[settings]
data = { name = "digits", limit = 120, limit_test = 60 }
models = { teacher = "cnn-3" }
optim = { epochs = 2, teacher_epochs = 2 }
method = { ipw_epochs = 1, ipw_context_epochs = 1 }
[grid.student]
small = { models = { student = "cnn-2" } }
large = { models = { student = "cnn-4" } }
"""
Begun = list[str]


@pytest.fixture
def study(tmp_path: Path) -> list[Setting]:
    file = tmp_path / "study.toml"
    file.write_text(STUDY)
    return read_study(file, {})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Begun]:
    """Workers that write a result at once, or fail; the names of what was begun."""

    def install(failing: str = "none of these", weights: bytes = b"weights") -> Begun:
        begun: Begun = []

        def run(self: Workers, task: Task) -> subprocess.CompletedProcess[str]:
            begun.append(task.name)
            if failing in task.name:
                return subprocess.CompletedProcess([], 1, "", "ran out of luck")
            run = RunFolder(task.folder)
            for method, seed in [(TEACHER, 0), *([task.network] if task.network else [])]:
                name = TEACHER if method == TEACHER else network_name(method, seed)
                result = Result(name, method, seed, 1, 0.1, 0, 0.5, 0.5 + seed / 10, 1.0)
                (run.network(name) / "result.json").write_text(json.dumps(result.to_json()))
            run.weights(TEACHER).write_bytes(weights)
            return subprocess.CompletedProcess([], 0, "", "")

        monkeypatch.setattr(Workers, "run", run)
        return begun

    return install


def test_a_teacher_is_shared_and_comes_first(
    study: list[Setting], tmp_path: Path, pretend: Callable[..., Begun]
) -> None:
    begun, lines = pretend(), list[str]()
    assert run_study(study, tmp_path, 1, {"cpu": "this"}, lines.append) == []
    students = ["labels-seed0", "kd-ipw-seed0", "labels-seed1", "kd-ipw-seed1"]
    small, large = ([f"{size} weights", *(f"{size} {name}" for name in students)] for size in ("small", "large"))
    assert begun == ["teacher cnn-3", *small, *large]
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [(row["label"], row["name"]) for row in rows[:2]] == [
        ({}, "teacher"),
        ({"student": "small"}, "labels-seed0"),
    ]
    assert len(rows) == 9
    assert all(row["hardware"] == {"cpu": "this"} for row in rows)
    assert {row["teacher"] for row in rows} == {hashlib.sha256(b"weights").hexdigest()[:16]}
    assert lines[0].startswith("[1/9, about 0 min left] teacher cnn-3: 50.00%")
    (teacher,) = (tmp_path / "teachers").iterdir()
    for run in (tmp_path / "runs").iterdir():
        checkpoint = read_toml(run / "config.toml")["models.teacher_checkpoint"]
        assert checkpoint == str(teacher / "teacher" / "teacher.safetensors")


def test_only_what_is_left_is_done(study: list[Setting], tmp_path: Path, pretend: Callable[..., Begun]) -> None:
    pretend()
    run_study(study, tmp_path, 2, {}, lambda _: None)
    rows = tmp_path / "rows.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(line for line in lines if "kd-ipw-seed1" not in line or '"small"' not in line))
    begun = pretend()
    run_study(study, tmp_path, 2, {}, lambda _: None)
    assert begun == ["teacher cnn-3", "small weights", "small kd-ipw-seed1"]
    assert sorted(rows.read_text().splitlines(keepends=True)) == sorted(lines)
    more = read_study(tmp_path / "study.toml", {"run.seeds": [0, 1, 2]})
    begun = pretend()
    run_study(more, tmp_path, 1, {}, lambda _: None)
    assert [name for name in begun if "seed" in name] == [
        f"{size} {method}-seed2" for size in ("small", "large") for method in ("labels", "kd-ipw")
    ]
    assert pretend() == []
    run_study(more, tmp_path, 1, {}, lambda _: None)


def test_a_teacher_that_is_trained_anew_is_another(
    study: list[Setting], tmp_path: Path, pretend: Callable[..., Begun]
) -> None:
    pretend()
    run_study(study, tmp_path, 1, {}, lambda _: None)
    shutil.rmtree(tmp_path / "teachers")
    shutil.rmtree(tmp_path / "runs")
    more, lines = read_study(tmp_path / "study.toml", {"run.seeds": [0, 1, 2]}), list[str]()
    pretend(weights=b"others")
    run_study(more, tmp_path, 1, {}, lines.append)
    assert lines[0].startswith("teacher cnn-3: not known to be what rows of before are of")
    rows = read_rows(tmp_path / "rows.jsonl")
    names = {row["name"] for row in rows if row["teacher"] == hashlib.sha256(b"others").hexdigest()[:16]}
    assert names == {"teacher", "labels-seed2", "kd-ipw-seed2"}
    assert len(rows) == 9 + 1 + 4


def test_what_fails_is_said_and_the_rest_goes_on(
    study: list[Setting], tmp_path: Path, pretend: Callable[..., Begun]
) -> None:
    pretend(failing="small weights")
    lines: list[str] = []
    assert run_study(study, tmp_path, 1, {}, lines.append) == ["small weights"]
    assert lines[1] == "small weights failed: ran out of luck"
    assert len(read_rows(tmp_path / "rows.jsonl")) == 5


def test_the_command_and_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.toml"
    file.write_text(STUDY.replace("[0, 1]", "[0]").replace("kd-ipw", "kd").partition("[grid.student]")[0])
    arguments = ["study", str(file), "--jobs", "2", "--device", "cpu"]
    assert cid.cli.main(arguments) == 0
    table = capsys.readouterr().out
    assert "method" in table
    assert "labels" in table
    assert "not done yet" not in table
    rows = (tmp_path / "study" / "rows.jsonl").read_text()
    assert len(rows.splitlines()) == 3
    (run,) = (tmp_path / "study" / "runs").iterdir()
    assert {result.name for result in RunFolder(run).results()} == {"teacher", "labels-seed0", "kd-seed0"}
    assert {line["name"] for line in RunFolder(run).metrics()} == {"labels-seed0", "kd-seed0"}
    # A network of a run that is made whole has the same accuracy: it does not matter who did which part.
    result = Result.read(run / "labels-seed0" / "result.json")
    whole = tmp_path / "whole"
    assert cid.cli.main(["distill", "--config", str(run / "config.toml"), "--out", str(whole)]) == 0
    assert Result.read(whole / "labels-seed0" / "result.json").test_loss == result.test_loss
    capsys.readouterr()
    assert cid.cli.main([*arguments, "--table"]) == 0
    assert capsys.readouterr().out.strip() == table[table.index("method") :].strip()
    assert (tmp_path / "study" / "rows.jsonl").read_text() == rows
    assert cid.cli.main([*arguments, "--baseline", "cid"]) == 2
    picture = tmp_path / "study.svg"
    assert cid.cli.main([*arguments, "--table", "--out", str(tmp_path / "none"), "--plot", str(picture)]) == 2
    assert "has no rows of this study yet" in capsys.readouterr().err
    page = picture.with_suffix(".html")
    assert cid.cli.main([*arguments, "--table", "--plot", str(picture), "--page", str(page)]) == 0
    assert "labels" in picture.read_text()
    assert "<title>Study: study</title>" in page.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals that a process can answer")
def test_an_interrupt_is_passed_on_once_and_nothing_more_begins(
    study: list[Setting], tmp_path: Path, pretend: Callable[..., Begun], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = pretend()
    done, stopped = Workers.run, threading.Event()

    def run(self: Workers, task: Task) -> subprocess.CompletedProcess[str]:
        if task.name != "small labels-seed0":
            return done(self, task)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped.wait(60)
        return subprocess.CompletedProcess([], 130, "", "")

    monkeypatch.setattr(Workers, "run", run)
    monkeypatch.setattr(Workers, "stop", lambda self: stopped.set())
    with pytest.raises(InterruptedRunError) as caught:
        run_study(study, tmp_path, 1, {}, lambda _: None)
    assert caught.value.exit_code == 130
    assert begun == ["teacher cnn-3", "small weights"]
    assert [row["name"] for row in read_rows(tmp_path / "rows.jsonl")] == ["teacher"]


def test_processes_are_asked_to_end() -> None:
    workers, task = (
        Workers((sys.executable, "-c", "import time; print('', flush=True); time.sleep(600)")),
        Task("", Path(), ()),
    )
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(workers.run, task)
        while not workers._processes:
            time.sleep(0.01)
        workers.stop()
        assert outcome.result(60).returncode != 0
    assert workers.run(task).stderr == "not begun"
