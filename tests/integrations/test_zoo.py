"""A small model of each family of timm, torchvision and Transformers: `make test-zoo`, as it takes minutes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.integrations import zoo
from tests.integrations.zoo import HUGGING_FACE, TIMM, TORCHVISION, Model

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def distils(model: Model, build: Callable[[Model], nn.Module], x: Any) -> None:
    """As its entry says."""
    if model.layers is not None:
        with pytest.raises(ValueError, match=r"^teacher: what it yields is not the output .*teacher_layer=\('"):
            zoo.outcome(lambda: build(model), x, None)
    zoo.outcome(lambda: build(model), x, model.layers)


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")  # the framework's own use of deprecated functions
@pytest.mark.parametrize("family", TIMM)
def test_timm(family: str) -> None:
    pytest.importorskip("timm", reason="needs the extra: pip install 'cid-distill[timm]'")
    distils(TIMM[family], zoo.timm_model, zoo.images(TIMM[family].size))


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", TORCHVISION, ids=lambda model: model.name)
def test_torchvision(model: Model) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    distils(model, zoo.torchvision_model, zoo.images(model.size))


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", HUGGING_FACE, ids=lambda model: model.name)
def test_hugging_face(model: Model) -> None:
    pytest.importorskip("transformers", reason="needs the extra: pip install 'cid-distill[transformers]'")
    distils(model, zoo.hugging_face_model, zoo.hugging_face_input(model))


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
def test_no_family_is_left_out() -> None:
    timm = pytest.importorskip("timm")
    assert set(timm.list_modules()) <= TIMM.keys()
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    there = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
    names = {name for each in there for name in ([each] if isinstance(each, str) else each)}
    page = PAGE.read_text(encoding="utf-8")
    assert names - {model.name for model in HUGGING_FACE} == set(re.findall(r"^- `(\w+)`", page, flags=re.MULTILINE))


# Kinds that no other test has a published model of: a 1 x 1 convolution that classifies, and two heads.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model",
    [
        Model("dla46x_c"),
        Model("deit_tiny_distilled_patch16_224", layers=("head", "head_dist"), options={"depth": 2}),
    ],
    ids=lambda model: model.name,
)
def test_odd_kinds(model: Model) -> None:
    pytest.importorskip("timm", reason="needs the extra: pip install 'cid-distill[timm]'")
    distils(model, zoo.timm_model, zoo.images(model.size))


def test_the_page_lists_them() -> None:
    """Each with its size and the layers that it takes, and how many there are."""
    page = PAGE.read_text(encoding="utf-8")
    every = [*TIMM.values(), *TORCHVISION, *HUGGING_FACE]
    listed = re.findall(r"^\| .*?\| `([\w.]+)` \| (\d+) \| (.*) \|$", page, flags=re.MULTILINE)
    layers = [", ".join(f"`{name}`" for name in model.layers or ()) for model in every]
    assert listed == [(model.name, str(model.size), named) for model, named in zip(every, layers, strict=True)]
    sources = f"{len(TIMM)} of timm, {len(TORCHVISION)} of torchvision, {len(HUGGING_FACE)} of Transformers"
    assert f"{len(every)} models ({sources})" in page
    refused = sum(model.layers is not None for model in every)
    assert f"{refused} of them are refused" in page
