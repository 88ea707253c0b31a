"""What the ranks of a process group have to know of each other's samples, where their batches are parts of one."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

import cid._checks as check
from cid.backends.fused.tensors import real
from cid.backends.options import Whole
from cid.backends.targets import labelled, majority

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

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
        """Starts a step, as soon as the teacher has been asked: nobody waits yet, but in the first step."""
        self.received = 0
        count = len(target)
        if count > self._room > 0 and not target.is_cpu:
            raise ValueError(
                f"target: got {count} samples, accepted: at most {self._room} on a device, the most that a rank had in "
                "the first step or that were reserved"
            )
        labels, ignored = majority(target, ignore_index)
        with_label = labelled(target, None, ignore_index).sum()
        if not self._room:
            self._room = int(
                self._gathered(torch.stack((labels.new_tensor(count), with_label)))[0].view(-1, 2)[:, 0].max()
            )
        return Exchange(self, teacher_features, labels, with_label, ignored)

    def gather(self, rows: Tensor) -> tuple[Tensor, Callable[[], object]]:
        """The rows of all ranks, each filled up with zeros, (ranks, room, D): there, when the function has returned."""
        fitting = rows.detach()[: self._room]
        missing = self._room - len(fitting)
        return self._gathered(nn.functional.pad(fitting, (0, 0, 0, missing)) if missing else fitting, True)

    def gather_labels(self, labels: Tensor, with_label: Tensor, ignored: int) -> tuple[Tensor, Callable[[], object]]:
        """A block for each rank: how many samples it has, how many with a label, and the labels; (ranks, 2 + room)."""
        block = labels.new_full((2 + self._room,), ignored)
        block[0], block[1] = len(labels), with_label
        block[2 : 2 + len(labels)] = labels[: self._room]
        return self._gathered(block, True)

    def made_room(self, blocks: Tensor) -> bool:
        """Whether a rank had more samples than there was room for, where one can look; now there is."""
        if not blocks.is_cpu or (longest := int(blocks[:, 0].max())) <= self._room:
            return False
        self._room = longest
        return True

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


def in_parts(value: Tensor) -> "TypeIs[DTensor]":
    """Whether a tensor lies in parts on the ranks."""
    # To import this takes as long as PyTorch does: who has not done so has none of them.
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(value, tensor.DTensor)


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` has been at a module, or parameters are `DTensor`s for another reason."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # as above
    return any(map(in_parts, module.parameters())) or (
        fsdp is not None and any(isinstance(each, fsdp.FSDPModule) for each in module.modules())
    )


class Exchange:
    """One step: what is sent, and on its way.

    Args:
        across: The ranks.
        teacher_features: t of our own samples.
        labels: Their classes.
        with_label: How many have one.
        ignored: The label of samples in no class.
    """

    def __init__(
        self, across: Across, teacher_features: Tensor, labels: Tensor, with_label: Tensor, ignored: int
    ) -> None:
        self._across, self._teacher = across, teacher_features
        self._labels = labels, with_label, ignored
        self._send()

    def _send(self) -> None:
        across = self._across
        self._blocks = across.gather_labels(*self._labels)
        self._theirs = across.gather(self._teacher) if across.pairs == "all" else None

    def whole(self, student_features: Tensor, target: Tensor, ignore_index: int) -> Callable[[], Whole]:
        """Sends the student's features; what is returned waits for those of all ranks."""
        across, f, t = self._across, student_features, self._teacher
        ours = across.gather(f) if across.pairs == "all" else None

        def wait() -> Whole:
            blocks, done = self._blocks
            done()
            blocks = blocks.view(across.size, -1)
            if across.made_room(blocks):
                self._end(ours)
                self._send()
                return self.whole(f, target, ignore_index)()
            counts = blocks[:, :2].to(real(f))  # as a quotient of integers would be of float32
            share, labelled_share = (across.size * counts[across._rank] / counts.sum(0).clamp(min=1)).unbind()
            if ours is None or self._theirs is None:
                return Whole(f, t, *majority(target, ignore_index), share, labelled_share, pulls=1)
            self._end(ours)
            every_f, every_t = across.among(ours[0], f), across.among(self._theirs[0], t)
            labels, ignored = blocks[:, 2:].flatten(), self._labels[2]
            return Whole(every_f, every_t, labels, ignored, share, labelled_share, pulls=across.size)

        return wait

    def _end(self, ours: tuple[Tensor, Callable[[], object]] | None) -> None:
        for sent in (self._theirs, ours):
            if sent is not None:
                sent[1]()


class _Averaging(torch.autograd.Function):
    """The identity, whose gradient is the mean of the ranks'."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, across: Across) -> Tensor:
        ctx.across = across
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.across.mean(gradient.clone(memory_format=torch.contiguous_format)), None
