"""The numbers of a run's weights, by nothing of the page's, and what is shown where the data is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cid._errors import CheckpointError
from cid.propensity import NoisyCalibration
from cid.train.config import read_toml, resolve
from cid.train.data import Dataset, load_dataset
from cid.train.files import read_tensors, write_tensors
from cid.train.results.page import write_page
from cid.train.results.page.weights import (
    BeliefBin,
    WeightNumbers,
    exact_interval,
    gather_weights,
    out_of_fold,
    reliability,
)


def gathered(run: Path) -> tuple[list[WeightNumbers], Dataset]:
    config = resolve({}, read_toml(run / "config.toml"))
    data = load_dataset(config.data)
    return gather_weights(run, config, data), data


@pytest.fixture
def copy(weighted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(weighted, tmp_path / "copy"))


def test_each_weighting_of_the_run(weighted: Path) -> None:
    found, _ = gathered(weighted)
    assert [(one.name, one.methods) for one in found] == [("ipw", ["kd-ipw"]), ("jtt", ["jtt"])]
    for one in found:
        header = json.loads((weighted / "weights" / one.name / "weights.json").read_text())
        assert one.effective_size == pytest.approx(header["effective_size"])
        assert float(one.train.max()) == header["largest"]
        assert one.warnings == header["warnings"]
        assert one.changed == ""
    assert [one.adjusts for one in found] == [True, False]
    assert list(found[0].reliabilities) == ["context", "full"]
    assert found[1].reliabilities == {}


def test_a_run_without_weights(run: Path) -> None:
    assert gathered(run)[0] == []


def test_the_heaviest_images(weighted: Path) -> None:
    (found, _), data = gathered(weighted)
    weights, groups, labels = found.train.double().numpy(), data.train.groups, data.train.labels.numpy()
    assert groups is not None
    usual = [np.bincount(groups.numpy()[labels == label]).argmax() for label in range(10)]
    against = np.array([group != usual[label] for group, label in zip(groups.tolist(), labels, strict=True)])
    order = sorted(range(len(weights)), key=lambda index: (-weights[index], index))[:24]
    assert [image.index for image in found.heaviest] == order
    for image in found.heaviest:
        assert image.label == labels[image.index]
        assert image.weight == weights[image.index]
        assert image.context == data.groups[int(groups[image.index])]
        assert image.usual == data.groups[usual[image.label]]
        assert torch.equal(image.image, data.train.images[image.index])
        assert list(image.beliefs) == ["context", "full"]
    assert found.against is not None
    assert found.against.images == pytest.approx(against.mean())
    assert found.against.weight == pytest.approx(weights[against].sum() / weights.sum())
    assert found.against.heaviest == against[order].sum()


def test_calibration_is_that_of_the_last_round_out_of_fold(weighted: Path) -> None:
    (found, _), data = gathered(weighted)
    for model, folder in (("context", "context"), ("full", "full2")):
        temperature, noise = found.reliabilities[model].calibration
        confident: list[list[tuple[float, bool]]] = [[] for _ in range(10)]
        for fold in (0, 1):
            kept = load_file(weighted / "weights" / "ipw" / folder / f"fold{fold}.safetensors")
            for logits, index in zip(kept["logits"].double().numpy(), kept["held_out"].tolist(), strict=True):
                beliefs = (1 - noise) * np.exp(logits / temperature) / np.exp(logits / temperature).sum() + noise / 10
                right = int(beliefs.argmax()) == int(data.train.labels[index])
                confident[min(int(10 * beliefs.max()), 9)].append((float(beliefs.max()), right))
        expected = [(place, len(own), *np.mean(own, 0)) for place, own in enumerate(confident) if own]
        bins = found.reliabilities[model].bins
        assert [(one.place, one.count) for one in bins] == [each[:2] for each in expected]
        np.testing.assert_allclose([(one.belief, one.right) for one in bins], [each[2:] for each in expected])
        error = sum(count * abs(belief - right) for _, count, belief, right in expected) / len(data.train)
        assert found.reliabilities[model].error == pytest.approx(error)


def test_reliability_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0], [3.0, 1.0], [0.0, 0.0]], dtype=torch.float64).log() * 2
    found = reliability(logits.nan_to_num(neginf=0.0), NoisyCalibration(2.0, 0.0), torch.tensor([0, 0, 0, 0]))
    # Beliefs of 3/4, of which two of three are right, and one of 1/2, the first class: right.
    assert [(one.place, one.count, one.right) for one in found.bins] == [(5, 1, 1.0), (7, 3, pytest.approx(2 / 3))]
    assert [one.belief for one in found.bins] == pytest.approx([0.5, 0.75])
    assert found.error == pytest.approx((0.5 + 3 * (0.75 - 2 / 3)) / 4)


def test_a_sure_belief_is_in_the_last_bin() -> None:
    found = reliability(torch.tensor([[100.0, 0.0]]), NoisyCalibration(0.05, 0.0), torch.tensor([0])).bins
    # Of one that is right: a share of 0.025 yields it as often.
    assert found == [BeliefBin(9, 1, 1.0, 1.0, exact_interval(1, 1)[0], 1.0)]
    assert exact_interval(1, 1)[0] == pytest.approx(0.025)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (1, 1), (3, 40)])
def test_the_exact_interval(right: int, count: int) -> None:
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    expected = binomtest(right, count).proportion_ci(0.95, method="exact")
    # scipy's is solved for, to its solver's tolerance.
    assert exact_interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_folds_that_were_not_kept(copy: Path) -> None:
    shutil.rmtree(copy / "weights" / "ipw" / "full1")
    shutil.rmtree(copy / "weights" / "ipw" / "full2")
    (found, _), _ = gathered(copy)
    assert out_of_fold(copy / "weights" / "ipw", "full") is None
    assert list(found.reliabilities) == ["context"]
    assert found.heaviest


def test_other_labels(copy: Path) -> None:
    config = resolve({}, read_toml(copy / "config.toml"))
    data = load_dataset(config.data)
    data.train.labels.copy_(data.train.labels.roll(1))
    found, by_errors = gather_weights(copy, config, data)
    assert found.changed == "the training images have other classes now"
    assert (found.heaviest, found.against, found.reliabilities) == ([], None, {})
    assert len(found.train) == len(data.train)
    assert by_errors.changed == ""  # which nothing tells


def test_another_number_of_images(copy: Path) -> None:
    path = copy / "weights" / "jtt" / "weights.safetensors"
    tensors, header = read_tensors(path)
    write_tensors(path, tensors | {"train": tensors["train"][:-1]}, header)
    text = write_page([copy]).read_text(encoding="utf-8")
    assert "Not shown, as the data is not the run" in text
    count = len(tensors["train"])
    assert f": there are {count} training images now, and there were {count - 1}.</p>" in text


def test_damaged_weights(copy: Path) -> None:
    path = copy / "weights" / "ipw" / "weights.safetensors"
    write_tensors(path, {"other": torch.ones(3)}, {"notes": {}, "warnings": []})
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: holds no weights: 'train'"):
        gathered(copy)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: is no readable safetensors file"):
        gathered(copy)
