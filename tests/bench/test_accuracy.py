"""`cid bench --accuracy`: errors against the truth in float64."""

import dataclasses

import pytest

from cid.bench import plan
from cid.bench.accuracy import accuracy, fits
from cid.bench.terms import TERMS, Step, Tensors


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
