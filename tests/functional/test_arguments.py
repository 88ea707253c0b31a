"""Bad input is refused by name, says what came and what is accepted, and changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cid
from cid import functional as F
from cid.backends import native
from tests import draws

B, C, D = 6, 4, 9
S, Q = draws.normal(B, C), draws.normal(B, C)
FS, FT = draws.normal(B, D), draws.normal(B, D)
Y = torch.arange(B) % C
W, M = draws.uniform(B), draws.normal(C, D)
HEAD, BIAS = draws.normal(C, 2 * D), draws.normal(C)

CALLS: dict[str, dict[str, Any]] = {
    "kd_loss": {"student_logits": S, "teacher_logits": Q, "target": Y},
    "sample_loss": {"student_features": FS, "teacher_features": FT},
    "class_loss": {"student_features": FS, "teacher_features": FT, "target": Y},
    "context_weights": {"teacher_logits": Q, "target": Y},
    "accumulate_context": {
        "features": FS,
        "weights": W,
        "target": Y,
        "numerator": torch.zeros(C, D),
        "denominator": torch.zeros(C),
    },
    "marginal_context": {"student_logits": S, "context": M},
    "interventional_logits": {"features": FS, "logits": S, "context": M, "weight": HEAD, "bias": BIAS},
    "cid_loss": {
        "student_features": FS,
        "student_logits": S,
        "teacher_features": FT,
        "teacher_logits": Q,
        "target": Y,
        "adapter_weight": draws.normal(D, D),
        "adapter_bias": draws.normal(D),
        "head_weight": HEAD,
        "head_bias": BIAS,
        "context": M,
        "beta": 1.0,
        "gamma": 1.0,
    },
}
# cid_loss hands its head to interventional_logits, which calls it by its own names.
RENAMED = {
    ("cid_loss", "head_weight"): "weight",
    ("cid_loss", "head_bias"): "bias",
}
backends = pytest.mark.parametrize("backend", ["native", "reference"])
TENSORS = [(name, a) for name, call in CALLS.items() for a, x in call.items() if isinstance(x, Tensor)]


def call(name: str, backend: str | None = None, **changed: Any) -> Any:
    return getattr(F, name)(**(CALLS[name] | changed), backend=backend)


@pytest.mark.parametrize("name", CALLS)
@backends
def test_the_call_itself_is_fine(name: str, backend: str) -> None:
    call(name, backend, **({"numerator": torch.zeros(C, D)} if name == "accumulate_context" else {}))


CHANGES: dict[str, tuple[Callable[[Tensor], Any], type[Exception]]] = {
    "list": (Tensor.tolist, TypeError),
    "None": (lambda x: None, TypeError),
    "numpy": (Tensor.numpy, TypeError),
    "int32": (Tensor.int, TypeError),
    "complex": (lambda x: x.to(torch.complex64), TypeError),
    "sparse": (Tensor.to_sparse, TypeError),
    "rank": (lambda x: x[None], ValueError),
    "rows": (lambda x: x[: len(x) - 1], ValueError),
    "device": (lambda x: x.to("meta"), ValueError),
}
FINE = [
    ("cid_loss", "context", "None"),  # means warm-up
    ("kd_loss", "target", "None"),  # means that all samples count
    ("marginal_context", "student_logits", "rows"),  # any number of rows goes with that context
]


@pytest.mark.parametrize(("name", "argument", "change"), FINE)
@backends
def test_what_is_no_error(name: str, argument: str, backend: str, change: str) -> None:
    call(name, backend, **{argument: CHANGES[change][0](CALLS[name][argument])})


@pytest.mark.parametrize(
    ("name", "argument", "change"), [(*of, change) for of in TENSORS for change in CHANGES if (*of, change) not in FINE]
)
@backends
def test_each_tensor_is_checked(name: str, argument: str, backend: str, change: str) -> None:
    make, expected = CHANGES[change]
    bad = make(CALLS[name][argument])
    error: tuple[type[Exception], ...] = (expected,)
    if (name, argument, backend) == ("context_weights", "teacher_logits", "native") and expected is ValueError:
        # The only float tensor: where it is on another device, it is the named backend that does not fit.
        error = (ValueError, RuntimeError)
    with pytest.raises(error) as caught:
        call(name, backend, **{argument: bad})
    message = str(caught.value)
    named = [*CALLS[name], RENAMED.get((name, argument), argument), "features", "logits"]
    assert message.partition(":")[0] in [*named, "backend 'native' can't take this call"], message
    assert "accepted" in message


def labelled(label: int) -> Tensor:
    return Y.index_fill(0, torch.tensor(2), label)


@backends
@pytest.mark.parametrize(
    ("name", "label"),
    [
        *((name, label) for name in ("kd_loss", "context_weights", "cid_loss") for label in (4, 2**40)),
        *(
            (name, label)
            for name in ("kd_loss", "class_loss", "context_weights", "cid_loss")
            for label in (-1, -101, -(2**63))
        ),
    ],
)
def test_labels_out_of_range(name: str, label: int, backend: str) -> None:
    contexts: list[dict[str, Tensor | None]] = [{"context": M}, {"context": None}] if name == "cid_loss" else [{}]
    for context in contexts:
        with pytest.raises(ValueError, match=rf"^target: label {label} at index 2\b.*accepted: "):
            call(name, backend, target=labelled(label), **context)


@backends
def test_labels_of_the_class_term_are_names(backend: str) -> None:
    assert call("class_loss", backend, target=labelled(2**40)) == call("class_loss", backend, target=labelled(7))


@backends
@pytest.mark.parametrize(
    "changed",
    [
        {"target": Y.index_fill(0, torch.tensor(5), C)},
        {"features": FS[:, :-1]},
        {"weights": W[:-1]},
        {"denominator": torch.zeros(C + 1)},
        {"features": FS.double()},
    ],
    ids=["label", "columns", "rows", "classes", "dtype"],
)
def test_a_refused_batch_adds_nothing(backend: str, changed: dict[str, Tensor]) -> None:
    numerator, denominator = torch.ones(C, D), torch.ones(C)
    with pytest.raises((ValueError, TypeError)):
        call("accumulate_context", backend, **({"numerator": numerator, "denominator": denominator} | changed))
    assert (numerator == 1).all()
    assert (denominator == 1).all()


@backends
def test_outputs_must_have_memory_of_their_own(backend: str) -> None:
    wide = torch.zeros(C, 2 * D)
    with pytest.raises(ValueError, match=r"^numerator: .*contiguous"):
        call("accumulate_context", backend, numerator=wide[:, ::2])
    with pytest.raises(ValueError, match=r"^denominator: .*contiguous"):
        call("accumulate_context", backend, denominator=torch.zeros(1).expand(C))
    with pytest.raises(ValueError, match=r"^numerator: .*gradient"):
        call("accumulate_context", backend, numerator=torch.zeros(C, D, requires_grad=True))
    with pytest.raises(ValueError, match=r"^denominator: .*negated"):
        call("accumulate_context", backend, denominator=torch._neg_view(torch.zeros(C)))


@backends
def test_outputs_must_not_overlap(backend: str) -> None:
    shared = torch.ones(C * D + C)
    numerator = shared[: C * D].view(C, D)
    with pytest.raises(
        ValueError, match=r"^(numerator|denominator): (overlaps|shares memory with) (numerator|denominator)"
    ):
        call("accumulate_context", backend, numerator=numerator, denominator=shared[C * D - 1 : C * D + C - 1])
    with pytest.raises(ValueError, match=r"^numerator: (overlaps|shares memory with) features"):
        call("accumulate_context", backend, numerator=numerator, features=numerator[1:2], weights=W[:1], target=Y[:1])
    beside = shared[C * D :]
    call("accumulate_context", backend, numerator=numerator.zero_(), denominator=beside.zero_())
    shared.fill_(1)
    assert (shared == 1).all()


@pytest.mark.parametrize("value", [0, -1.0, 1e-31, 1e31, float("nan"), float("inf"), "4", None, True])
def test_temperature(value: Any) -> None:
    for name in ("kd_loss", "context_weights", "marginal_context", "interventional_logits"):
        with pytest.raises((ValueError, TypeError), match=r"^temperature: got .*accepted: "):
            call(name, temperature=value)
    for make in (cid.KDLoss, lambda **k: cid.InterventionalHead(3, 4, **k), lambda **k: cid.ContextBank(3, 4, **k)):
        with pytest.raises((ValueError, TypeError), match=r"^temperature: got .*accepted: "):
            make(temperature=value)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1"])
def test_factors(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: got .*accepted: "):
        call("cid_loss", **{name: value})
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: got .*accepted: "):
        cid.CIDLoss(4, 4, 3, **({"beta": 1.0, "gamma": 1.0} | {name: value}))


@backends
def test_divergence(backend: str) -> None:
    with pytest.raises(ValueError, match=r"^divergence: got 'kl', accepted: 'forward', 'reverse', 'js'"):
        call("kd_loss", backend, divergence="kl")
    with pytest.raises(ValueError, match=r"^divergence"):
        cid.KDLoss(divergence="kl")
    values: list[Any] = [0, 1.0, -0.1, float("nan"), "1", None]
    for value in values:
        with pytest.raises((ValueError, TypeError), match=r"^beta: got .*accepted: "):
            call("kd_loss", backend, divergence="js", beta=value)
        with pytest.raises((ValueError, TypeError), match=r"^beta: got .*accepted: "):
            cid.KDLoss(divergence="js", beta=value)
    for index in (1.5, "1", None):
        with pytest.raises(TypeError, match=r"^ignore_index: got .*accepted: int"):
            call("kd_loss", backend, ignore_index=index)


@backends
def test_reduction(backend: str) -> None:
    with pytest.raises(ValueError, match=r"^reduction: got 'avg', accepted: 'none', 'mean', 'sum', 'batchmean'"):
        call("kd_loss", backend, reduction="avg")
    with pytest.raises(ValueError, match=r"^reduction: got 'batchmean', accepted: 'none', 'mean', 'sum'"):
        call("sample_loss", backend, reduction="batchmean")
    with pytest.raises(ValueError, match=r"^reduction"):
        cid.KDLoss(reduction="avg")
    with pytest.raises(ValueError, match=r"^reduction"):
        cid.SampleLoss(reduction="batchmean")


@backends
def test_empty_batch(backend: str) -> None:
    """A sum over nothing is 0, a mean over nothing is refused."""
    s, f, y = S[:0], FS[:0], Y[:0]
    for reduction in ("mean", "batchmean"):
        with pytest.raises(ValueError, match=r"^student_logits: the batch is empty"):
            F.kd_loss(s, s, reduction=reduction, backend=backend)
    with pytest.raises(ValueError, match=r"^student_features: the batch is empty"):
        F.sample_loss(f, f, backend=backend)
    assert F.kd_loss(s, s, reduction="none", backend=backend).shape == (0,)
    leaf = s.clone().requires_grad_()
    F.kd_loss(leaf, s, reduction="sum", backend=backend).backward()
    assert leaf.grad is not None
    assert F.sample_loss(f, f, reduction="sum", backend=backend) == 0
    assert F.class_loss(f, f, y, backend=backend) == 0
    assert F.context_weights(s, y, backend=backend).shape == (0,)
    assert F.marginal_context(s, M, backend=backend).shape == (0, D)
    numerator, denominator = torch.ones(C, D), torch.ones(C)
    F.accumulate_context(f, W[:0], y, numerator, denominator, backend=backend)
    assert (numerator == 1).all()


@backends
def test_degenerate_sizes(backend: str) -> None:
    """No classes are refused; one class, one sample and no features are fine."""
    with pytest.raises(ValueError, match=r"^student_logits: .*at least one class"):
        F.kd_loss(S[:, :0], S[:, :0], backend=backend)
    with pytest.raises(ValueError, match=r"^student_logits: .*at least one class"):
        F.kd_loss(S[0, 0], Q[0, 0], backend=backend)
    assert F.kd_loss(S[:, :1], Q[:, :1], backend=backend) == 0
    assert F.kd_loss(S[0], Q[0], reduction="none", backend=backend).shape == ()
    assert F.sample_loss(FS[:, :0], FS[:, :0], backend=backend) == 0
    assert F.class_loss(FS[:, :0], FS[:, :0], Y, backend=backend) == 0


def test_backend_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    meta: dict[str, Any] = {"student_logits": S.to("meta"), "teacher_logits": Q.to("meta"), "target": None}
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    for name in ("kd_loss", "sample_loss", "class_loss"):
        half = {k: x.to(dtype) if x.is_floating_point() else x for k, x in CALLS[name].items()}
        student = next(iter(half))
        half[student] = half[student].requires_grad_()
        loss = call(name, **half)
        assert loss.dtype == torch.float32
        (grad,) = torch.autograd.grad(loss, half[student])
        assert grad.dtype == dtype
        wide = {k: x.float() if x.is_floating_point() else x for k, x in half.items()}
        assert torch.equal(loss, call(name, **wide))


def test_autocast_is_computed_in_float32() -> None:
    """As PyTorch's losses: layers in bfloat16, the loss of their outputs in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.kd_loss(S.bfloat16(), Q)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, F.kd_loss(S.bfloat16().float(), Q))
        criterion = cid.CIDLoss(D, D, C, beta=1.0, gamma=1.0, warmup_epochs=0)
        leaf = FS.clone().requires_grad_()
        layer = nn.Linear(D, C)
        out = criterion(leaf.bfloat16(), layer(leaf), FT, Q, Y)
        out.loss.backward()
        assert out.loss.dtype == torch.float32
        assert leaf.grad is not None
        assert criterion.bank.denominator.sum() > 0


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
