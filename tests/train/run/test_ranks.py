"""Several processes train a run as one does with the same batches."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cid import cli
from cid._errors import ConfigError, InterruptedRunError, RunError
from cid.train.files import read_json_lines, read_tensors
from cid.train.ranks import Ranks
from cid.train.run import runner
from cid.train.run.batch_norm import over_ranks
from tests.processes import in_ranks, join_gloo

# What every process of a run imports, once for all that are forked.
IMPORTED = [runner, *(pytest.importorskip(name) for name in ("rich", "sklearn.datasets"))]

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")

# In float64, in which what is added up in another order differs by next to nothing. Of 300 images 240 are trained on:
# an epoch of 9 steps, the last of them short, 54 steps in all.
COMMON = [
    *("--limit", "300", "--limit-test", "101", "--device", "cpu", "--threads", "1", "--precision", "64-true"),
    *("--teacher", "cnn-3", "--student", "cnn-2", "--epochs", "6", "--teacher-epochs", "2", "--seeds", "0"),
    *("--batch-size", "28", "--lr", "0.02", "--schedule", "cosine", "--pad", "1", "--views", "3"),
]


def run(*options: str | Path) -> int:
    return cli.main(["distill", *COMMON, *map(str, options)])


def work(rank: int, options: list[str]) -> None:
    assert cli.main(options) == 0


def ranks_run(count: int, *options: str | Path) -> None:
    in_ranks(count, work, ["distill", *COMMON, *map(str, options)])


def assert_same(one: Path, of_one: Path) -> None:
    """Metrics and weights; of the latter all that is saved of each network."""
    metrics = [read_json_lines(each / "metrics.jsonl") for each in (one, of_one)]
    for found, expected in zip(*metrics, strict=True):
        assert found.keys() == expected.keys()
        for name, value in found.items():  # losses are kept in float32
            other = expected[name]
            close = pytest.approx(other, rel=1e-5, abs=1e-6) if isinstance(value, float) else other
            assert value == close, (found["name"], name)
    files = sorted(
        path.relative_to(one) for path in one.glob("*/*.safetensors") if path.name != "checkpoint.safetensors"
    )
    assert files
    for file in files:
        found, _ = read_tensors(one / file)
        expected, _ = read_tensors(of_one / file)
        assert found.keys() == expected.keys()
        for name, value in found.items():  # saved in float32
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def results(folder: Path) -> tuple[list[Any], list[float]]:
    """What is scored, but for the seconds, and apart from it the numbers."""
    numbers: list[float] = []
    contents = [json.loads(path.read_text()) | {"seconds": None} for path in sorted(folder.glob("*/result.json"))]
    texts = map(json.dumps, contents)
    read = [json.loads(text, parse_float=lambda number: numbers.append(float(number))) for text in texts]
    return read, numbers


def assert_scored_alike(one: Path, of_one: Path) -> None:
    """Ranks add up in another order."""
    (found, numbers), (expected, others) = results(one), results(of_one)
    assert found == expected
    assert numbers == pytest.approx(others, rel=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run("--methods", "labels", "kd", "cid", "cid-ipw", "--out", out) == 0
    return out


@pytest.mark.parametrize("count", [2, 4])
def test_a_run_of_several_processes_is_that_of_one(count: int, alone: Path, tmp_path: Path) -> None:
    ranks_run(count, "--methods", "labels", "kd", "cid", "cid-ipw", "--out", tmp_path / "run")
    assert_same(tmp_path / "run", alone)
    assert_scored_alike(tmp_path / "run", alone)


def stopped(rank: int, options: list[str], step: int) -> None:
    """Ends with a checkpoint after so many steps."""
    stop_after(step)
    assert cli.main(options) == 128 + signal.SIGTERM


def stop_after(step: int) -> None:
    """Has a run of this process asked to stop."""
    from cid.train.run.progress import Lines, Silent

    for observer in (Lines, Silent):
        observer.step = lambda self, count, loss, done=[0]: count_down(done, step)  # type: ignore[misc,method-assign]


def count_down(done: list[int], step: int) -> None:
    done[0] += 1
    if done[0] == step and os.environ["RANK"] == "1":  # one is told, and all stop
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [23, 60])
def test_a_run_goes_on_with_another_number_of_processes(step: int, tmp_path: Path) -> None:
    out, expected = tmp_path / "run", tmp_path / "expected"
    options = ["--methods", "cid", "--checkpoint-every", "2", "--ema", "0.9", "--patience", "5"]
    assert run(*options, "--out", expected) == 0
    in_ranks(2, stopped, ["distill", *COMMON, *options, "--out", str(out)], step)
    in_ranks(3, stopped, ["distill", "--resume", str(out)], 5)
    assert cli.main(["distill", "--resume", str(out)]) == 0
    assert_same(out, expected)
    assert_scored_alike(out, expected)


def failing(rank: int, options: list[str], folder: Path) -> None:
    """One rank's labels' loss becomes NaN in its 12th step."""
    from cid.train.methods.kd import KD

    original, steps = KD.loss, [0]

    def loss(self: KD, *arguments: Any) -> Any:
        steps[0] += 1
        total, terms = original(self, *arguments)
        factor = float("nan") if rank == 1 and steps[0] == 12 else 1.0
        return factor * total, {**terms, "kd": factor * terms["kd"]}

    KD.loss = loss  # type: ignore[assignment,method-assign]
    cli.SECONDS_FOR_OTHERS = 0.0
    with (folder / f"{rank}.txt").open("w") as file:
        sys.stderr = file
        code = cli.main(options)
    (folder / f"{rank}.code").write_text(str(code))


def test_a_loss_that_is_no_number_on_one_rank_ends_all_with_one_error(tmp_path: Path) -> None:
    out = tmp_path / "run"
    in_ranks(2, failing, ["distill", *COMMON, "--methods", "kd", "--out", str(out)], tmp_path)
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert {(tmp_path / f"{rank}.code").read_text() for rank in range(2)} == {"1"}
    message = "kd-seed0: step 11 on rank 1: kd is nan; the last checkpoint is kept. It may take a smaller --lr"
    assert said[0] == f"cid: error: {message}\n"
    assert said[1] == f"cid: error on rank 1: {message}\n"  # where it was not ended by then
    assert cli.main(["distill", "--resume", str(out)]) == 0


def test_a_process_that_dies_ends_all_with_one_error(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "cid", "distill", *COMMON, "--devices", "2", "--methods", "kd", "--epochs", "400"]
    with subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True) as launcher:
        while not (out / "kd-seed0" / "checkpoint.safetensors").exists():
            assert launcher.poll() is None
            time.sleep(0.1)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + signal.SIGKILL
    lines = [line for line in said.splitlines() if line.startswith("cid: error")]
    assert len(lines) == 1
    assert "Traceback" not in said
    assert "was ended by signal 9" in lines[0]
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "crd"], "--methods: got crd, which keeps both embeddings of each sample"),
        (["--batch-size", "3"], "--batch-size: got 3 for 2 parts of a batch, accepted: at least 4"),
        (["--device", "cpu:1"], "--device"),
    ],
)
def test_what_several_processes_can_not_do(options: list[str], message: str, tmp_path: Path) -> None:
    in_ranks(2, refused, ["distill", *COMMON, *options, "--out", str(tmp_path / "run")], message, tmp_path)
    assert not (tmp_path / "run").exists()


def refused(rank: int, options: list[str], message: str, folder: Path) -> None:
    cli.SECONDS_FOR_OTHERS = 0.0
    with (folder / f"{rank}.txt").open("w") as file:
        sys.stderr = file
        assert cli.main(options) == 2
    assert message in (folder / f"{rank}.txt").read_text()


def test_devices_are_for_the_command(tmp_path: Path) -> None:
    from cid.train import distill

    with pytest.raises(Exception, match=r"^run.devices: got 2, accepted: 1 in one process"):
        distill({"run": {"devices": 2}}, out=tmp_path / "run")


def networks() -> nn.Module:
    torch.manual_seed(0)
    flat = [nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3, momentum=None)]
    layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4, affine=False)]
    return nn.Sequential(*layers, *flat).double()


def normalise(rank: int, folder: Path) -> None:
    join_gloo(folder, rank, 2)
    network = networks()
    over_ranks(network, torch.device("cpu"))
    x = torch.randn(7, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own = x[:3] if rank == 0 else x[3:]
    own.requires_grad_()
    for _ in range(2):
        output = network(own)
    (output * torch.arange(3)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    torch.save((output.detach(), own.grad, gradients, dict(network.named_buffers())), folder / f"{rank}.pt")


def test_batch_normalisation_over_ranks(tmp_path: Path) -> None:
    in_ranks(2, normalise, tmp_path)
    network = networks()
    x = torch.randn(7, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for _ in range(2):
        output = network(x)
    (output * torch.arange(3)).square().sum().backward()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(torch.cat([each[0] for each in found]), output.detach())
    torch.testing.assert_close(torch.cat([each[1] for each in found]), x.grad)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[0][2][name] + found[1][2][name], parameter.grad, atol=1e-9, rtol=1e-7)
    for name, buffer in network.named_buffers():
        for each in found:
            torch.testing.assert_close(each[3][name], buffer)


def test_ranks_of_one() -> None:
    one = Ranks()
    assert one.first
    assert one.every(3) == [3]
    assert one.first_of(None) is None
    assert one.of_first(lambda: 5) == 5


def other_ways(rank: int, out: str) -> None:
    """In bfloat16, with normalisation of each rank's own, accumulated: of 27 images ranks have 12 and 15."""
    options = ["--precision", "bf16-mixed", "--no-sync-batchnorm", "--accumulate", "3", "--ema", "0.9", "--epochs", "2"]
    more = ["--methods", "kd", "cid", "--local-pairs", "--clip-norm", "5", "--batch-size", "27"]
    assert cli.main(["distill", *COMMON, *options, *more, "--out", out]) == 0


def test_what_is_scored_is_what_is_saved(tmp_path: Path) -> None:
    from cid.train.folder import RunFolder, Scores
    from cid.train.scoring import score_students

    out = tmp_path / "run"
    in_ranks(2, other_ways, str(out))
    scored: dict[str, Scores] = {}
    score_students(RunFolder(out), method=None, seed=None, data_dir=None, report_score=scored.__setitem__)
    assert set(scored) == {"kd-seed0", "cid-seed0"}
    for name, scores in scored.items():
        result = json.loads((out / name / "result.json").read_text())
        assert scores.test_loss == pytest.approx(result["test_loss"], rel=1e-5)


def bfloat16(rank: int, out: str) -> None:
    options = ["--precision", "bf16-mixed", "--methods", "labels", "--epochs", "1", "--teacher-epochs", "1"]
    assert cli.main(["distill", *COMMON, *options, "--out", out]) == 0


def test_statistics_over_ranks_of_bfloat16(tmp_path: Path) -> None:
    in_ranks(2, bfloat16, str(tmp_path / "run"))


def activate(rank: int, folder: Path) -> None:
    from timm.layers.norm_act import BatchNormAct2d

    join_gloo(folder, rank, 2)
    torch.manual_seed(0)
    network, x = nn.Sequential(BatchNormAct2d(3)), torch.randn(8, 3, 4, 4)
    expected = network(x)
    over_ranks(network, torch.device("cpu"))
    own = x[:2] if rank == 0 else x[2:]
    torch.testing.assert_close(network(own), expected[:2] if rank == 0 else expected[2:])
    assert (expected >= 0).all()  # by its activation


def test_a_layer_that_normalises_and_does_more_goes_on_doing_it(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    in_ranks(2, activate, tmp_path)


def test_a_layer_that_normalises_in_a_way_of_its_own_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match=r"^--sync-batchnorm: the network normalises batches by Own, accepted"):
        over_ranks(nn.Sequential(Own(3)), torch.device("cpu"))


def test_fabric_brings_no_torchmetrics() -> None:
    """Where it is installed it takes longer to import than all else of a run."""
    code = "import sys, cid.train.run.runner; print([n for n in ('torchmetrics', 'torchvision') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("error", [InterruptedRunError("cid-seed0", 15), ConfigError("--lr: got 1")])
def test_an_error_is_raised_by_other_processes_too(error: RunError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.exit_code) == (type(error), str(error), error.exit_code)
