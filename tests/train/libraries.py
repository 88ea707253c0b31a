"""Tiny models as libraries publish them, in folders."""

from pathlib import Path

import torch

from tests import draws

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.5)


def hf_folder(folder: Path, classes: dict[int, str]) -> Path:
    """A vision transformer of Transformers that takes 24 x 24 pixels alone, with its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=24,
        patch_size=8,
        id2label=classes,
        label2id={name: number for number, name in classes.items()},
    )
    draws.seed(3)
    ViTForImageClassification(config).save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=list(MEAN), image_std=list(STD))
    processor.save_pretrained(folder)
    return folder


def timm_folder(folder: Path) -> Path:
    """The weights of timm's smallest residual network, of ImageNet's classes, by the name under which they are."""
    import timm
    from safetensors.torch import save_file

    draws.seed(4)
    folder.mkdir(exist_ok=True)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "test_resnet.r160_in1k.safetensors")
    return folder


def torchvision_folder(folder: Path) -> Path:
    """Those of a small network of torchvision, as a file of `torch.save`."""
    from torchvision.models import shufflenet_v2_x0_5

    draws.seed(5)
    folder.mkdir(exist_ok=True)
    torch.save(shufflenet_v2_x0_5().state_dict(), folder / "shufflenetv2_x0.5-f707e7126e.pth")
    return folder
