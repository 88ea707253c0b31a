"""Where people look at runs: what the loggers are told, over a resume, and when one of them fails."""

import csv
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cid import cli
from cid._errors import ConfigError
from cid.train.config import resolve
from cid.train.folder import Result, RunFolder, WithoutHead
from cid.train.run import loggers
from cid.train.run.loggers import Log, RunLog, Subject, numbers, settings_of_network
from cid.train.run.loop import Trainer

TINY = shlex.split(
    "--limit 80 --limit-test 40 --teacher cnn-3 --student cnn-2 --epochs 3 --teacher-epochs 2 --batch-size 32 "
    "--seeds 0 --device cpu --methods labels cid"
)
NETWORKS = {"teacher": 2, "labels-seed0": 3, "cid-seed0": 3}


def lines_of(run: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["name"] == name]


def table_of(run: Path, name: str) -> list[dict[str, str]]:
    with (run / "logs/csv" / name / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def events_of(run: Path, name: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "logs/tensorboard" / name)).Reload()


def check_told(run: Path) -> None:
    """That CSV and TensorBoard have each epoch of each network once, and what became of it."""
    for name, epochs in NETWORKS.items():
        lines, result = lines_of(run, name), json.loads((run / name / "result.json").read_text())
        *rows, last = table_of(run, name)
        assert [int(row["step"]) for row in rows] == list(range(epochs))
        assert [float(row["val_accuracy"]) for row in rows] == [line["val_accuracy"] for line in lines]
        assert float(last["test_accuracy"]) == result["test_accuracy"]
        events = events_of(run, name)
        told = {event.step: event.value for event in events.Scalars("val_loss")}
        assert len(events.Scalars("val_loss")) == epochs
        assert told == pytest.approx({line["epoch"]: line["val_loss"] for line in lines})
        (test,) = events.Scalars("test_accuracy")
        assert (test.step, test.value) == (result["best_epoch"], pytest.approx(result["test_accuracy"]))
        assert "_hparams_/session_start_info" in events.summary_metadata


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str, epoch: int, with_what: type[BaseException]) -> None:
    """Ends the run after an epoch was told, before its checkpoint."""
    save = Trainer._save

    def saved(self: Trainer) -> None:
        if self._job.name == name and self.position.epoch == epoch + 1:
            raise with_what
        save(self)

    monkeypatch.setattr(Trainer, "_save", saved)


def test_each_network_has_its_curves_also_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="needs an extra: pip install 'cid-distill[loggers]'")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, "cid-seed0", 1, KeyboardInterrupt)
        assert cli.main(["distill", *TINY, "--logger", "csv", "tensorboard", "--out", str(run)]) == 130
    assert [row["step"] for row in table_of(run, "cid-seed0")] == ["0", "1"]
    assert cli.main(["distill", "--resume", str(run)]) == 0
    check_told(run)
    assert json.loads((run / "cid-seed0/result.json").read_text())["method"] == "cid"


def test_a_logger_changes_no_network(tmp_path: Path) -> None:
    for name, more in (("plain", []), ("told", ["--logger", "csv"])):
        assert cli.main(["distill", *TINY, *more, "--methods", "kd", "--out", str(tmp_path / name)]) == 0
    one, other = (tmp_path / name / "kd-seed0/student.safetensors" for name in ("plain", "told"))
    assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "plain" / "logs").exists()


@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_lightnings_loggers_go_on_with_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("lightning", "wandb", "mlflow"):
        pytest.importorskip(package, reason="needs an extra: pip install 'cid-distill[loggers]'")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    arguments = ["--methods", "labels", "--logger", "wandb", "mlflow"]
    with monkeypatch.context() as patch:
        stop_at(patch, "labels-seed0", 1, KeyboardInterrupt)
        assert cli.main(["distill", *TINY, *arguments, "--out", str(run)]) == 130
    identities = json.loads((run / "logs/labels-seed0.json").read_text())
    settings = (run / "config.toml").read_text()
    (run / "config.toml").write_text(settings.replace("[run]\n", "[run]\ncheckpoint_every = 3\n"))
    assert cli.main(["distill", "--resume", str(run)]) == 0
    assert json.loads((run / "logs/labels-seed0.json").read_text()) == identities

    from mlflow.tracking import MlflowClient

    client = MlflowClient((run / "logs/mlflow").as_uri())
    told = client.get_run(identities["mlflow"])
    assert (told.info.run_name, told.info.status) == ("run/labels-seed0", "FINISHED")
    assert told.data.params["optim.epochs"] == "3"
    assert told.data.params["method"] == "labels"
    result = json.loads((run / "labels-seed0/result.json").read_text())
    assert told.data.metrics["test_accuracy"] == result["test_accuracy"]
    history = {metric.step: metric.value for metric in client.get_metric_history(identities["mlflow"], "val_accuracy")}
    assert history == {line["epoch"]: line["val_accuracy"] for line in lines_of(run, "labels-seed0")}
    experiment = client.get_experiment_by_name("cid")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2

    teacher = json.loads((run / "logs/teacher.json").read_text())
    kept = [path.name for path in (run / "logs/wandb").glob("offline-run-*")]
    assert [sum(own["wandb"] in name for name in kept) for own in (teacher, identities)] == [1, 2]
    assert len(kept) == 3


# --- failing


class Fails(Log):
    """Opens, and fails when it is told the epoch of a number."""

    told: list[str]
    at: int | None = 1

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        if self.at is None:
            raise OSError("no\nnetwork")

    def settings(self) -> None:
        self.told.append(f"begin {self.subject.name} at {self.subject.epoch}")

    def epoch(self, metrics: Mapping[str, float], number: int) -> None:
        if number == self.at:
            raise OSError("no\nnetwork")
        self.told.append(f"epoch {number}")

    def result(self, metrics: Mapping[str, float], epoch: int) -> None:
        self.told.append(f"result at {epoch}")

    def close(self, status: str) -> None:
        self.told.append(status)


RESULT = Result("kd-seed3", "kd", 3, 10, 1.5, 2, 0.75, 0.5, 1.25, WithoutHead(9, 0.25, 2.0), {"unbiased": 0.125})


def test_one_that_fails_is_said_once_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fails, "told", [], raising=False)
    monkeypatch.setitem(loggers.OPEN, "wandb", Fails)
    said: list[str] = []
    log = RunLog(["wandb", "csv"], RunFolder(tmp_path), resolve({}), said.append)
    log.begin("kd-seed3", "kd", 3, 0)
    for epoch in range(3):
        log.epoch({"epoch": epoch, "val_accuracy": epoch / 4})
    log.end("kd", RESULT)
    log.begin("kd-seed4", "kd", 4, 0)
    log.close()
    assert said == ["wandb: fails, and is left out from here on (OSError: no network); metrics.jsonl has everything"]
    assert Fails.told == ["begin kd-seed3 at 0", "epoch 0", "failed"]
    assert [row["step"] for row in table_of(tmp_path.parent / tmp_path.name, "kd-seed3")] == ["0", "1", "2", "2"]


def test_one_that_never_opened_ends_the_run_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Fails, "at", None)
    monkeypatch.setitem(loggers.OPEN, "csv", Fails)
    run = tmp_path / "run"
    assert cli.main(["distill", *TINY, "--logger", "csv", "--out", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "cid: error: --logger: got csv, accepted: one that can be used here (OSError: no network)"
    assert not list(run.rglob("checkpoint.safetensors"))


def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["distill", *TINY, "--logger", "mlflow", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == 'cid: error: lightning is missing: pip install "cid-distill[loggers]"\n'
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [["csv", "csv"], ["aim"]])
def test_unknown_and_repeated_loggers_are_refused(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--logger: got .*, accepted: any, each once, of: csv or tensorboard or "):
        resolve({"run.logger": given})


# --- what is told


def test_a_result_is_told_even_of_a_network_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fails, "told", [], raising=False)
    monkeypatch.setitem(loggers.OPEN, "csv", Fails)
    RunLog(["csv"], RunFolder(tmp_path), resolve({}), print).end("kd", RESULT)
    assert Fails.told == ["begin kd-seed3 at 0", "result at 2", "success"]


def test_only_numbers_are_told() -> None:
    assert numbers({"name": "x", "epoch": 3, "lr": 0.1, "scorable": True, "best_epoch": None}) == {"lr": 0.1}
    found = numbers({"test_accuracy": 0.5, "tests": {}, "groups": {"unbiased": {"red": 1.0}}})
    assert found == {"test_accuracy": 0.5, "groups/unbiased/red": 1.0}


def test_the_settings_are_the_networks_own() -> None:
    found = settings_of_network(resolve({"optim.epochs": 7}), "kd", 3)
    assert (found["method"], found["seed"], found["optim.epochs"]) == ("kd", 3, 7)
    assert "method.temperature" in found
    assert not {"method.crd_beta", "method.warmup_epochs", "run.seeds", "run.logger", "optim.ema"} & found.keys()
    assert not [key for key in settings_of_network(resolve({}), "teacher", 0) if key.startswith("method.")]
