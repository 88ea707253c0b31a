"""The numbers of the page, and the folders that cannot be gathered from."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cid._errors import CheckpointError, ConfigError
from cid.train import load_student
from cid.train.config import read_toml, resolve
from cid.train.data import load_dataset
from cid.train.files import read_tensors, write_tensors
from cid.train.results.page import write_page
from cid.train.results.page.gather import RunNumbers, gather
from tests import bounds


@functools.cache
def own_and_final(run: Path, seed: int) -> tuple[Tensor, Tensor, Tensor, Any]:
    """s, z and the labels of the test data, and the student, by nothing of the page's.

    In batches as the page's: in others each logit is rounded otherwise, and what is close is decided otherwise.
    """
    config = resolve({}, read_toml(run / "config.toml"))
    test = load_dataset(config.data).test
    student: Any = load_student(run / f"cid-seed{seed}")
    parts = (test.images.float() / 16).split(config.optim.batch_size)
    with torch.no_grad():
        s, z = (torch.cat([model(x) for x in parts]) for model in (lambda x: student[1].model(student[0](x)), student))
    return s, z, test.labels, student[1]


def test_what_is_mixed(run: Path, numbers: RunNumbers) -> None:
    mixing, cosines, rounding = np.zeros((10, 10)), np.zeros((10, 10)), 0.0
    for seed in (0, 1):
        s, _, labels, student = own_and_final(run, seed)
        # Weights change by less than the logits: three convolutions of up to 4 channels, and the layer.
        rounding = max(rounding, bounds.logits(s, layers=4, terms=9 * 4))
        for sample, label in zip(s.double().numpy(), labels.tolist(), strict=True):
            weights = np.exp(sample / 2.0) / np.exp(sample / 2.0).sum()
            mixing[label] += weights / (labels == label).sum().item() / 2
        context = student.context.double().numpy()
        for i in range(10):
            for j in range(10):
                lengths = np.linalg.norm(context[i]) * np.linalg.norm(context[j])
                cosines[i, j] += context[i] @ context[j] / lengths / 2
    found = numbers.intervention
    assert found is not None
    assert found.temperature == 2.0
    np.testing.assert_allclose(found.mixing, mixing, rtol=0, atol=rounding)
    np.testing.assert_allclose(found.cosines, cosines, rtol=1e-9)
    np.fill_diagonal(mixing, -1)
    assert [one.weight for one in found.confounders] == pytest.approx(sorted(mixing.max(1), reverse=True), abs=rounding)
    for one in found.confounders:
        assert mixing[one.label, one.other] >= mixing[one.label].max() - 2 * rounding
        assert one.cosine == pytest.approx(cosines[one.label, one.other])
        assert 0 <= one.students <= 2


@pytest.fixture(scope="module")
def contrary(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with heads that are for what they were against: whatever it learned, they change decisions."""
    path = tmp_path_factory.mktemp("page") / "contrary"
    shutil.copytree(run, path)
    for student in path.glob("cid-seed*/student.safetensors"):
        tensors, header = read_tensors(student)
        heads = [name for name in tensors if name.startswith("head.")]
        assert heads
        write_tensors(student, tensors | {name: -tensors[name] for name in heads}, header)
    return path


def test_changed_decisions(contrary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cid.train.results.page.gather"]  # a function of that name hides it
    monkeypatch.setattr(module, "_check_accuracy", lambda *_: None)  # these are not what was trained
    run, found = contrary, gather(contrary, "digits").intervention
    assert found is not None
    changed: dict[bool, set[int]] = {True: set(), False: set()}
    for seed, student in enumerate(found.students):
        s, z, labels, _ = own_and_final(run, seed)
        before, after, pairs = s.argmax(1) == labels, z.argmax(1) == labels, s.argmax(1) != z.argmax(1)
        assert student.name == f"cid-seed{seed}"
        assert student.own_accuracy == pytest.approx(before.float().mean().item())
        assert student.accuracy == pytest.approx(after.float().mean().item())
        assert student.mended + student.broken + student.still_wrong == pairs.sum()
        assert student.mended - student.broken == after.sum() - before.sum()
        for mended, chosen in ((True, ~before & after), (False, before & ~after)):
            changed[mended] |= set(chosen.nonzero().flatten().tolist())
    assert changed[False]
    for mended, samples in ((True, found.mended), (False, found.broken)):
        assert len(samples) == min(12, len(changed[mended]))
        assert len({sample.index for sample in samples}) == len(samples)
        assert [sample.final.share for sample in samples] == sorted((x.final.share for x in samples), reverse=True)
        for sample in samples:
            assert sample.index in changed[mended]
            s, z, labels, _ = own_and_final(run, int(sample.student[-1]))
            assert sample.label == labels[sample.index]
            assert sample.own.label == s.argmax(1)[sample.index]
            assert sample.final.label == z.argmax(1)[sample.index]
            for ours, theirs in ((sample.final, z), (sample.contexts[0], s / 2)):
                rounding = bounds.logits(theirs, layers=4, terms=9 * 4)
                assert ours.share == pytest.approx(theirs.softmax(1)[sample.index].max().item(), abs=rounding)


def test_confusion(run: Path, numbers: RunNumbers) -> None:
    assert list(numbers.confusions) == ["teacher", "labels", "kd", "cid"]
    for method, matrix in numbers.confusions.items():
        torch.testing.assert_close(matrix.sum(1), torch.ones(10, dtype=torch.float64))
        accuracies = [result.test_accuracy for result in numbers.results if result.method == method]
        test = load_dataset(numbers.config.data).test
        weights = torch.bincount(test.labels, minlength=10) / len(test)
        assert float((matrix.diagonal() * weights).sum()) == pytest.approx(sum(accuracies) / len(accuracies))
    threes = 0.0
    for seed in (0, 1):
        _, z, labels, _ = own_and_final(run, seed)
        threes += (z.argmax(1)[labels == 3] == 9).double().mean().item() / 2
    assert float(numbers.confusions["cid"][3, 9]) == pytest.approx(threes)


def test_an_unfinished_run(copied: Path) -> None:
    (copied / "kd-seed1" / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not finished, it lacks kd-seed1; go on with: cid distill --resume"):
        write_page([copied])
    assert not (copied / "report.html").exists()


@pytest.mark.parametrize("content", [None, "", "5\n", '{"name": "teacher"}\n'])
def test_damaged_metrics(copied: Path, content: str | None) -> None:
    (copied / "metrics.jsonl").unlink()
    if content is not None:
        (copied / "metrics.jsonl").write_text(content)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: is missing or damaged"):
        write_page([copied])


def test_a_damaged_student(copied: Path) -> None:
    path = copied / "cid-seed1" / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"cid-seed1.student\.safetensors: is no readable safetensors file"):
        write_page([copied])


def test_other_images(copied: Path) -> None:
    path = copied / "labels-seed0" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "test_accuracy": 1.0}))
    with pytest.raises(ConfigError, match=r"labels-seed0: scores .* and 100\.00% when it was trained"):
        write_page([copied])


def test_images_that_moved(odd: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(odd.with_name("pictures"), tmp_path / "moved"))
    assert write_page([odd], tmp_path / "page.html", data_dir=str(data)).is_file()
    (data / "train" / "d").rename(data / "train" / "new")
    (data / "test" / "d").rename(data / "test" / "new")
    with pytest.raises(ConfigError, match=r"was trained for 4 classes of 3 x 9 x 12 images, .*--data-dir"):
        write_page([odd], tmp_path / "page.html", data_dir=str(data))
