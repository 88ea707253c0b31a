"""Lightning: the epochs of the criterion follow those of the `Trainer`."""

from __future__ import annotations

from typing import Any

from torch import nn

from cid.losses import CIDLoss, ignored_by_ddp

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError('cid.integrations.lightning needs Lightning: pip install "cid-distill[lightning]"') from error


class DistillationCallback(Callback):
    """Ends the criterion's epoch when the next one of the `Trainer` begins.

    For a `LightningModule` that holds a `cid.Distiller` (or a `cid.CIDLoss`), made in its `__init__`. All validation
    of an epoch comes before the turn of the bank, as the method wants it, and a run resumed from any checkpoint, saved
    in an epoch or after it, turns as the uninterrupted one.

    On several devices it keeps `DistributedDataParallel` from overwriting what each rank gathers. With warm-up epochs,
    whose loss does not reach the head, take `strategy="ddp_find_unused_parameters_true"`.

    Raises:
        ValueError: When a run starts: the `LightningModule` holds no criterion.

    Example:
        >>> import cid
        >>> from torch import nn
        >>> class Classifier(LightningModule):
        ...     def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        ...         super().__init__()
        ...         self.model = cid.Distiller(student, teacher, num_classes=10, beta=10.0, gamma=1.0)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return self.model(*batch).loss
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.model.param_groups(weight_decay=5e-4), lr=0.05)
        >>> trainer = Trainer(callbacks=[DistillationCallback()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._epoch: int | None = None  # of the last batch trained with

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have `DistributedDataParallel`, which asks the module that it wraps, leave each rank's sums alone."""
        if not _criteria(pl_module):
            raise ValueError(
                f"DistillationCallback: {type(pl_module).__name__} holds no cid.Distiller or cid.CIDLoss; "
                "make one in its __init__"
            )
        criteria = [name for name, module in pl_module.named_modules() if isinstance(module, CIDLoss)]
        names = CIDLoss._ddp_params_and_buffers_to_ignore
        ours = {one for name in criteria for one in ignored_by_ddp(name, names)}
        ignored = {*getattr(pl_module, "_ddp_params_and_buffers_to_ignore", ()), *ours}
        pl_module._ddp_params_and_buffers_to_ignore = sorted(ignored)  # type: ignore[assignment]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the epoch before, if this batch is of another one."""
        # Not in on_train_epoch_start, which a run resumed from a checkpoint of validation's end does not call.
        if self._epoch not in (None, trainer.current_epoch):
            for criterion in _criteria(pl_module):
                criterion.epoch_end()
        self._epoch = trainer.current_epoch

    def state_dict(self) -> dict[str, Any]:
        """The epoch of the last batch, for a checkpoint."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._epoch = state_dict["epoch"]


def _criteria(module: nn.Module) -> list[CIDLoss]:
    return [part for part in module.modules() if isinstance(part, CIDLoss)]
