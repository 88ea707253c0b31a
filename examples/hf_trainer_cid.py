"""Hugging Face's Trainer, with a residual network of its own."""

import torch
from transformers import EvalPrediction, ResNetConfig, ResNetForImageClassification, TrainingArguments

import cid
import digits
from cid.integrations.transformers import DistillationTrainer


def resnet(width: int) -> ResNetForImageClassification:
    config = ResNetConfig(num_channels=1, num_labels=10, embedding_size=width, hidden_sizes=[width], depths=[2])
    config.layer_type = "basic"
    return ResNetForImageClassification(config)


def accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    return {"accuracy": (evaluated.predictions.argmax(1) == evaluated.label_ids).mean()}


torch.manual_seed(0)
train, test = ([{"pixel_values": x, "labels": y} for x, y in split] for split in (digits.train, digits.test))
model = resnet(width=32)
model = cid.Distiller(model, digits.trained(resnet(width=64)), num_classes=10, beta=10.0, gamma=1.0, warmup_epochs=1)
args = TrainingArguments(
    output_dir="runs",
    num_train_epochs=5,
    per_device_train_batch_size=64,
    learning_rate=5e-3,
    weight_decay=1e-2,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
trainer = DistillationTrainer(
    model=model,
    args=args,
    train_dataset=train,
    eval_dataset=test,
    compute_metrics=accuracy,
)
trainer.train()
print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
