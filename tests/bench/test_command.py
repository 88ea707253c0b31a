"""`cid bench`: what it measures is right, and it reports all of it. How fast anything is, no test asks."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cid import cli
from cid.bench import plan
from cid.bench.terms import TERMS
from cid.bench.timing import MIN_ROUNDS

SMALL = plan.chosen((), (), "small")


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
