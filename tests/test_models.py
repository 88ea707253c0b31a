"""All families of timm, torchvision's classifiers and Transformers': `make test-zoo`, as it takes many minutes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests import zoo
from tests.zoo import HUGGING_FACE, TIMM, TORCHVISION, Model

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


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


def test_the_page_lists_them() -> None:
    """Each with the layers that it takes, and how many there are."""
    page = PAGE.read_text(encoding="utf-8")
    every = [*TIMM.values(), *TORCHVISION, *HUGGING_FACE]
    listed = dict(re.findall(r"^\| .*?\| `([\w.]+)` \| \d+ \| (.*) \|$", page, flags=re.MULTILINE))
    for model in every:
        named = "" if model.layers is None else ", ".join(f"`{name}`" for name in model.layers)
        assert listed[model.name] == named, model.name
    refused = sum(model.layers is not None for model in every)
    assert f"{len(every)} models" in page
    assert f"{refused} of them are refused" in page
