"""Which tensors the kernels take, and how they take them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

import cid._checks as check

_KINDS = (Tensor, torch.nn.Parameter)  # a subclass may keep its values elsewhere


def refusal(tensors: Iterable[Tensor], device: str, dtypes: Sequence[torch.dtype]) -> str | None:
    """Why kernels for the device and types can't take these tensors, or None if they can."""
    for tensor in tensors:
        if type(tensor) not in _KINDS:
            return f"a tensor is a {type(tensor).__name__}, accepted: torch.Tensor"
        if tensor.device.type != device:
            return f"a tensor is on {tensor.device}, accepted: {device}"
        if tensor.dtype not in dtypes:
            return f"a tensor is {tensor.dtype}, accepted: {', '.join(map(str, dtypes))}"
        if tensor.layout is not torch.strided:
            return f"a tensor is {tensor.layout}, accepted: torch.strided"
    if torch.compiler.is_compiling():  # no obstacle by itself: see `cid.backends.ops`
        # Not is_exporting(), which PyTorch 2.11's Dynamo takes to be true in every trace.
        return "it is being traced by torch.export" if torch.compiler._is_exporting_flag else _functorch()
    return transform()


def transform() -> str | None:
    """What there is, if anything, outside of torch.compile that must see PyTorch's own operations."""
    if torch._C._is_tracing():
        return "it is being traced by torch.jit.trace"
    if torch._C._len_torch_dispatch_stack():  # make_fx, FakeTensorMode, a counter of operations
        return "it runs under a TorchDispatchMode"
    if forward_ad._current_level >= 0:
        return "it runs under forward-mode differentiation"
    return _functorch()


def _functorch() -> str | None:
    return "it runs under a torch.func transform" if torch._C._are_functorch_transforms_active() else None


def real(tensor: Tensor) -> torch.dtype:
    """The type that a tensor is computed in, and that its losses have."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def dense(tensor: Tensor) -> Tensor:
    """`tensor` as the kernels read it: its values in memory order."""
    if torch.compiler.is_compiling():  # which can't ask for the negative bit, and sees to it by itself
        return tensor.contiguous()
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()  # `contiguous` alone would keep a negative bit


def weight_beside(weight: Tensor | None, student: Tensor) -> Tensor | None:
    """The weights of samples as the kernels read them, beside the student's tensor."""
    return None if weight is None else dense(weight.detach().to(real(student)))


def takes_beside(student: torch.dtype, teacher: torch.dtype) -> bool:
    """Whether the kernels take a student and a teacher of these types: the same, or either half beside float32."""
    return student == teacher or (student == torch.float32 and teacher in check.HALVES)


def side_by_side(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in types that the kernels take: as they are, or converted up.

    The student's gradient passes back through the conversion to its own type.
    """
    if student.dtype != teacher.dtype:
        wide = torch.promote_types(real(student), real(teacher))
        student = student.to(wide)
        if not takes_beside(wide, teacher.dtype):
            teacher = teacher.detach().to(wide)
    return student, teacher
