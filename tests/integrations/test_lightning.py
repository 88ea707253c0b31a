"""Lightning trains a `LightningModule` with a distiller as a loop written by hand does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import cid

pytest.importorskip("lightning.pytorch", reason="needs the extra: pip install 'cid-distill[lightning]'")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from cid.integrations.lightning import DistillationCallback
from tests import draws

# Lightning's own use of deprecated functions, and its advice, are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

B, C, STEPS, EPOCHS = 8, 4, 4, 4


def distiller(**options: Any) -> cid.Distiller:
    draws.seed(0)
    student = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, C))
    teacher = nn.Sequential(nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, C))
    return cid.Distiller(
        student, teacher, **({"num_classes": C, "beta": 1.0, "gamma": 1.0, "warmup_epochs": 1} | options)
    )


def data(*, same: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(draws.shifted(0))
    x = torch.randn(B * STEPS, 10, generator=generator)
    if same:
        x = x[:B].repeat(STEPS, 1)
    return DataLoader(TensorDataset(x, torch.arange(len(x)) % C), B)


class Module(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.scores: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(*batch).loss
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.scores.append(self.model(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert isinstance(self.model, cid.Distiller)
        return torch.optim.SGD(self.model.param_groups(weight_decay=0.01), lr=0.02, momentum=0.9)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": EPOCHS, "accelerator": "cpu", "num_sanity_val_steps": 1, **quiet, **options}
    return Trainer(callbacks=[DistillationCallback(), *callbacks], enable_checkpointing=bool(callbacks), **options)


def test_it_trains_as_a_loop_by_hand_does() -> None:
    """Gradients accumulated over two batches, evaluation before the bank turns."""
    ours = Module(distiller())
    trainer(accumulate_grad_batches=2).fit(ours, data(), data())
    theirs = Module(distiller())
    (optimizer,) = [theirs.configure_optimizers()]
    assert isinstance(theirs.model, cid.Distiller)
    scores = []
    for epoch in range(EPOCHS):
        theirs.train()
        for i, batch in enumerate(data()):
            (theirs.training_step(list(batch), i) / 2).backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
        theirs.eval()
        with torch.no_grad():
            scores += [theirs.model(x) for x, _ in data()]
        if epoch < EPOCHS - 1:
            theirs.model.epoch_end()
    assert int(theirs.model.criterion.epoch) == EPOCHS - 1
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.scores[1:], scores)


@pytest.mark.parametrize(
    "when",
    [
        {"every_n_epochs": 1},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_train_steps": 3},
        {"every_n_train_steps": STEPS},
    ],
    ids=str,
)
def test_every_checkpoint_resumes(tmp_path: Path, when: dict[str, Any]) -> None:
    """Of equal batches: Lightning starts a plain loader anew where it resumes within an epoch."""
    whole = Module(distiller())
    saving = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{step}", **when)
    trainer(saving).fit(whole, data(same=True), data())
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= EPOCHS
    for checkpoint in checkpoints:
        resumed = Module(distiller())
        trainer().fit(resumed, data(same=True), data(), ckpt_path=checkpoint)
        torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), msg=f"{checkpoint.name} differs")


def test_ranks_keep_what_they_gather() -> None:
    module = Module(distiller())
    marked: Any = module
    marked._ddp_params_and_buffers_to_ignore = ["mine"]
    callback = DistillationCallback()
    for _ in range(2):
        callback.setup(trainer(), module, "fit")
    ignored = set(marked._ddp_params_and_buffers_to_ignore)
    buffers = {name for name, _ in module.named_buffers() if "criterion" in name}
    assert ignored & buffers == buffers - {"model.criterion.bank.context"}
    assert "mine" in ignored


def test_a_module_without_a_criterion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^DistillationCallback: Module holds no cid\.Distiller"):
        trainer().fit(Module(nn.Linear(10, C)), data())


def test_counted_steps_need_no_epochs() -> None:
    by_step, by_epoch = Module(distiller(steps_per_turn=STEPS)), Module(distiller())
    for module in (by_step, by_epoch):
        trainer().fit(module, data(), data())
    torch.testing.assert_close(by_step.scores, by_epoch.scores)
    for module in (by_step, copy.deepcopy(by_epoch)):
        assert isinstance(module.model, cid.Distiller)
        assert int(module.model.criterion.epoch) == EPOCHS - 1
