"""Hugging Face: a `Trainer` whose model is a `cid.Distiller`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from cid.distiller import Distiller

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        'cid.integrations.transformers needs Transformers: pip install "cid-distill[transformers]"'
    ) from error


class DistillationTrainer(Trainer):
    """`transformers.Trainer` for a `cid.Distiller` around any two classifiers that take their inputs by name.

    - Training minimises the distiller's loss, also over accumulated and distributed batches.
    - Evaluation and prediction use the logits of `Distiller.predict`; `eval_loss` is their cross-entropy, as it is
      without distillation. The teacher does not run.
    - The distiller's epoch ends when the next one of the trainer begins, after all evaluation.
    - Weight decay leaves out the adapter, beside what `Trainer` leaves out.
    - Checkpoints hold the whole distiller, teacher and contexts included; `resume_from_checkpoint` goes on from them.

    After training, `trainer.model.student()` is the student with its head, and `trainer.model.student_model`, with its
    `save_pretrained`, the one without.

    Args:
        model: The `cid.Distiller`.
        args: As for `Trainer`.
        **options: As for `Trainer`, but for `compute_loss_func` and `model_init`.

    Raises:
        TypeError: The model is no `cid.Distiller`.
        ValueError: An option asks for another loss, or for `torch.nn.DataParallel`, which loses what its replicas
            gather.

    Example:
        >>> import tempfile
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> def vit(width: int) -> ViTForImageClassification:
        ...     return ViTForImageClassification(
        ...         ViTConfig(
        ...             hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=1,
        ...             image_size=8, patch_size=4, num_channels=1, num_labels=10,
        ...         )
        ...     )
        >>> distiller = Distiller(vit(8), vit(16), num_classes=10, beta=10.0, gamma=1.0)
        >>> args = TrainingArguments(tempfile.mkdtemp(), report_to="none", use_cpu=True)
        >>> trainer = DistillationTrainer(distiller, args)
    """

    model: Distiller

    def __init__(self, model: Distiller, args: TrainingArguments | None = None, **options: Any) -> None:
        if not isinstance(model, Distiller):
            raise TypeError(f"model: got {type(model).__name__}, accepted: cid.Distiller")
        for name in ("compute_loss_func", "model_init"):
            if options.get(name) is not None:
                raise ValueError(f"{name}: got {options[name]!r}, accepted: None, the distiller has its own")
        if args is not None and args.label_smoothing_factor != 0:
            raise ValueError(f"label_smoothing_factor: got {args.label_smoothing_factor}, accepted: 0")
        if args is not None and args.n_gpu > 1:
            raise ValueError(
                f"args: got {args.n_gpu} GPUs in one process, accepted: one; start a process for each with torchrun"
            )
        super().__init__(model, args, **options)
        self.label_names = self.args.label_names or ["labels"]
        self.add_callback(_EpochEnd())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The distiller's loss of a batch of training; with its `cid.CIDOutput`, if asked for."""
        batch, target = self._split(inputs)
        output = model(batch, target)
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What the student predicts, and its cross-entropy, if there are labels."""
        batch, target = self._split(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(batch)
            loss = None
            if target is not None:
                ignored = self.model.criterion.ignore_index
                loss = nn.functional.cross_entropy(logits, target, ignore_index=ignored)
        return (loss, None, None) if prediction_loss_only else (loss, logits, target)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All that `Trainer` would decay, but for the adapter."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if "criterion.adapter." not in name]

    def _split(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """What the models take, and the labels."""
        (label_name,) = self.label_names
        return {name: value for name, value in inputs.items() if name != label_name}, inputs.get(label_name)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the student takes: the distiller's own signature names none."""
        if self._signature_columns is None:
            taken = inspect.signature(self.model.student_model.forward).parameters
            self._signature_columns = [*taken, "label", "label_ids", *self.label_names]  # type: ignore[assignment]


class _EpochEnd(TrainerCallback):
    """Ends the distiller's epoch when the next one begins: evaluation comes after `on_epoch_end`."""

    def __init__(self) -> None:
        self._ended = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Resumed: a checkpoint of an epoch's last step was saved before the turn.
        if state.global_step:
            self._ended = float(state.epoch).is_integer()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._ended:
            kwargs["model"].epoch_end()
        self._ended = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ended = True
