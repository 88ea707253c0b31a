"""What the ranks of a process group have to know of each other's samples, where their batches are parts of one."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

import cid._checks as check
from cid.backends.options import Whole
from cid.backends.targets import labelled, majority

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
EXCHANGE = "ranks exchange what they know of their samples"
PAIRS = ("all", "local")


class Across:
    """The ranks of a group, and what they exchange in a step.

    No rank waits for its device, but in the first step, which tells how long a batch may be. Gradients are not
    exchanged: each rank computes class of all samples, and of the gradients has those of its own.

    Args:
        group: The ranks.
        pairs: "all", or "local": which samples class compares, those of all ranks or of each.

    Attributes:
        group: As given.
        size: How many ranks there are.
        received: Bytes that this one received in the last step.
    """

    def __init__(self, group: "ProcessGroup", pairs: str = "all") -> None:
        if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(
                f"process_group: got {type(group).__name__}, accepted: torch.distributed.ProcessGroup, None"
            )
        check.choice("pairs", pairs, PAIRS)
        self.group = group
        self.pairs = pairs
        self.size = dist.get_world_size(group)
        self._rank = dist.get_rank(group)
        self._room = 0  # samples of the longest part of a batch that was seen
        self.received = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Across":
        return self  # a group can't be copied

    def begin(self, teacher_features: Tensor, target: Tensor, ignore_index: int) -> "Exchange":
        """Starts a step, as soon as the teacher has been asked."""
        self.received = 0
        count = len(target)
        labels, ignored = majority(target, ignore_index)
        with_label = labelled(target, None, ignore_index).sum()
        look = target.is_cpu or not self._room
        if count > self._room and not look:
            raise ValueError(
                f"target: got {count} samples, accepted: at most {self._room} on a device, the most that a rank had in "
                "the first step or that were reserved"
            )
        while True:
            # One block a rank: how many samples it has, how many of them have a label, and the labels.
            block = labels.new_full((2 + self._room,), ignored)
            block[0], block[1] = count, with_label
            block[2 : 2 + count] = labels[: self._room]
            blocks = self._gathered(block)[0].view(self.size, -1)
            if not look or (longest := int(blocks[:, 0].max())) <= self._room:
                break
            self._room = longest
        return Exchange(self, teacher_features, blocks, ignored)

    def gather(self, rows: Tensor) -> tuple[Tensor, Callable[[], object]]:
        """The rows of all ranks, each filled up with zeros, (ranks, room, D): there, when the function has returned."""
        missing = self._room - len(rows)
        return self._gathered(nn.functional.pad(rows.detach(), (0, 0, 0, missing)) if missing else rows.detach(), True)

    def _gathered(self, values: Tensor, later: bool = False) -> tuple[Tensor, Callable[[], object]]:
        values = values.contiguous()
        every = values.new_empty(self.size, *values.shape)
        self.received += (self.size - 1) * values.nbytes
        work = dist.all_gather_into_tensor(every.flatten(0, 1), values, group=self.group, async_op=later)
        return every, (work.wait if work is not None else lambda: None)

    def among(self, every: Tensor, own: Tensor) -> Tensor:
        """The rows of all ranks with our own among them, which have gradients; (ranks * room, D)."""
        start = self._rank * self._room
        rows = every.flatten(0, 1)
        return torch.cat((rows[:start], own, rows[start + len(own) :]))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of the ranks' tensors, in place."""
        dist.all_reduce(values, group=self.group)
        return values.div_(self.size)

    def reserve(self, samples: int) -> None:
        """Makes room for parts of so many samples, on all ranks, so that the first step need not ask for it."""
        self._room = max(self._room, samples)

    @torch.no_grad()
    def same(self, *tensors: Tensor) -> None:
        """The tensors of the first rank, in place: as objects, for tensors may not yet be where the group's are."""
        found = [[values.detach().cpu() for values in tensors]]
        dist.broadcast_object_list(found, group=self.group, group_src=0)
        for values, first in zip(tensors, found[0], strict=True):
            values.copy_(first)

    def averaging(self, parameter: Tensor) -> Tensor:
        """The parameter, whose gradient is the mean of those of the ranks."""
        if not (parameter.requires_grad and torch.is_grad_enabled()):
            return parameter
        found: Tensor = _Averaging.apply(parameter, self)
        return found


def uncompiled(why: str, function: Callable[..., T], *arguments: Any) -> T:
    """The function's value, of what `torch.compile` is to leave alone."""
    if not torch.compiler.is_dynamo_compiling():
        return function(*arguments)
    value: T = torch._dynamo.disable(function, reason=why)(*arguments)  # type: ignore[no-untyped-call]
    return value


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` has been at a module, or parameters are `DTensor`s for another reason."""
    # To import these takes as long as PyTorch does: who has not done so has none of theirs.
    tensor, fsdp = (sys.modules.get(f"torch.distributed.{name}") for name in ("tensor", "fsdp"))
    return (tensor is not None and any(isinstance(value, tensor.DTensor) for value in module.parameters())) or (
        fsdp is not None and any(isinstance(each, fsdp.FSDPModule) for each in module.modules())
    )


class Exchange:
    """One step: what was sent, and is on its way.

    Args:
        across: The ranks.
        teacher_features: t of our own samples.
        blocks: Of each rank the numbers of its samples and of those with a label, and the labels.
        ignored: The label of samples in no class.
    """

    def __init__(self, across: Across, teacher_features: Tensor, blocks: Tensor, ignored: int) -> None:
        self._across, self._blocks, self._ignored = across, blocks, ignored
        self._teacher = teacher_features
        self._coming: list[tuple[Tensor, Tensor, Callable[[], object]]] = []
        if across.pairs == "all":
            self._send(teacher_features)

    def _send(self, rows: Tensor) -> None:
        self._coming.append((rows, *self._across.gather(rows)))

    def whole(self, student_features: Tensor, target: Tensor, ignore_index: int) -> Callable[[], Whole]:
        """Sends the student's features; what is returned waits for those of all ranks."""
        across = self._across
        counts = self._blocks[:, :2].to(_real(student_features))  # as a quotient of integers would be of float32
        share, labelled_share = (across.size * counts[across._rank] / counts.sum(0).clamp(min=1)).unbind()
        if across.pairs == "local":
            local = Whole(
                student_features, self._teacher, *majority(target, ignore_index), share, labelled_share, pulls=1
            )
            return lambda: local
        self._send(student_features)

        def wait() -> Whole:
            for _, _, done in self._coming:
                done()
            (t, every_t, _), (f, every_f, _) = self._coming
            labels = self._blocks[:, 2:].flatten()
            return Whole(
                across.among(every_f, f),
                across.among(every_t, t),
                labels,
                self._ignored,
                share,
                labelled_share,
                pulls=across.size,
            )

        return wait


def _real(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Averaging(torch.autograd.Function):
    """The identity, whose gradient is the mean of the ranks'."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, across: Across) -> Tensor:
        ctx.across = across
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.across.mean(gradient.clone(memory_format=torch.contiguous_format)), None
