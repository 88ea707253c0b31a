"""`cid bench`: what it measures is right, and it reports all of it. How fast anything is, no test asks."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cid import cli
from cid.bench import eager, floor, memory, plan
from cid.bench.accuracy import accuracy, fits
from cid.bench.terms import TERMS, Step, Tensors
from cid.bench.timing import MIN_ROUNDS, interleaved
from tests import draws

F64 = torch.float64
SMALL = [(name, size) for name, size in plan.chosen((), (), "small") if TERMS[name].available]


def bench(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["bench", *arguments.split(), "--seconds", "0.001", "--threads", "1"]) == 0
    return capsys.readouterr().out


def test_small_preset_reports_every_term(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = bench(f"--preset small --against eager --out {tmp_path}", capsys)
    report = json.loads((tmp_path / "bench.json").read_text())
    hardware = {"cpu", "cores", "simd", "threads", "torch", "numpy", "python", "cid", "commit"}
    assert set(report["hardware"]) == hardware
    assert [(row["term"], row["size"]) for row in report["rows"]] == [(n, plan.text(s)) for n, s in SMALL]
    for row, line in zip(report["rows"], out.splitlines()[3:], strict=True):
        assert line.split()[:4] == [row["term"], row["size"], "float32", "1"]
        assert row["backend"] == "native"
        backward = {"empty function"} if TERMS[row["term"]].backward else set()
        assert set(row["times"]) - {"products"} == {"cid", "eager", "copy", "fresh copy"} | backward
        for timing in row["times"].values():
            assert 0 < timing["best"] <= timing["quartiles"][0] <= timing["median"] <= timing["quartiles"][1]
            assert timing["rounds"] >= MIN_ROUNDS
        assert row["floor"]["median"] > 0
        assert row["x_floor"]["best"] > 0
        assert row["speed_up"] == pytest.approx(row["times"]["eager"]["median"] / row["times"]["cid"]["median"])
        assert row["memory"]["eager"]["counted"] > 0
        assert row["moved_bytes"] > 0
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_compile_is_a_contender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Traced, but not compiled, which takes half a minute.
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="eager"))
    path = tmp_path / "new" / "out.json"
    bench(f"kd accumulate --size 6x5 --against all --no-memory --out {path}", capsys)
    for row in json.loads(path.read_text())["rows"]:
        others = min(row["times"][name]["median"] for name in ("eager", "compile"))
        assert row["speed_up"] == pytest.approx(others / row["times"]["cid"]["median"])
        assert row["memory"] is None
    assert path.with_suffix(".png").exists()


def test_a_forced_tier_runs_in_a_child(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(f"accumulate --size 6x5 --against none --simd fallback --no-memory --out {tmp_path}", capsys)
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["simd"] == "fallback"
    assert row["size"] == "6x5x5"
    assert row["speed_up"] is None


def test_accuracy_of_every_term(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = bench(f"--accuracy --dtype float32 --out {tmp_path}", capsys)
    rows = json.loads((tmp_path / "accuracy.json").read_text())["rows"]
    assert len(out.splitlines()[3:]) == len(rows)
    assert {row["term"] for row in rows} == {name for name, _ in SMALL}
    assert {row["factor"] for row in rows} == {1.0, 1e-30, 1e-10, 1e10, 1e30}
    for row in rows:
        for contender in ("cid", "eager"):
            assert (row[contender]["gradient"] is None) != TERMS[row["term"]].backward
            if row["factor"] == 1:
                assert row[contender]["loss"] < 1e-5
                assert (row[contender]["gradient"] or 0) < 1e-5


def test_accuracy_skips_what_the_native_backend_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(state: Tensors, backend: str | None) -> Step:
        raise RuntimeError("of a test")

    monkeypatch.setitem(TERMS, "kd", dataclasses.replace(TERMS["kd"], ours=refuse))
    row = accuracy(plan.Case("kd", (4, 5), "float32", 1), 1.0)
    assert row["skipped"] == "of a test"
    assert "cid" not in row


def test_a_factor_must_fit_the_type() -> None:
    assert fits("bfloat16", 1e30)
    assert fits("float16", 1.0)
    assert not fits("float16", 1e10)
    assert not fits("float16", 1e-10)


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_eager_is_the_reference(name: str, size: plan.Size) -> None:
    term = TERMS[name]
    results = []
    inputs = term.draw(size, F64)
    for backend in (None, "reference"):
        draws.seed(0)
        state = term.state(size, F64)
        step = term.ours(state, backend) if backend else lambda *x, state=state: term.eager(*x, *state)
        result, leaves = step(*inputs), term.leaves(inputs, state)
        values = state[-term.bank :] if result is None else (result,)
        gradients: Tensors = torch.autograd.grad(values, leaves) if leaves else ()
        results.append((*(value.detach() for value in values), *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum() / len(p)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_eager_divergences_are_the_textbook_ones(beta: float) -> None:
    s, q = torch.randn(7, 5, dtype=F64), torch.randn(7, 5, dtype=F64)
    student, teacher = (torch.softmax(x / 4, 1) for x in (s, q))
    torch.testing.assert_close(eager.kd(s, q), 16 * _divergence(teacher, student))
    torch.testing.assert_close(eager.kd_reverse(s, q), 16 * _divergence(student, teacher))
    middle = beta * teacher + (1 - beta) * student
    generalised = beta * _divergence(teacher, middle) + (1 - beta) * _divergence(student, middle)
    torch.testing.assert_close(eager.kd_js(s, q, beta), 16 * generalised)


def _moved(name: str, size: plan.Size, dtype: torch.dtype) -> int:
    term = TERMS[name]
    return floor.moved(term, term.draw(size, dtype), term.state(size, dtype))


def test_bytes_of_the_floor() -> None:
    assert _moved("kd", (10, 100), torch.float32) == 3 * 10 * 100 * 4  # two read, a gradient written
    assert _moved("kd", (10, 100), torch.bfloat16) == 3 * 10 * 100 * 2
    assert _moved("context-weights", (10, 100), torch.float32) == 10 * 100 * 4 + 10 * 8 + 10 * 4  # and labels, weights
    assert _moved("marginal", (10, 100, 7), F64) == (10 * 100 + 100 * 7 + 10 * 7) * 8
    # With one class, one row of the bank is read and written.
    assert _moved("accumulate", (10, 7, 1), torch.float32) == (10 * 7 + 10) * 4 + 10 * 8 + 2 * (7 + 1) * 4
    read = 5 * 2 + 5 * 3 + 5 * 4 + 5 * 3 + 4 * 2 + 4 + 3 * 4 + 3 + 3 * 2  # f, s, t, q, A, a, W, b, M
    written = 5 * 2 + 5 * 3 + 4 * 2 + 4 + 3 * 4 + 3
    term = TERMS["cid"]
    inputs = (*term.draw((5, 2, 4, 3), F64)[:4], torch.tensor([0, 0, 2, 2, 2]))
    bank = 2 * 2 * (2 + 1)
    assert floor.moved(term, inputs, term.state((5, 2, 4, 3), F64)) == (read + written + bank) * 8 + 5 * 8


def test_products_of_the_floor() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])  # classes of 3, 2 and 1
    inputs = (torch.empty(0), torch.empty(0), labels)
    (product,) = floor.products("class", (6, 10, 3), inputs)
    assert product == (6, 10, round(2 * (9 + 4) / 6))
    assert floor.products("class", (3, 10, 9), (*inputs[:2], torch.arange(3))) == []
    assert floor.products("kd", (6, 10), ()) == []
    flops = sum(math.prod(product) for product in floor.products("cid", (5, 2, 4, 3), ()))
    assert flops == 5 * (3 * 2 * 4 + 2 * 3 * 2 + 2 * (2 * 2 * 3))


def test_counted_memory_of_known_calls() -> None:
    x = torch.ones(1000)  # 4000 bytes
    assert memory.counted(lambda: torch.empty(1000)) == 0  # its output alone
    # What must be there at once; beside it PyTorch may have some numbers of its own.
    some = 256
    assert 4000 <= memory.counted(lambda: torch.exp(torch.exp(x))) <= 4000 + some
    assert 3 * 4000 - 4 <= memory.counted(lambda: torch.mul(torch.exp(x), torch.exp(x)).sum()) <= 3 * 4000 + some
    y = torch.ones(1000, requires_grad=True)
    # exp keeps its result for the backward.
    assert 4000 <= memory.counted(lambda: torch.autograd.grad(y.exp().sum(), y)) <= 4000 + some


def test_resident_memory_sees_what_pytorch_does_not_count() -> None:
    def scratch() -> None:
        bytearray(64 << 20)[::4096] = bytes(64 << 8)  # a write to every page

    if (seen := memory.resident(scratch)) is None:
        pytest.skip("no high-water mark that can be reset")
    assert memory.counted(scratch) == 0
    # What else the process takes and gives back meanwhile, and whole huge pages, are no part of it.
    assert 48 << 20 < seen < 96 << 20


def test_interleaved_gives_each_contender_every_round() -> None:
    rounds: dict[str, list[int]] = {"a": [], "b": []}
    times = interleaved({"a": rounds["a"].append, "b": rounds["b"].append}, seconds=1e-9)
    assert rounds["a"] == rounds["b"] == [0, 1, *range(MIN_ROUNDS)]
    assert times["a"].rounds == MIN_ROUNDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("mse", "TERM: got 'mse', accepted: kd, "),
        ("--size 0x3", "--size: got '0x3', accepted: ROWSxCOLUMNS"),
        ("--size 3", "--size: got '3'"),
        ("--size B1-Ds2", "--size: got 'B1-Ds2'"),
        ("kd --size 3x4x5", "--size: got 3x4x5, accepted: kd: rows x classes"),
        ("kd cid --size 3x4", "--size: got none for cid, accepted: kd: rows x classes; cid: rows x student"),
        ("--size 3x4 --preset small", "--preset: got small together with --size, accepted: one of the two"),
        ("--accuracy --preset small", "--preset: got small together with --accuracy"),
        ("--preset all", "--preset: invalid choice: 'all' (choose from"),
        ("--dtype int8", "--dtype: invalid choice: 'int8' (choose from"),
        ("--threads 0", "--threads: got '0', accepted: a whole number above 0"),
        ("--threads 1.5", "--threads: got '1.5', accepted: a whole number above 0"),
        ("--seconds nan", "--seconds: got 'nan', accepted: a number above 0"),
        ("--simd mmx", "--simd: invalid choice: 'mmx' (choose from"),
        ("--against jax", "--against: invalid choice: 'jax' (choose from"),
        ("--out table.txt", "--out: got 'table.txt', accepted: a folder, or a file that ends in .json"),
    ],
)
def test_bad_options_are_refused_by_name(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = cli.main(["bench", *arguments.split()])
    except SystemExit as error:
        code = error.code
    assert code == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert message in captured.err.splitlines()[-1]


def test_a_tier_that_the_cpu_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cid.bench.work._forced", lambda tier: {"CID_SIMD": "none"})
    assert cli.main(["bench", "kd", "--simd", "avx512"]) == 2
    assert "--simd: got avx512, accepted: a tier of this CPU" in capsys.readouterr().err


def test_a_debug_build_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("cid._native.build_info", lambda: {"profile": "debug", "simd": "avx2"})
    assert cli.main(["bench", "kd"]) == 2
    assert "got a debug build, accepted: a release build" in capsys.readouterr().err


def test_sizes_that_may_be_left_out() -> None:
    assert plan.parse("B64-Ds128-Dt256-C100") == plan.parse("64x128x256x100") == (64, 128, 256, 100)
    assert plan.chosen(["class"], [(6, 5)], None) == plan.chosen(["class"], [(6, 5, 5)], None)
    assert plan.chosen(["marginal"], [(6, 5)], None) == [("marginal", (6, 5, 128))]
    for preset in plan.PRESETS:
        for name, size in plan.chosen((), (), preset):
            assert len(size) == plan.KINDS[name].ranks[-1]
