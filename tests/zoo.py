"""Published models, each built from its name without weights, and how each is distilled."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import cid

B, C = 2, 7


class Model(NamedTuple):
    """A model and its input."""

    name: str
    size: int = 64
    """Height and width of the images."""
    layers: tuple[str, ...] | None = None
    """Its layers, where it is refused without: what it yields is not a layer's output."""
    options: dict[str, Any] = {}  # noqa: RUF012  # nobody writes into it


def outcome(build: Callable[[], nn.Module], x: Any, layers: tuple[str, ...] | None) -> cid.Distiller:
    """Distil a model with itself as the teacher: what it yields, a step, what is predicted and what is shipped.

    Raises:
        AssertionError: Any of these is wrong.
        ValueError: The model is refused.
    """
    torch.manual_seed(0)
    student = build()
    options: dict[str, Any] = {"num_classes": C, "beta": 1.0, "gamma": 1.0, "warmup_epochs": 0}
    if layers is not None:
        options |= {"student_layer": layers, "teacher_layer": layers}
    distiller = cid.Distiller(student, copy.deepcopy(student), **options)
    distiller.criterion.bank.context.normal_()
    distiller(x, torch.arange(B) % C).loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    distiller.eval()
    seen: list[Tensor] = []
    distiller.criterion.head.register_forward_pre_hook(lambda _, args: seen.extend(args[:2]))
    z = distiller.predict(x)
    features, logits = seen
    with torch.no_grad():
        assert torch.equal(logits, _logits(student, x))
        shipped = _logits(distiller.student(), x)
    assert features.shape == (B, distiller.criterion.head.dim)
    torch.testing.assert_close(shipped, z, rtol=1e-4, atol=1e-4)
    return distiller


def _logits(model: nn.Module, x: Any) -> Tensor:
    output = model(**x) if isinstance(x, dict) else model(x)
    if isinstance(output, Tensor):
        return output
    members = output.values() if isinstance(output, dict) else output
    found: Tensor = next(value for value in members if value.shape == (B, C))
    return found


def images(size: int) -> Tensor:
    return torch.randn(B, 3, size, size, generator=torch.Generator().manual_seed(size))


def timm_model(model: Model) -> nn.Module:
    import timm

    options = {"pretrained": False, "num_classes": C} | model.options
    try:
        built: nn.Module = timm.create_model(model.name, img_size=model.size, **options)
    except TypeError:  # takes any
        built = timm.create_model(model.name, **options)
    return built


def torchvision_model(model: Model) -> nn.Module:
    import torchvision

    built: nn.Module = torchvision.models.get_model(model.name, weights=None, num_classes=C, **model.options)
    return built


SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


def hugging_face_model(model: Model) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(model.options["config"])
    for part in (config, getattr(config, "vision_config", None)):
        sizes = {} if model.options.get("as it is") else SMALL
        for name, value in (sizes | {"image_size": model.size}).items():
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, value)
    config.num_labels = C
    built: nn.Module = getattr(transformers, model.name)(config)
    return built
