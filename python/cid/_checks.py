"""What the public functions accept. Each check names the argument, what came and what is accepted."""

import math
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64, *HALVES)


def tensor(name: str, value: object) -> Tensor:
    """A strided tensor of any type."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, accepted: torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}, accepted: torch.strided (see Tensor.to_dense)")
    if value.is_nested:
        raise TypeError(f"{name}: got a nested tensor, accepted: one of a single shape (see Tensor.to_padded_tensor)")
    return value


def floats(**tensors: Tensor) -> None:
    """Float tensors of one type on one device."""
    first = next(iter(tensors))
    lead = tensor(first, tensors[first])
    for name, value in tensors.items():
        beside(first, lead, **{name: value})
        if value.dtype != lead.dtype:
            raise TypeError(f"{name}: got {value.dtype}, accepted: {lead.dtype}, the type of {first}")


def beside(like: str, lead: Tensor, **tensors: Tensor) -> None:
    """Float tensors on the device of `lead`, each of a type of its own."""
    for name, value in tensors.items():
        if tensor(name, value).dtype not in FLOATS:
            raise TypeError(f"{name}: got {value.dtype}, accepted: {', '.join(map(str, FLOATS))}")
        if value.device != lead.device:
            raise ValueError(f"{name}: is on {value.device}, accepted: {lead.device}, the device of {like}")


def as_wide(like: str, lead: Tensor, **tensors: Tensor) -> None:
    """Float tensors on the device of `lead`, and of its type, or float32 where that is a half-precision one."""
    accepted = (lead.dtype, torch.float32) if lead.dtype in HALVES else (lead.dtype,)
    for name, value in tensors.items():
        if tensor(name, value).dtype not in accepted:
            raise TypeError(f"{name}: got {value.dtype}, accepted: {' or '.join(map(str, accepted))}, as {like}")
        if value.device != lead.device:
            raise ValueError(f"{name}: is on {value.device}, accepted: {lead.device}, the device of {like}")


def shape(name: str, value: Tensor, expected: Sequence[int | str]) -> None:
    """A shape in which each number is fixed and each letter is any size."""
    if value.shape == expected:  # the usual case, in a tenth of the time
        return
    if value.ndim == len(expected):
        for size, wanted in zip(value.shape, expected, strict=True):  # in half the time that `all` takes
            if size != wanted and not isinstance(wanted, str):
                break
        else:
            return
    accepted = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
    raise ValueError(f"{name}: got shape {tuple(value.shape)}, accepted: ({accepted})")


def classes(name: str, value: Tensor) -> None:
    """At least one class, in the last dimension."""
    if value.ndim == 0 or value.shape[-1] == 0:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, accepted: at least one class")


# Read once, as CID_BACKEND is.
_ASSERT_LABELS = os.environ.get("CID_CHECK_LABELS") == "1"


def labels(name: str, value: Tensor, like: Tensor, num_classes: int | None, ignore_index: int) -> None:
    """One int64 label a sample of `like`, which has one dimension more.

    Their values are for `label_range`, or for a kernel that reads them anyway; on a device, for an assertion there.
    """
    if tensor(name, value).dtype != torch.int64:
        raise TypeError(f"{name}: got {value.dtype}, accepted: torch.int64")
    shape(name, value, like.shape[:-1])
    if value.device != like.device:
        raise ValueError(f"{name}: is on {value.device}, accepted: {like.device}, the device of the features or logits")
    if _ASSERT_LABELS and not value.is_cpu:
        assert_labels(name, value, num_classes, ignore_index)


def weights(name: str, value: Tensor, like: str, lead: Tensor) -> None:
    """One float a sample of `lead`, which has one dimension more.

    Their values are for `weight_range`, or for a kernel that reads them anyway; on a device, for an assertion there.
    """
    beside(like, lead, **{name: value})
    shape(name, value, lead.shape[:-1])
    if _ASSERT_LABELS and not value.is_cpu:
        torch._assert_async(are_weights(value.detach()).all(), f"{name}: one is negative or not finite")


def are_weights(value: Tensor) -> Tensor:
    """Which are finite numbers from 0."""
    return (value >= 0) & (value < math.inf)  # not NaN, with which no comparison is true


def weight_range(name: str, value: Tensor) -> None:
    """Finite numbers from 0, wherever looking costs no wait and breaks no trace."""
    if not _can_look(value):
        return
    wrong = (~are_weights(value)).nonzero()
    if len(wrong):
        where = int(wrong[0])
        raise ValueError(f"{name}: got {float(value[where])} at index {where}, accepted: finite numbers >= 0")


def holds_shares(target: object) -> bool:
    """Whether a target gives the share of each class, and not a label."""
    return isinstance(target, Tensor) and target.is_floating_point()


def targets(name: str, value: Tensor, like: Tensor, num_classes: int | None, ignore_index: int) -> None:
    """What a sample shows: its label, as `labels` has it, or, in a float tensor, the share of each class in it."""
    if not holds_shares(value):
        labels(name, value, like, num_classes, ignore_index)
        return
    classes(name, tensor(name, value))
    shape(name, value, (*like.shape[:-1], "C" if num_classes is None else num_classes))
    if value.device != like.device:
        raise ValueError(f"{name}: is on {value.device}, accepted: {like.device}, the device of the features or logits")
    if value.is_cpu:
        share_range(name, value)
    elif _ASSERT_LABELS:
        torch._assert_async(_are_shares(value).all(), f"{name}: a row holds no shares that add up to 1")


# What is added up in half precision is off by less; logits, counts and several labels a sample by more.
_SHARES_ADD_UP_TO = 0.01


def _are_shares(value: Tensor) -> Tensor:
    """Which rows hold numbers from 0 that add up to 1, or zeros alone."""
    total = value.sum(-1, dtype=torch.promote_types(value.dtype, torch.float32))
    # Not NaN, with which no comparison is true.
    return (value.amin(-1) >= 0) & (((total - 1).abs() <= _SHARES_ADD_UP_TO) | (total == 0))


def _all_are_shares(value: Tensor) -> bool:
    """Whether every row holds numbers from 0 that add up to 1: the usual case, in a third of the time."""
    if value.numel() == 0 or not value.amin().item() >= 0:
        return False
    low, high = value.sum(-1, dtype=torch.promote_types(value.dtype, torch.float32)).aminmax()
    return low.item() >= 1 - _SHARES_ADD_UP_TO and high.item() <= 1 + _SHARES_ADD_UP_TO


def share_range(name: str, value: Tensor) -> None:
    """Shares as `_are_shares` has them, wherever looking costs no wait and breaks no trace."""
    if not _can_look(value) or _all_are_shares(value.detach()):
        return
    wrong = (~_are_shares(value.detach())).nonzero()
    if len(wrong):
        where = int(wrong[0])
        row = value.detach()[where]
        came = f"adds up to {float(row.sum()):.3g}" if row.amin() >= 0 else f"holds {float(row.amin()):.3g}"
        raise ValueError(
            f"{name}: row {where} {came}, accepted: shares from 0 that add up to 1, or zeros alone for no label"
        )


def _can_look(value: Tensor) -> bool:
    """Whether a look at the tensor's values costs no wait for a device and breaks no trace."""
    return value.is_cpu and not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def assert_labels(name: str, value: Tensor, num_classes: int | None, ignore_index: int) -> None:
    """Stop the device, without waiting for it, where a label is out of range."""
    torch._assert_async(~_out_of_range(value, num_classes, ignore_index).any(), f"{name}: a label is out of range")


def _out_of_range(value: Tensor, num_classes: int | None, ignore_index: int) -> Tensor:
    beyond = value < 0 if num_classes is None else (value < 0) | (value >= num_classes)
    return beyond & (value != ignore_index)


def label_range(name: str, value: Tensor, num_classes: int | None, ignore_index: int) -> None:
    """Labels from 0, below `num_classes` if known, wherever looking costs no wait and breaks no trace."""
    if not _can_look(value):
        return
    wrong = _out_of_range(value, num_classes, ignore_index).nonzero()
    if len(wrong):
        where = int(wrong[0])
        accepted = "0 and up" if num_classes is None else f"0 to {num_classes - 1}"
        raise ValueError(
            f"{name}: label {int(value[where])} at index {where}, accepted: {accepted}, or ignore_index {ignore_index}"
        )


def integer(name: str, value: object) -> None:
    """A Python int of 64 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: got {type(value).__name__}, accepted: int")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: got {value}, accepted: -2^63 to 2^63 - 1")


def number(
    name: str, value: float, *, low: float, high: float = math.inf, open_low: bool = False, open_high: bool = False
) -> None:
    """A finite number of the interval."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: got {type(value).__name__}, accepted: a number")
    above = low < value if open_low else low <= value
    below = value < high if open_high else value <= high
    if not (-math.inf < value < math.inf and above and below):  # torch.compile can trace no isfinite
        bounds = f"{'above' if open_low else 'from'} {low:g}"
        if high != math.inf:
            bounds += f" {'and below' if open_high else 'to'} {high:g}"
        raise ValueError(f"{name}: got {value}, accepted: finite, {bounds}")


def temperature(value: float) -> None:
    """A positive number of a size that every type can hold, as it can its inverse."""
    if type(value) is float and 1e-30 <= value <= 1e30:  # the usual case, in a tenth of the time
        return
    number("temperature", value, low=1e-30, high=1e30)


def choice(name: str, value: str, accepted: Sequence[str]) -> None:
    """One of the accepted words."""
    if value not in accepted:
        raise ValueError(f"{name}: got {value!r}, accepted: {', '.join(map(repr, accepted))}")


def not_empty(name: str, rows: Tensor, reduction: str) -> None:
    """At least one row where a mean is asked for: that of nothing is undefined."""
    if reduction in ("mean", "batchmean") and rows.shape[0] == 0:
        raise ValueError(f"{name}: the batch is empty, accepted with reduction {reduction!r}: at least one sample")


def written(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
    """Tensors written in place: dense, and with no memory in common with any other."""
    places = {name: _addresses(value) for name, value in {**inputs, **outputs}.items()}
    for name, value in outputs.items():
        if not value.is_contiguous():
            raise ValueError(
                f"{name}: got strides {value.stride()}, accepted: a contiguous tensor, it is written in place"
            )
        start, end = places[name]
        for other, (other_start, other_end) in places.items():
            if other != name and start < other_end and other_start < end:
                raise ValueError(
                    f"{name}: overlaps {other} in memory, accepted: memory of its own, it is written in place"
                )


def writable(**outputs: Tensor) -> None:
    """Tensors written in place, which autograd would not notice, and whose memory holds their values as they are."""
    for name, value in outputs.items():
        if value.requires_grad:
            raise ValueError(f"{name}: requires a gradient, accepted: a tensor that does not, it is written in place")
        if not torch.compiler.is_compiling() and value.is_neg():  # can't be traced
            raise ValueError(f"{name}: is a negated view, accepted: a tensor without one, it is written in place")


def _addresses(value: Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends in memory; in a trace and on the meta device there are no addresses."""
    if torch.compiler.is_compiling() or value.is_meta or not value.numel():
        return 0, 0
    extent = value.numel()
    if not value.is_contiguous():
        extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.data_ptr(), value.data_ptr() + extent * value.element_size()


def size(name: str, value: int) -> None:
    """A number of things: an int from 1."""
    integer(name, value)
    if value < 1:
        raise ValueError(f"{name}: got {value}, accepted: 1 and up")
