"""Which backend serves a call, and what is said of one that can't."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cid import functional as F
from cid.backends import native
from tests.functional.calls import Q, S, call


def test_backend_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    meta: dict[str, Any] = {
        "student_logits": S.to("meta"),
        "teacher_logits": Q.to("meta"),
        "target": None,
        "weight": None,
    }
    with pytest.raises(ValueError, match=r"^backend: got 'cuda'; accepted: 'auto', 'native', 'triton', 'reference'"):
        call("kd_loss", "cuda")
    with pytest.raises(RuntimeError, match=r"'native' can't take this call: a tensor is on meta, accepted: cpu"):
        call("kd_loss", "native", **meta)
    monkeypatch.setattr("cid.backends._DEFAULT", "nativ")  # what CID_BACKEND was at import
    with pytest.raises(ValueError, match=r"^CID_BACKEND: got 'nativ'"):
        call("kd_loss")
    monkeypatch.setattr("cid.backends._DEFAULT", "native")
    with pytest.raises(RuntimeError, match="'native' can't take"):
        call("kd_loss", **meta)
    assert call("kd_loss", "reference", **meta).is_meta


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # of PyTorch's own transforms
def test_subclasses_and_transforms_fall_back() -> None:
    """What the kernels can't read silently is left to the reference; asked for by name they say so."""

    class Tagged(Tensor):
        pass

    tagged = S.as_subclass(Tagged)
    torch.testing.assert_close(F.kd_loss(tagged, Q).as_subclass(Tensor), F.kd_loss(S, Q))
    with pytest.raises(RuntimeError, match="Tagged"):
        F.kd_loss(tagged, Q, backend="native")
    grad = torch.func.grad(lambda s: F.kd_loss(s, Q))(S)
    leaf = S.clone().requires_grad_()
    F.kd_loss(leaf, Q).backward()
    torch.testing.assert_close(grad, leaf.grad)
    per_sample = torch.vmap(lambda s, q: F.kd_loss(s[None], q[None]))(S, Q)
    torch.testing.assert_close(per_sample, F.kd_loss(S, Q, reduction="none"))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(S, torch.ones_like(S))
        tangent = torch.autograd.forward_ad.unpack_dual(F.kd_loss(dual, Q)).tangent
        assert tangent is not None
        with pytest.raises(RuntimeError, match="forward-mode"):
            F.kd_loss(dual, Q, backend="native")


def test_refusal_names_the_device() -> None:
    assert native.refusal([S.to("meta")]) == "a tensor is on meta, accepted: cpu"
