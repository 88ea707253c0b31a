"""What crosses from PyTorch into Rust: tensors that are not what they seem, threads, forks, and errors.

PyTorch's exchange table describes any tensor as dense memory, whatever else it is: what a kernel would read there is
not always what PyTorch would.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from cid import _native
from cid import functional as F
from cid.backends import native
from tests import draws
from tests.cases import TERMS, kernel_arguments, kernels

B, C = 6, 5
NAMED = r"^(\w+: |backend 'native' can't take this call: )"

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's, of tensors that it calls prototypes or deprecated


class Wrapper(Tensor):
    """A tensor whose values are another's."""

    wrapped: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.wrapped = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*tree_map(lambda x: x.wrapped if isinstance(x, Wrapper) else x, args), **(kwargs or {}))


@dataclass
class Kind:
    """A tensor of an unusual kind with the values of a usual one, and a way back."""

    make: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Tensor] = torch.clone


def simple(make: Callable[[Tensor], Tensor], read: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    @contextmanager
    def context() -> Iterator[Kind]:
        yield Kind(make, read)

    return context


@contextmanager
def fake() -> Iterator[Kind]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        yield Kind(mode.from_tensor, lambda x: x)  # it has a shape, and no values


@contextmanager
def dtensor() -> Iterator[Kind]:
    if not dist.is_available():
        pytest.skip("this build of PyTorch has no torch.distributed")
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        yield Kind(
            lambda x: distribute_tensor(x, mesh, [Replicate()]),
            lambda x: x.full_tensor() if isinstance(x, DTensor) else x,
        )
    finally:
        dist.destroy_process_group()


@contextmanager
def dual() -> Iterator[Kind]:
    with forward_ad.dual_level():
        yield Kind(
            lambda x: forward_ad.make_dual(x, torch.ones_like(x)) if x.is_floating_point() else x,
            lambda x: forward_ad.unpack_dual(x).primal,
        )


@contextmanager
def batched() -> Iterator[Kind]:
    from torch._C._functorch import _add_batch_dim, _remove_batch_dim, _vmap_decrement_nesting, _vmap_increment_nesting

    level = _vmap_increment_nesting(1, "error")
    try:
        yield Kind(lambda x: _add_batch_dim(x[None], 0, level), lambda x: _remove_batch_dim(x, level, 1, 0)[0])
    finally:
        _vmap_decrement_nesting()


@contextmanager
def functionalised() -> Iterator[Kind]:
    from torch._C._functorch import _func_decrement_nesting, _func_increment_nesting, _unwrap_functional_tensor
    from torch._C._functorch import _wrap_functional_tensor as wrap

    level = _func_increment_nesting(True)
    try:
        yield Kind(lambda x: wrap(x, level), lambda x: _unwrap_functional_tensor(x, True))
    finally:
        _func_decrement_nesting()


def negative(x: Tensor) -> Tensor:
    return torch._neg_view(-x)


def imaginary(x: Tensor) -> Tensor:
    """Of a conjugate: a view that is negated and strided, as anybody may come by it."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag if x.is_floating_point() else negative(x)


def zero(x: Tensor) -> Tensor:
    return torch._efficientzerotensor(x.shape, dtype=x.dtype)


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8) if x.is_floating_point() else x


KINDS: dict[str, Any] = {
    "fake": fake,
    "dtensor": dtensor,
    "dual": dual,
    "batched": batched,
    "functionalised": functionalised,
    "functional_tensor": simple(torch._to_functional_tensor, torch._from_functional_tensor),
    "wrapper": simple(Wrapper),
    "zero": simple(zero),
    "negative": simple(negative),
    "imaginary": simple(imaginary),
    "conjugate": simple(lambda x: x.to(torch.complex64).conj()),
    "meta": simple(lambda x: x.to("meta"), lambda x: x),
    "sparse": simple(Tensor.to_sparse),
    "sparse_csr": simple(lambda x: x.to_sparse_csr() if x.ndim == 2 else x.to_sparse()),
    "mkldnn": simple(lambda x: x.to_mkldnn() if x.is_floating_point() else x),
    "quantized": simple(quantized),
    "nested": simple(lambda x: torch.nested.nested_tensor(list(x))),
    "jagged": simple(lambda x: torch.nested.nested_tensor(list(x[..., None]), layout=torch.jagged)),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def _there_is(kind: str, of: Tensor) -> bool:
    """Whether a tensor of this kind can have these values."""
    if of.ndim == 0:
        return kind not in ("mkldnn", "nested", "jagged")
    return of.is_floating_point() or kind not in ("dual", "mkldnn", "quantized")


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    return draws.normal(B, C), draws.normal(B, C), torch.arange(B) % 3


def _cid_loss(s: Tensor, t: Tensor, y: Tensor, *, backend: str, **options: Any) -> Tensor:
    given: dict[str, Any] = {"adapter_weight": torch.eye(C), "adapter_bias": torch.ones(C)}
    given |= {"head_weight": torch.ones(C, 2 * C), "head_bias": torch.ones(C), "context": torch.eye(C)}
    if mesh := getattr(s, "device_mesh", None):  # its products are with its like alone
        from torch.distributed.tensor import Replicate, distribute_tensor

        given = {name: distribute_tensor(x, mesh, [Replicate()]) for name, x in given.items()}
    return F.cid_loss(s, s, t, t, y, **given, beta=1.0, gamma=1.0, backend=backend, **options).loss


# Cross-entropy has no function of its own, which would check its arguments.
LOSSES: dict[str, Callable[..., Tensor]] = {
    name: term.call for name, term in TERMS.items() if not name.startswith("cross_entropy")
}
LOSSES["cid"] = _cid_loss


def _given(loss: str) -> tuple[Tensor, ...]:
    """Inputs of a loss: the student's, the teacher's, labels."""
    return _inputs() if loss == "cid" else TERMS[loss].draw(B, C, torch.float32)


def _places(loss: str) -> dict[str, tuple[int, ...]]:
    """Which of its inputs are of an unusual kind."""
    given = _given(loss)
    floats = tuple(i for i, x in enumerate(given) if x.is_floating_point())
    each = {name: (i,) for i, name in enumerate(("student", "teacher", "target")) if i < len(given)}
    return {"floats": floats, **each} | ({"all": (*floats, 2)} if "target" in each else {})


CASES = [
    (loss, place, kind)
    for loss in LOSSES
    for place, at in _places(loss).items()
    for kind in KINDS
    if all(_there_is(kind, x) for i, x in enumerate(_given(loss)) if i in at)
]


def _outcome(call: Callable[..., Tensor], kind: Kind, inputs: list[Tensor], backend: str) -> Tensor | Exception:
    try:
        return kind.read(call(*inputs, backend=backend))
    except Exception as error:
        return error


@pytest.mark.parametrize(("loss", "place", "kind"), CASES)
def test_never_another_number(loss: str, place: str, kind: str) -> None:
    """`auto` does as the reference does or says what it can't take, `native` is right or says so."""
    at = _places(loss)[place]
    usual = _given(loss)
    with KINDS[kind]() as made:
        inputs = [made.make(x) if i in at else x for i, x in enumerate(usual)]
        reference, auto, named = (
            _outcome(LOSSES[loss], made, inputs, name) for name in ("reference", "auto", "native")
        )
    for ours in (auto, named):
        if isinstance(ours, Exception):
            # Where the reference could have served, it is our own error.
            assert isinstance(reference, Exception) or pytest.RaisesExc(Exception, match=NAMED).matches(ours), ours
        elif isinstance(reference, Exception):
            pytest.fail(f"{ours} where the reference raises {reference!r}")
        elif ours.is_meta or type(ours).__name__ == "FakeTensor":
            assert ours.shape == reference.shape
        else:
            torch.testing.assert_close(ours, reference)


@kinds
def test_plain_is_not_said_of_them(kind: Any) -> None:
    usual, *_ = _inputs()
    with kind() as made:
        unusual = made.make(usual)
        if kind is dual:
            assert _native.plain(unusual)  # it is, but for its tangent
            assert not native.takes((unusual,), None)
        else:
            assert not _native.plain(unusual)
            assert not _native.plain(torch.ones(2, 2), unusual)


class _Parameter(nn.Parameter):
    pass


def test_plain() -> None:
    x = torch.ones(4, 6)
    for yes in ((x,), (x, nn.Parameter(x)), (x.half(), x.half()), (x.double(),), (x.bfloat16(),), (x[1:],), (x[0, 0],)):
        assert _native.plain(*yes) is True
    assert _native.plain(x.requires_grad_(), x.detach()) is True
    different: list[tuple[object, ...]] = [(x, x.double()), (x, x.half()), (x.half(), x.bfloat16()), (x, None), (None,)]
    different += [(x.long(),), (x.bool(),), (x.to(torch.complex64),), (x[:0],), (x.mT,), (x[:, ::2],), ([1.0],)]
    different += [(x.detach().numpy(),), (_Parameter(x.detach()),), (x.detach().as_subclass(Wrapper),)]
    for no in different:
        assert _native.plain(*no) is False


NEGATED = ("negative", "imaginary")


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in ("dual", *NEGATED)])
@kernels
def test_kernels_refuse_them(name: str, kind: str) -> None:
    _refuses(name, kind)


@kernels
def test_kernels_refuse_negated_views(name: str) -> None:
    """Of which the table shows the values that are to be negated."""
    _refuses(name, "negative")


def _refuses(name: str, kind: str) -> None:
    """Each tensor of a call by itself, as an input or an output: an error, and nothing written."""
    kernel, arguments = getattr(_native, name), kernel_arguments()[name]
    kernel(*arguments)
    before = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
    for i, argument in enumerate(arguments):
        if isinstance(argument, Tensor) and _there_is(kind, argument):
            with KINDS[kind]() as made:
                unusual = made.make(argument)
                with pytest.raises((TypeError, ValueError, RuntimeError), match=r"^\w+: "):
                    kernel(*arguments[:i], unusual, *arguments[i + 1 :])
    for x, old in zip(arguments, before, strict=True):
        assert not isinstance(x, Tensor) or torch.equal(x, old)


LABELLED: dict[str, Callable[..., Any]] = {
    "kd": lambda s, t, y, backend: F.kd_loss(s, t, target=y, ignore_index=1, backend=backend),
    "class": lambda s, t, y, backend: F.class_loss(s, t, y, backend=backend),
    "weights": lambda s, t, y, backend: F.context_weights(s, y, backend=backend),
    "accumulate": lambda s, t, y, backend: F.accumulate_context(
        s, torch.ones(B), y, torch.zeros(C, C), torch.zeros(C), backend=backend
    ),
    "cid": lambda s, t, y, backend: _cid_loss(s, t, y, backend=backend),
}


@pytest.mark.parametrize("backend", ["reference", "native", None])
@pytest.mark.parametrize("call", LABELLED.values(), ids=LABELLED)
def test_negated_labels(call: Callable[..., Any], backend: str | None) -> None:
    """They are what PyTorch takes them for, not what lies in memory."""
    s, t, y = _inputs()
    torch.testing.assert_close(call(s, t, negative(y), backend), call(s, t, y, backend))
    with pytest.raises(ValueError, match=r"^target: label -1 at index 1, accepted: 0 "):
        call(s, t, torch._neg_view(y), backend)


@pytest.mark.parametrize("backend", ["reference", "native", None])
@pytest.mark.parametrize("which", [0, 1])
def test_negated_sums(which: int, backend: str | None) -> None:
    """The batch would be subtracted."""
    s, t, y = _inputs()
    memory = [torch.zeros(C, C), torch.zeros(C)]
    sums = [torch._neg_view(x) if i == which else x for i, x in enumerate(memory)]
    with pytest.raises(ValueError, match=r"^(numerator|denominator): is a negated view"):
        _cid_loss(s, t, y, backend=backend or "auto", context_sums=tuple(sums))
    assert not any(x.any() for x in memory)


def _trace_fx(function: Any, x: Tensor) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function)(x)


TRACERS = {"fx": _trace_fx, "jit": lambda function, x: torch.jit.trace(function, x, check_trace=False)}


@pytest.mark.parametrize("trace", TRACERS.values(), ids=TRACERS)
def test_what_is_traced_depends_on_its_input(trace: Any) -> None:
    """A tracer sees PyTorch's operations alone: of a kernel, memory that nothing writes."""
    s, t, _ = _inputs()
    traced = trace(lambda x: F.kd_loss(x, t), s)
    torch.testing.assert_close(traced(s + t), F.kd_loss(s + t, t))


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_batched_backward(reduction: str, backend: str) -> None:
    """Several gradients of the output at once, by vmap over the backward: the same, or an error."""
    s, t, _ = _inputs()
    leaf = s.requires_grad_()
    loss = F.kd_loss(leaf, t, reduction=reduction, backend=backend)
    outer = torch.randn(3, *loss.shape)
    expected = torch.stack([torch.autograd.grad(loss, leaf, g, retain_graph=True)[0] for g in outer])
    try:
        (ours,) = torch.autograd.grad(loss, leaf, outer, is_grads_batched=True)
    except RuntimeError:
        assert backend == "native"
    else:
        torch.testing.assert_close(ours, expected)
