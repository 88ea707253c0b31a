"""The classifiers of timm's and Hugging Face's models are found, and timm's mixup is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from torch import nn

import cid
from tests import draws

B, C = 4, 7
TIMM: dict[str, dict[str, Any]] = {
    "mobilenetv3_small_050": {},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1)},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_nfnet": {},
    "test_resnet": {},
    "test_vit": {"img_size": 32},
    "test_vit3": {"img_size": 32},
}
TOKENS = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32}
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "ConvNext": {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    "DeiT": TOKENS,
    "Dinov2": TOKENS,
    "MobileNetV2": {"depth_multiplier": 0.1},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]},
    "ViT": TOKENS,
}


def distil_a_step(student: nn.Module, teacher: nn.Module, x: Any) -> cid.Distiller:
    distiller = cid.Distiller(student, teacher, num_classes=C, beta=1.0, gamma=1.0, warmup_epochs=1)
    distiller(x, torch.arange(B) % C).loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    return distiller.eval()


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra: pip install 'cid-distill[timm]'")
    student, teacher = (timm.create_model(name, pretrained=False, num_classes=C, **TIMM[name]) for _ in range(2))
    x = torch.randn(B, 3, 32, 32)
    distiller = distil_a_step(student, teacher, x)
    assert student.get_submodule(distiller.student_layer) is student.get_classifier()
    assert torch.equal(distiller.predict(x), student(x))  # in warm-up: what the student itself says


@pytest.mark.filterwarnings("ignore")  # the framework's own use of deprecated functions
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(name: str) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="needs the extra: pip install 'cid-distill[transformers]'"
    )
    config = getattr(transformers, f"{name}Config")(num_labels=C, **HUGGING_FACE[name])
    student, teacher = (getattr(transformers, f"{name}ForImageClassification")(config) for _ in range(2))
    x = {"pixel_values": torch.randn(B, 3, 32, 32)}
    distiller = distil_a_step(student, teacher, x)
    assert torch.equal(distiller.predict(x), student(**x).logits)


def test_distiller_with_timms_mixup() -> None:
    """In a loop: mixup, CutMix and smoothing by timm, which keeps shares in the type of its own."""
    timm_data = pytest.importorskip("timm.data")
    mixup = timm_data.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=5)
    draws.seed(0)
    student = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    teacher = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    distiller = cid.Distiller(student, teacher, num_classes=5, beta=1.0, gamma=1.0, warmup_epochs=1)
    optimizer = torch.optim.SGD(distiller.param_groups(weight_decay=0.0), lr=0.05)
    images, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
    for epoch in range(2):
        for _ in range(2):
            x, target = mixup(images.clone(), y)
            assert target.shape == (8, 5)
            out = distiller(x, target)
            if epoch:
                torch.testing.assert_close(out.ce, TF.cross_entropy(out.logits, target))
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        distiller.epoch_end()
    assert distiller.criterion.bank.context.isfinite().all()
    assert (distiller.criterion.bank.context != 0).any(1).all()  # all classes have a share of each smoothed sample
