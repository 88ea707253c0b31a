"""What `import cid` gives: every public name, imported when it is asked for."""

import pickle
import subprocess
import sys

import pytest
import torch

import cid


@pytest.mark.parametrize("name", cid.__all__)
def test_every_public_name_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = getattr(cid, name)
    assert name in dir(cid)
    if name != "__version__":
        monkeypatch.delitem(vars(cid), name)  # as in a process that has not asked for it yet
        assert name in dir(cid)
        assert getattr(cid, name) is value


def test_what_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'cid' has no attribute 'Distiler'"):
        cid.Distiler  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Distiler' from 'cid'"):
        from cid import Distiler  # type: ignore[attr-defined]  # noqa: F401


def test_the_import_alone_brings_no_torch() -> None:
    program = """
import sys, cid
assert set(cid.__all__) <= set(dir(cid))
assert "torch" not in sys.modules
from cid import *
assert CIDLoss is cid.losses.CIDLoss
assert functional.CIDOutput is CIDOutput
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pickles_load_in_a_process_that_has_imported_nothing() -> None:
    head = cid.InterventionalHead(4, 3)
    program = "import pickle, sys; print(type(pickle.load(sys.stdin.buffer)).__name__)"
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(head), check=True, capture_output=True)
    assert done.stdout.decode().strip() == "InterventionalHead"


def test_a_compiled_function_may_be_the_first_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(cid), "functional")

    @torch.compile(fullgraph=True, backend="eager")
    def loss(s: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return cid.functional.kd_loss(s, q, temperature=2.0)

    s, q = torch.randn(2, 4, 3)
    expected = loss(s, q)
    assert torch.equal(expected, cid.functional.kd_loss(s, q, temperature=2.0))
