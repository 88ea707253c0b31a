"""A student in training, as the one module that the loop steps, scores, saves and wraps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cid._errors import ConfigError
from cid.context import ContextBank
from cid.losses import ignored_by_ddp
from cid.train.methods._base import Ingredients, Method, StepOutput
from cid.train.sharding import part_like

if TYPE_CHECKING:
    from cid.train.data import Batch


class Training(nn.Module):
    """The networks of a method, each an attribute of the name that the method gives it.

    Args:
        method: how they are trained.
        given: what it makes them of; the teacher's parameters stop requiring gradients.

    Attributes:
        epoch: the current one, from 0, (); the loop sets it. A tensor, as a compiled step is one for each number.
    """

    if TYPE_CHECKING:  # which networks there are is the method's to say

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, method: Method, given: Ingredients) -> None:
        super().__init__()
        self.method = method
        self.epoch = torch.zeros(())
        self._compiled: tuple[Callable[[Training, Batch], StepOutput], int] | None = None
        self._begun = False
        if given.teacher is not None:
            given.teacher.requires_grad_(False)
        for name, network in method.networks(given).items():
            self.add_module(name, network)
        named = list(self.named_modules(remove_duplicate=False))
        self._teachers = tuple(name for name, module in named if module is given.teacher)
        # DistributedDataParallel asks the module that it wraps.
        self._ddp_params_and_buffers_to_ignore = tuple(
            ignored
            for name, network in self.named_children()
            for ignored in ignored_by_ddp(name, getattr(network, "_ddp_params_and_buffers_to_ignore", ()))
        )
        self.train()

    def train(self, mode: bool = True) -> Training:
        """Sets the mode; the teacher stays in eval mode."""
        super().train(mode)
        for name in self._teachers:
            self.get_submodule(name).eval()
        return self

    def compile_step(self, batch_size: int) -> None:
        """Compiles the loss of batches of this size; a smaller one, an epoch's last, is not worth a graph."""
        self._compiled = torch.compile(self.method.step, dynamic=False), batch_size

    def forward(self, batch: Batch) -> StepOutput:
        """The loss of a batch.

        Raises:
            ConfigError: it can't be compiled here.
        """
        # The first batch is what networks are looked at with, which afterwards are found to be another graph.
        begun, self._begun = self._begun, True
        full = self._compiled is not None and len(batch.target) == self._compiled[1]
        if self._compiled is None or not (begun and full and self.method.compilable(self)):
            return self.method.step(self, batch)
        from torch._dynamo.exc import BackendCompilerFailed  # seconds, which other runs need not wait

        try:
            return self._compiled[0](self, batch)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).partition("\n")[0]
            raise ConfigError(
                f"--compile: {reason}, accepted: where PyTorch can compile, as by C++ on a CPU"
            ) from error

    @torch.no_grad()
    def teacher_logits(self, batch: Batch) -> Tensor:
        """The logits of the network `teacher` for a batch, or those that come with it, adjusted if they are to be.

        Raises:
            ValueError: there are neither.
        """
        if batch.teacher is not None:
            return batch.adjusted(batch.teacher[1])
        if self.teacher is None:
            raise ValueError("teacher: not given, accepted: (features, logits), as the method has no teacher")
        return batch.adjusted(self.teacher(batch.inputs))

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits to score the current epoch with."""
        return self.method.predict(self, inputs)

    def predictor(self) -> nn.Module:
        """The module to use after training."""
        return self.method.predictor(self)

    def found(self) -> dict[str, float]:
        """Options that the method chose by itself, for the metrics."""
        return self.method.found(self)

    @property
    def scorable(self) -> bool:
        """Whether the weights of the current epoch may be kept as the best."""
        return self.method.scorable(self)

    def epoch_end(self) -> None:
        """Goes to the next epoch; called after the epoch was scored."""
        self.method.epoch_end(self)

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """What an optimizer trains."""
        return self.method.param_groups(self, weight_decay)

    def trained_state(self) -> dict[str, Tensor]:
        """All state but the teacher's: it is fixed, and saved once for the whole run."""
        return {key: value for key, value in self.state_dict().items() if not self._is_teachers(key)}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `trained_state` gave, or the same made whole where it was in parts.

        Raises:
            RuntimeError: a tensor is missing, unknown or of another shape.
        """
        own = self.state_dict()
        teacher = {key: value for key, value in own.items() if self._is_teachers(key)}
        parts = {key: part_like(value, own[key]) if key in own else value for key, value in state.items()}
        self.load_state_dict({**teacher, **parts})

    def keep_buffers(self) -> None:
        """Tells `DistributedDataParallel` that all ranks' buffers are the same, or each rank's own."""
        buffers = (name for name, _ in self.named_buffers())
        self._ddp_params_and_buffers_to_ignore = (*self._ddp_params_and_buffers_to_ignore, *buffers)

    def gathered(self) -> set[str]:
        """What each rank gathers by itself, for the sum of all: the names of such buffers."""
        banks = [name for name, module in self.named_modules() if isinstance(module, ContextBank)]
        return {f"{name}.{sums}" for name in banks for sums in ("numerator", "denominator")}

    def _is_teachers(self, key: str) -> bool:
        return any(key.startswith(f"{name}.") for name in self._teachers)
