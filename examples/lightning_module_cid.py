"""A LightningModule and Lightning's Trainer."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import cid.integrations.lightning
import digits


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class Classifier(L.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.model(x, y).loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.param_groups(weight_decay=5e-4), lr=0.05, momentum=0.9)


L.seed_everything(0)
train, test = DataLoader(digits.train, 64, shuffle=True), DataLoader(digits.test, 64)
model = network(width=32)
model = cid.Distiller(model, digits.trained(network(width=256)), num_classes=10, beta=10.0, gamma=1.0, warmup_epochs=1)
trainer = L.Trainer(
    max_epochs=5,
    accelerator="cpu",
    enable_progress_bar=False,
    enable_checkpointing=False,
    logger=False,
    callbacks=[cid.integrations.lightning.DistillationCallback()],
)
trainer.fit(Classifier(model), train, test)
print(f"accuracy {trainer.callback_metrics['accuracy']:.3f}")
