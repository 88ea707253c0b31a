"""A LightningModule and Lightning's Trainer."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import digits


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class Classifier(L.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


L.seed_everything(0)
train, test = DataLoader(digits.train, 64, shuffle=True), DataLoader(digits.test, 64)
model = network(width=32)
trainer = L.Trainer(
    max_epochs=5,
    accelerator="cpu",
    enable_progress_bar=False,
    enable_checkpointing=False,
    logger=False,
)
trainer.fit(Classifier(model), train, test)
print(f"accuracy {trainer.callback_metrics['accuracy']:.3f}")
