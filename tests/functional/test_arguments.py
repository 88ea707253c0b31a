"""Bad input is refused by name, says what came and what is accepted, and changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cid
from cid import functional as F
from tests.cases import IGNORE, backends
from tests.functional.calls import CALLS, FS, C, D, M, Q, S, W, Y, call

TENSORS = [(name, a) for name, call in CALLS.items() for a, x in call.items() if isinstance(x, Tensor)]


def test_every_function_is_called() -> None:
    assert CALLS.keys() == {name for name in F.__all__ if name.islower()}


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
    *((name, "weight", "None") for name in ("kd_loss", "sample_loss", "cid_loss")),  # means that all count alike
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
    assert message.partition(":")[0] in [*CALLS[name], "backend 'native' can't take this call"], message
    assert "accepted" in message


# Of two arguments that do not fit each other, either may be named; and the only float tensor of a call decides with its
# device about the backend.
EITHER = [
    ("kd_loss", "student_logits", "rows"),
    ("sample_loss", "student_features", "rows"),
    ("class_loss", "student_features", "rows"),
    ("accumulate_context", "features", "rank"),
    ("context_weights", "teacher_logits", "device"),
]


@pytest.mark.parametrize(
    ("name", "argument", "change"),
    [(*of, change) for of in TENSORS for change in CHANGES if (*of, change) not in FINE + EITHER],
)
def test_one_voice(name: str, argument: str, change: str) -> None:
    """Whoever looks first, Rust or Python, says it in the same words; any size is `*` there and a letter here."""
    said = []
    for backend in ("native", "reference", None):
        with pytest.raises((TypeError, ValueError)) as caught:
            call(name, backend, **{argument: CHANGES[change][0](CALLS[name][argument])})
        said.append((caught.type, str(caught.value).partition(", accepted")[0]))
    assert len(set(said)) == 1, said


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
        with pytest.raises(ValueError, match=rf"^target: label {label} at index 2, accepted: 0 "):
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
    with pytest.raises(ValueError, match=r"^(numerator|denominator): overlaps (numerator|denominator) in memory"):
        call("accumulate_context", backend, numerator=numerator, denominator=shared[C * D - 1 : C * D + C - 1])
    with pytest.raises(ValueError, match=r"^numerator: overlaps features in memory, accepted"):
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


def test_what_is_no_float_is_refused_by_name() -> None:
    s, q, y = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, IGNORE, 0])
    for given in (q.long(), q.bool(), q.to(torch.complex64)):
        with pytest.raises(TypeError, match=r"^teacher_logits: got torch.*accepted: torch.float32, torch.float64"):
            F.kd_loss(s, given)
        with pytest.raises(TypeError, match=r"^teacher_features: got torch.*accepted: torch.float32, torch.float64"):
            F.class_loss(s, given, y)
