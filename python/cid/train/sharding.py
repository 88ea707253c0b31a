"""Networks of which each rank has a part (FSDP2): made so from whole ones, and their tensors made whole again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cid._across import in_parts
from cid._errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# What is worth an exchange of its own: less than 4 MB takes hardly longer than its latency.
SMALLEST_BLOCK = 1_000_000


def shard(training: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Leaves each rank its part of all parameters, in place; gathered is a block at a time, when it computes.

    Of what is in no block all is gathered for the whole step, so that a loss finds the parameters of its own.

    Args:
        training: a network in training, with its loss; it goes where the ranks compute.
        mesh: the ranks.

    Raises:
        ConfigError: a parameter can't be divided.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for module in training.modules():
        _lay_out_for_parts(module)
    try:
        for module in (*blocks(training, SMALLEST_BLOCK), training):
            # The outermost, too, which by default stays whole after it is scored: then nobody sees what is written
            # into the parts.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    except ValueError as error:
        raise ConfigError(f"--shard: {error}") from error
    register_fsdp_forward_method(training, "predict")
    return training


def scalar_parameters(network: nn.Module) -> list[str]:
    """The names of those that can't be divided."""
    return [name for name, parameter in network.named_parameters() if not parameter.dim()]


def _lay_out_for_parts(module: nn.Module) -> None:
    """Makes parameters contiguous, as they have to be; maps that channels-last ones made so become so by themselves."""
    for parameter in module.parameters(recurse=False):
        if not parameter.is_contiguous():
            if parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
                module.register_forward_pre_hook(_channels_last)
            parameter.data = parameter.data.contiguous()


def _channels_last(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.contiguous(memory_format=torch.channels_last) if isinstance(value, Tensor) and value.dim() == 4 else value
        for value in inputs
    )


def blocks(training: nn.Module, smallest: int) -> list[nn.Module]:
    """What is gathered by itself: members of lists, as layers mostly are, of so many parameters without inner blocks.

    Other modules may be asked for their parameters from outside. So may those whose parameters others have, too.
    """
    owners = Counter(id(value) for _, value in training.named_parameters(remove_duplicate=False))
    found: list[nn.Module] = []
    divided: set[int] = set()

    def look(module: nn.Module, is_member: bool) -> None:
        in_list = isinstance(module, nn.Sequential | nn.ModuleList)
        for child in module.children():
            look(child, in_list)
        own = [value for value in module.parameters() if id(value) not in divided]
        shared = any(owners[id(value)] > 1 for value in own)
        computes = is_member and not isinstance(module, nn.ModuleList)
        if computes and not shared and sum(value.numel() for value in own) >= smallest:
            found.append(module)
            divided.update(map(id, own))

    look(training, False)
    return found


def whole(value: Tensor) -> Tensor:
    """The tensor of which each rank has a part, on the CPU; all of them call this. Another is as it was."""
    return value.full_tensor().cpu() if in_parts(value) else value


def part_like(value: Tensor, own: Tensor) -> Tensor:
    """Of a whole tensor what `own` is of one: this rank's part, or all of it."""
    if not in_parts(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every rank has it all: nothing is sent.
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def own_part(value: Tensor) -> Tensor:
    """What this rank has of a tensor: the memory itself."""
    return value.to_local() if in_parts(value) else value
