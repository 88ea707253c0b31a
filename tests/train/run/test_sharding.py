"""Networks of which each process has a part."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cid import cli
from cid._errors import ConfigError
from cid.train import sharding
from tests.processes import in_ranks, join_gloo
from tests.train.run.test_ranks import COMMON, assert_same, assert_scored_alike, ranks_run, refused, run, stop_after

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")


def sharded(rank: int, options: list[str], code: int = 0, step: int | None = None) -> None:
    """A run whose small layers are blocks; it ends with `code`."""
    sharding.SMALLEST_BLOCK = 20
    blocks, counts = sharding.blocks, list[int]()

    def counted(training: nn.Module, smallest: int) -> list[nn.Module]:
        found = blocks(training, smallest)
        counts.append(len(found))
        return found

    sharding.blocks = counted
    if step is not None:
        stop_after(step)
    assert cli.main(options) == code
    assert min(counts) > 1


def test_a_sharded_run_is_that_of_one_process(tmp_path: Path) -> None:
    options = ["--methods", "cid", "cid-ipw", "at", "--epochs", "2"]
    assert run(*options, "--out", tmp_path / "alone") == 0
    in_ranks(2, sharded, ["distill", *COMMON, *options, "--shard", "--out", str(tmp_path / "run")])
    assert_same(tmp_path / "run", tmp_path / "alone")
    assert_scored_alike(tmp_path / "run", tmp_path / "alone")


def test_a_sharded_run_steps_as_another(tmp_path: Path) -> None:
    """With a state of the optimizer, averages, sums of gradients and a norm of all; batches normalised by each."""
    options = ["--methods", "cid", "--epochs", "2", "--optimizer", "adamw", "--lr", "0.002", "--cache-teacher"]
    options += ["--ema", "0.9", "--accumulate", "2", "--clip-norm", "1", "--no-sync-batchnorm", "--local-pairs"]
    ranks_run(2, *options, "--out", tmp_path / "whole")
    in_ranks(2, sharded, ["distill", *COMMON, *options, "--shard", "--out", str(tmp_path / "parts")])
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_a_sharded_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    out, expected = tmp_path / "run", tmp_path / "expected"
    options = ["--methods", "cid", "--checkpoint-every", "2", "--ema", "0.9", "--optimizer", "adamw", "--lr", "0.002"]
    options += ["--epochs", "3"]
    assert run(*options, "--out", expected) == 0
    stopped = 128 + signal.SIGTERM
    in_ranks(2, sharded, ["distill", *COMMON, *options, "--shard", "--out", str(out)], stopped, 23)
    in_ranks(3, sharded, ["distill", "--resume", str(out)], stopped, 5)
    assert cli.main(["distill", "--resume", str(out)]) == 0  # alone, and whole
    assert_same(out, expected)
    assert_scored_alike(out, expected)


def bfloat16(rank: int, out: str) -> None:
    for precision in ("bf16-mixed", "bf16-true"):
        options = ["--precision", precision, "--methods", "cid", "--epochs", "2", "--teacher-epochs", "1", "--shard"]
        sharded(rank, ["distill", *COMMON, *options, "--out", f"{out}/{precision}"])


def test_a_sharded_run_in_bfloat16(tmp_path: Path) -> None:
    in_ranks(2, bfloat16, str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "cid", "--beta", "auto"], "--shard: with --beta or --gamma auto of cid, accepted: numbers"),
        (["--compile"], "--shard: with --compile, accepted: either"),
        (["--precision", "16-mixed"], "--shard: with --precision 16-mixed, accepted: bf16-mixed, 32-true"),
    ],
)
def test_what_goes_with_no_shards(options: list[str], message: str, tmp_path: Path) -> None:
    in_ranks(2, refused, ["distill", *COMMON, *options, "--shard", "--out", str(tmp_path / "run")], message, tmp_path)
    assert not (tmp_path / "run").exists()


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)


def networks() -> dict[str, nn.Module]:
    """By what `blocks` is to find in each."""
    tied = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    tied[1].weight = tied[0].weight
    return {
        "": nn.ModuleDict({"body": nn.Linear(8, 8)}),  # in no list
        "layers.0 layers.2": nn.ModuleDict({"layers": nn.ModuleList([Block(8), nn.Linear(2, 2), Block(8)])}),
        "stages.0.0 stages.0.1 stages.1.0": nn.ModuleDict(
            {"stages": nn.Sequential(nn.Sequential(Block(8), Block(8)), nn.ModuleList([Block(9)]))}
        ),
        "0": nn.Sequential(nn.ModuleDict({"own": nn.Linear(8, 8), "small": nn.ModuleList([nn.Linear(2, 2)])})),
        " ": tied,
    }


@pytest.mark.parametrize("names", networks())
def test_blocks(names: str) -> None:
    network = networks()[names]
    found = sharding.blocks(network, smallest=70)
    assert found == [network.get_submodule(name) for name in names.split()]


def parts(rank: int, ranks: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    join_gloo(folder, rank, ranks)
    training = Block(7)
    training.predict = training.first.forward  # type: ignore[assignment]
    given = {name: value.detach().clone() for name, value in training.named_parameters()}
    mesh = init_device_mesh("cpu", (ranks,))
    sharding.shard(training, mesh)
    for name, value in training.named_parameters():
        assert torch.equal(sharding.whole(value.detach()), given[name])
        own = sharding.part_like(given[name] + 1, value)
        rows = sharding.own_part(own)
        assert len(rows) == len(torch.arange(7).chunk(ranks)[rank])
        assert torch.equal(sharding.whole(own), given[name] + 1)
    assert sharding.whole(given["first.weight"]) is given["first.weight"]
    layer: Any = nn.Conv2d(2, 4, 3)
    maps = torch.randn(2, 2, 6, 6)
    expected = layer(maps)
    layer.to(memory_format=torch.channels_last)
    layer.predict = layer.forward
    found = sharding.shard(layer, mesh)(maps)
    assert found.is_contiguous(memory_format=torch.channels_last)  # the maps follow the weights
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_parts_and_the_whole(ranks: int, tmp_path: Path) -> None:
    in_ranks(ranks, parts, ranks, tmp_path)


def scalar(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    join_gloo(folder, rank, 2)
    network: Any = nn.Linear(2, 2)
    network.scale = nn.Parameter(torch.ones(()))
    assert sharding.scalar_parameters(network) == ["scale"]
    with pytest.raises(ConfigError, match=r"^--shard: .*scalar"):
        sharding.shard(network, init_device_mesh("cpu", (2,)))


def test_what_can_not_be_divided_is_refused(tmp_path: Path) -> None:
    in_ranks(2, scalar, tmp_path)


def test_it_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(name: str, *_: Any, **__: Any) -> nn.Module:
        network: Any = nn.Linear(2, 2)
        network.scale = nn.Parameter(torch.ones(()))
        return network

    monkeypatch.setattr("cid.train.run.inputs.is_sharding", lambda _: True)
    monkeypatch.setattr("cid.train.run.inputs.build_model", build)
    assert run("--out", tmp_path / "run") == 2
    assert "--shard: cnn-2 has parameters that are one number (scale), accepted: of one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
