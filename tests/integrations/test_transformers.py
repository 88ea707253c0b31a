"""Hugging Face's `Trainer` trains a distiller as a loop written by hand does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

import cid

pytest.importorskip("transformers", reason="needs the extra: pip install 'cid-distill[transformers]'")
pytest.importorskip("accelerate", reason="needs the extra: pip install 'cid-distill[transformers]'")

from transformers import TrainingArguments

from cid.integrations.transformers import DistillationTrainer
from tests import draws

# The frameworks' own use of deprecated functions, and their advice, are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

B, C, STEPS, EPOCHS = 8, 4, 4, 3
OPTIM = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "weight_decay": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}


class Net(nn.Module):
    """A classifier with the interface of Hugging Face's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(10, width)
        self.classifier = nn.Linear(width, C)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.body(pixel_values).relu())}


def distiller(**options: Any) -> cid.Distiller:
    draws.seed(0)
    options = {"num_classes": C, "beta": 1.0, "gamma": 1.0, "warmup_epochs": 1} | options
    return cid.Distiller(Net(6), Net(9), **options)


def data() -> list[dict[str, Any]]:
    x = torch.randn(B * STEPS, 10, generator=torch.Generator().manual_seed(draws.shifted(0)))
    return [{"pixel_values": row, "labels": i % C, "idle": i} for i, row in enumerate(x)]


class InOrder(DistillationTrainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(data())


def trainer(folder: Path, model: cid.Distiller | None = None, **options: Any) -> DistillationTrainer:
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    sizes = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": B, "per_device_eval_batch_size": B}
    options = {**OPTIM, **quiet, **sizes, **options}
    args = TrainingArguments(str(folder), **options)
    return InOrder(model or distiller(), args, train_dataset=data(), eval_dataset=data())


def test_it_trains_as_a_loop_by_hand_does(tmp_path: Path) -> None:
    """Gradients accumulated over two batches, evaluation before the bank turns, no decay of the adapter."""
    ours = trainer(tmp_path, gradient_accumulation_steps=2, eval_strategy="epoch")
    ours.train()
    model = distiller()
    adapter = set(model.criterion.adapter.parameters())
    biases = {p for p in model.parameters() if p.ndim == 1}
    groups = [
        {
            "params": [p for p in model.parameters() if p.requires_grad and p not in adapter | biases],
            "weight_decay": 0.1,
        },
        {"params": [p for p in model.parameters() if p.requires_grad and p in adapter | biases], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    x = torch.stack([row["pixel_values"] for row in data()])
    y = torch.arange(len(x)) % C
    losses = []
    for epoch in range(EPOCHS):
        model.train()
        for i, (xs, ys) in enumerate(zip(x.split(B), y.split(B), strict=True)):
            (model({"pixel_values": xs}, ys).loss / 2).backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        losses.append(float(nn.functional.cross_entropy(model.predict({"pixel_values": x}), y)))
        if epoch < EPOCHS - 1:
            model.epoch_end()
    torch.testing.assert_close(ours.model.state_dict(), model.state_dict())
    evaluated = [line["eval_loss"] for line in ours.state.log_history if "eval_loss" in line]
    np.testing.assert_allclose(evaluated, losses, rtol=1e-5)


@pytest.mark.parametrize("when", [{"save_strategy": "epoch"}, {"save_strategy": "steps", "save_steps": 3}], ids=str)
def test_every_checkpoint_resumes(tmp_path: Path, when: dict[str, Any]) -> None:
    whole = trainer(tmp_path, **when)
    whole.train()
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) >= EPOCHS
    for checkpoint in checkpoints:
        resumed = trainer(tmp_path / "resumed")
        resumed.train(resume_from_checkpoint=str(checkpoint))
        torch.testing.assert_close(
            resumed.model.state_dict(), whole.model.state_dict(), msg=f"{checkpoint.name} differs"
        )


def test_prediction(tmp_path: Path) -> None:
    """By the student's own logits in warm-up, by the interventional ones after it; also without labels."""
    ours = trainer(tmp_path, num_train_epochs=1)
    x = torch.stack([row["pixel_values"] for row in data()])
    unlabelled = [{"pixel_values": row} for row in x]
    for expected in (lambda: ours.model.student_model(x)["logits"], lambda: ours.model.student()(x)["logits"]):
        ours.model.eval()
        predicted = ours.predict(unlabelled)  # type: ignore[arg-type]
        np.testing.assert_allclose(predicted.predictions, expected().detach().numpy(), rtol=1e-5, atol=1e-6)
        assert predicted.label_ids is None
        assert ours.predict(data()).label_ids.tolist() == [i % C for i in range(len(x))]  # type: ignore[arg-type, union-attr]
        ours.train()
        ours.model.epoch_end()


def test_bfloat16(tmp_path: Path) -> None:
    ours = trainer(tmp_path, bf16=True, num_train_epochs=2)
    assert np.isfinite(ours.train().training_loss)
    assert ours.model.criterion.bank.context.dtype == torch.float32


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^model: got Net, accepted: cid\.Distiller"):
        DistillationTrainer(Net(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^compute_loss_func: got .*accepted: None"):
        DistillationTrainer(distiller(), compute_loss_func=lambda *_: 0)
    with pytest.raises(ValueError, match=r"^label_smoothing_factor: got 0\.1, accepted: 0"):
        trainer(tmp_path, label_smoothing_factor=0.1)
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"^args: got 2 GPUs in one process, accepted: one"):
        DistillationTrainer(distiller(), args)
