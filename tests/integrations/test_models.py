"""The classifiers of timm's and Hugging Face's models are found, and their missing packages named."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import cid

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


@pytest.mark.parametrize(
    ("name", "module"), [("lightning", "lightning.pytorch"), ("transformers", "transformers")], ids=["L", "HF"]
)
def test_a_missing_framework_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"cid.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"^cid\.integrations\.{name} needs .*pip install \"cid-distill\[{name}\]\""):
        importlib.import_module(f"cid.integrations.{name}")


def test_no_framework_is_imported_unasked() -> None:
    """What `import cid` brings is PyTorch alone."""
    code = "import sys, cid; print(sorted({'lightning', 'transformers', 'timm', 'accelerate'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
