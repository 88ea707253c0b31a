"""`cid bench --device cuda`: on a GPU, or on the CPU in Triton's interpreter, with stand-ins for a device's events."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import cid.backends
from cid import cli
from cid.bench import eager, hardware, memory, plan, timing
from cid.bench.accuracy import accuracy
from cid.bench.measure import measure
from cid.bench.terms import TERMS, Tensors, copies
from tests.gpu import DEVICE

ON_GPU = DEVICE == "cuda"
pytest.importorskip("triton", reason="needs triton")
CPU = torch.device("cpu")
SMALL = plan.chosen((), (), "small")


class FakeEvents:
    """What a device clock asks of `torch.cuda`; a call takes the device as many milliseconds as it adds to `now`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pending: list[Any] = []
        self.log: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                self.at: float | None = None
                self.known = False

            def record(self) -> None:
                self.at = fake.now
                fake.pending.append(self)
                fake.log.append("record")

            def elapsed_time(self, end: "Event") -> float:
                assert self.known, "read before a synchronise"
                assert end.known, "read before a synchronise"
                assert self.at is not None
                assert end.at is not None
                return end.at - self.at

        def synchronize() -> None:
            for event in fake.pending:
                event.known = True
            fake.pending.clear()
            fake.log.append("synchronize")

        properties = SimpleNamespace(name="a GPU", total_memory=1 << 30, L2_cache_size=1000)
        monkeypatch.setattr("torch.cuda.Event", Event)
        monkeypatch.setattr("torch.cuda.synchronize", synchronize)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)

    def call(self, name: str, milliseconds: float) -> timing.Call:
        def call(_: int) -> None:
            self.log.append(name)
            self.now += milliseconds

        return call


def test_a_device_clock_reads_its_events_when_a_round_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    events = FakeEvents()
    events.install(monkeypatch)
    contenders = {"a": events.call("a", 3.0), "b": events.call("b", 0.5)}
    clock = timing.DeviceClock(contenders, CPU)
    assert set(clock.host) == {"a", "b"}
    events.log.clear()
    assert clock.times(list(contenders.values()), 0) == [0.003, 0.0005]
    log = events.log
    for name in ("a", "b"):  # right between two events, and nothing waits before the round is over
        assert log[log.index(name) - 1] == log[log.index(name) + 1] == "record"
    assert log.index("synchronize") > log.index("b")
    times = timing.interleaved(contenders, seconds=1e-9, clock=clock)
    assert times["a"].median == pytest.approx(0.003)
    assert times["b"].best == pytest.approx(0.0005)


def test_a_device_clock_gives_the_host_time_to_queue_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    events = FakeEvents()
    events.install(monkeypatch)
    reads = []

    def read(self: timing.DeviceClock) -> None:
        reads.append(events.now)
        events.now += 0.25

    monkeypatch.setattr(timing.DeviceClock, "_read", read)
    monkeypatch.setattr(timing, "queueing", lambda call: 0.001)
    clock = timing.DeviceClock({"a": events.call("a", 1.0)}, CPU)
    reads.clear()
    assert clock.times([events.call("a", 1.0)], 0) == [0.001]
    assert len(reads) == 8  # 2 ms of a quarter each
    monkeypatch.setattr(timing, "queueing", lambda call: 1000.0)
    slow = timing.DeviceClock({"a": events.call("a", 1.0)}, CPU)
    reads.clear()
    slow.times([events.call("a", 1.0)], 0)
    assert len(reads) == timing.MAX_LEAD / 0.00025


@pytest.fixture
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose CUDA device is a CPU with Triton's interpreter, unless it has one."""
    if ON_GPU:
        return
    FakeEvents().install(monkeypatch)
    stand_in = SimpleNamespace(**{**vars(torch), "device": lambda name: CPU, "_dynamo": torch._dynamo})
    monkeypatch.setattr("cid.bench.measure.torch", stand_in)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("cid.bench.measure.memory.on_device", lambda call: 8)
    monkeypatch.setattr("cid.bench.liger.installed", lambda: False)
    monkeypatch.setattr(cid.backends, "_DEFAULT", "triton")


@pytest.mark.usefixtures("_device")
def test_the_command_on_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not ON_GPU:  # where nothing runs on a device, its events are no time apart
        monkeypatch.setattr("torch.cuda.Event.elapsed_time", lambda *_: 1.0)
    arguments = (
        f"kd accumulate --preset small --device cuda --against eager --no-chart --seconds 0.001 --out {tmp_path}"
    )
    assert cli.main(["bench", *arguments.split()]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert {"gpu", "gpu_memory", "l2", "driver", "cuda", "triton", "liger"} <= set(report["hardware"])
    assert [row["term"] for row in report["rows"]] == ["kd", "accumulate"]
    for row, line in zip(report["rows"], capsys.readouterr().out.splitlines()[3:], strict=True):
        assert (row["device"], row["backend"]) == ("cuda", "triton")
        assert line.split()[:4] == [row["term"], row["size"], "float32", "triton"]
        assert set(row["host"]) == set(row["times"])
        assert all(seconds > 0 for seconds in row["host"].values())
        for name in ("cid", "copy"):
            assert row["bandwidth"][name] == pytest.approx(row["moved_bytes"] / row["times"][name]["median"])
        assert row["memory"]["cid"]["counted"] >= 0
        assert row["memory"]["cid"]["resident"] is None
    assert not (tmp_path / "bench.png").exists()


@pytest.mark.usefixtures("_device")
def test_a_contender_that_overwrites_its_inputs_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(z: Tensor, y: Tensor) -> Tensor:
        z.data.fill_(math.inf)
        return (0.0 * z).sum()

    def check(z: Tensor, y: Tensor) -> Tensor:
        assert z.isfinite().all()
        return eager.cross_entropy(z, y)

    monkeypatch.setattr("cid.bench.liger.installed", lambda: True)
    monkeypatch.setattr("cid.bench.measure.torch.compile", lambda step, **_: step)  # which takes half a minute
    monkeypatch.setattr("cid.bench.liger.steps", lambda: {"cross-entropy": overwrite})
    monkeypatch.setitem(TERMS, "cross-entropy", dataclasses.replace(TERMS["cross-entropy"], eager=check))
    if not ON_GPU:
        monkeypatch.setattr("torch.cuda.Event.elapsed_time", lambda *_: 1.0)
    rows = [
        measure(plan.Case(term, (4, 5), "float32", 1, "cuda"), seconds=0.001, against="all", count_memory=False)
        for term in ("cross-entropy", "context-weights")
    ]
    assert ["liger" in row["times"] for row in rows] == [True, False]


def test_the_goals_of_a_device_are_its_own() -> None:
    rows = plan.chosen((), (), "goals", "cuda")
    assert ("kd", (4096, 128256)) in rows
    assert ("cid", (4096, 512, 2048, 1000)) in rows
    assert plan.chosen((), (), None, "cuda") == rows
    assert plan.chosen((), (), None) == plan.chosen((), (), "goals", "cpu") != rows
    assert plan.chosen(["sample"], (), "goals", "cuda") == [("sample", (16384, 2048))]
    for name, size in rows:
        assert len(size) == plan.KINDS[name].ranks[-1]


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_every_term_in_triton_is_the_eager_one(name: str, size: plan.Size) -> None:
    term = TERMS[name]
    with torch.device(DEVICE):
        inputs, state = term.draw(size, torch.float32), term.state(size, torch.float32)
        results = []
        for backend in (None, "triton"):
            own = copies(state)
            step = term.ours(own, backend) if backend else lambda *x, own=own: term.eager(*x, *own)
            result, leaves = step(*inputs), term.leaves(inputs, own)
            values = own[-term.bank :] if result is None else (result,)
            gradients: Tensors = torch.autograd.grad(values, leaves) if leaves else ()
            results.append((*(value.detach() for value in values), *gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_accuracy_of_triton(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.DEVICES, DEVICE, "triton")
    row = accuracy(plan.Case("kd", (6, 5), dtype, 1, DEVICE), 1.0)
    if dtype == "float64":
        assert "torch.float64" in row["skipped"]
    else:
        assert row["cid"]["loss"] < 1e-5
        assert row["cid"]["gradient"] < 1e-5


def test_memory_on_a_device() -> None:
    if not ON_GPU:
        pytest.skip("needs a GPU")
    x = torch.ones(1 << 20, device="cuda")
    assert memory.on_device(lambda: torch.exp(torch.exp(x))) == x.nbytes
    assert memory.on_device(lambda: torch.exp(x)) == 0


def test_hardware_tells_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEvents().install(monkeypatch)

    def run(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(stdout="123.45\n123.45\n" if command[0] == "nvidia-smi" else "")

    monkeypatch.setattr("cid.bench.hardware.subprocess.run", run)
    where = hardware.hardware("cuda")
    assert (where["gpu"], where["driver"], where["l2"]) == ("a GPU", "123.45", 1000)
    monkeypatch.undo()
    FakeEvents().install(monkeypatch)
    monkeypatch.setattr("cid.bench.hardware.subprocess.run", _missing)
    assert hardware.hardware("cuda")["driver"] is None


def _missing(*_: object, **__: object) -> None:
    raise FileNotFoundError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--device tpu", "--device: invalid choice: 'tpu' (choose from"),
        ("--device cuda", "--device: got cuda, accepted: cpu (PyTorch sees no CUDA device)"),
        ("--device cuda --simd avx2", "--simd: got avx2 together with --device cuda, accepted: --device cpu"),
        ("--device cuda --threads 2", "--threads: got 2 together with --device cuda, accepted: --device cpu"),
        ("--against liger", "--against: got liger together with --device cpu, accepted: --device cuda"),
        ("--device cuda --against liger", "--against: liger needs Liger-Kernel: pip install liger-kernel"),
    ],
)
def test_bad_options_are_refused_by_name(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: "liger" in arguments)
    monkeypatch.setattr("cid.bench.liger.installed", lambda: False)
    try:
        code: Any = cli.main(["bench", *arguments.split()])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
