"""The model of what ranks and classes cost agrees with two processes, and its pictures are drawn."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benches.scale import counted, model, picture
from benches.scale.machines import DGX_H100, ETHERNET
from benches.scale.model import Step


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_two_processes_send_compute_and_keep_what_the_model_says() -> None:
    steps = [counted.as_counted(Step(13, 7, 6, 9, pairs="local")), counted.as_counted(Step(256, 3000, 16, 32))]
    found = counted.count(steps)
    for equal, _ in found:
        assert len(equal) == 6
        for pair in equal:
            assert pair.counted == pair.modelled > 0, pair
    _, rough = found[-1]
    assert rough.counted == pytest.approx(rough.modelled, rel=0.2)


def test_pairs_are_those_of_labels_drawn_at_random() -> None:
    step = Step(300, 20, 4, 4, ranks=4)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(20, (1200,), generator=generator).bincount().square().sum().item() for _ in range(50)]
    assert sum(drawn) / len(drawn) == pytest.approx(model.pairs(step), rel=0.01)
    assert model.pairs(replace(step, classes=1)) == 1200**2


def test_one_rank_waits_for_nobody() -> None:
    spent = model.seconds(picture.IMAGENET, DGX_H100)
    assert spent["networks"] > 0
    assert {spent[name] for name in ("labels and features", "gradients", "batch normalisation")} == {0.0}


def test_a_slower_network_is_felt_by_several_machines_alone() -> None:
    for ranks, slower in ((8, False), (16, True)):
        step = replace(picture.IMAGENET, ranks=ranks)
        fast, slow = (sum(model.seconds(step, machine).values()) for machine in (DGX_H100, ETHERNET))
        assert (slow > fast) == slower


def test_the_pictures_are_up_to_date_and_fit_into_a_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names: set[str] = set()
    for path in picture.draw(tmp_path):
        svg = path.read_text(encoding="utf-8")
        ET.fromstring(svg)
        assert not re.search(r"<style|<\?xml|#000000|dc:date", svg)
        found = set(re.findall(r'id="([^"]+)"', svg))
        assert not found & names  # both are in one page
        names |= found
        kept = Path(__file__).parents[2] / "docs" / "pictures" / path.name
        words = [re.findall(r"<text[^>]*>([^<]*)", text) for text in (svg, kept.read_text(encoding="utf-8"))]
        assert words[0] == words[1]
