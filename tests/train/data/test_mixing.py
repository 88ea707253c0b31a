import math
from typing import Any

import pytest
import torch

from cid._errors import ConfigError
from cid.train.config import resolve
from cid.train.data import Mixing
from cid.train.methods import StepOutput
from cid.train.run.monitor import LossMonitor

COUNT = 9
INPUTS = torch.arange(COUNT, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 6, 5).contiguous()
LABELS = torch.arange(COUNT)


def mixed(seed: int = 0, **alphas: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return Mixing(COUNT, **alphas).mix(INPUTS, LABELS, (seed, 1, 0, 4), 0, COUNT)


@pytest.mark.parametrize("alphas", [{"mixup": 0.3}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 1.0}])
def test_labels_are_shared_as_pixels_are(alphas: dict[str, Any]) -> None:
    inputs, target = mixed(**alphas)
    assert inputs.shape == INPUTS.shape
    assert target.shape == (COUNT, COUNT)
    torch.testing.assert_close(target.sum(1), torch.ones(COUNT))
    # Each image has its number as pixels, and as its class.
    torch.testing.assert_close((target * torch.arange(COUNT)).sum(1), inputs.mean((1, 2, 3)))
    torch.testing.assert_close(inputs[0:8:2] + inputs[1:8:2], INPUTS[0:8:2] + INPUTS[1:8:2])
    assert torch.equal(inputs[8], INPUTS[8])
    assert target[8].tolist() == [0.0] * 8 + [1.0]
    for row in range(8):
        assert set(target[row].nonzero().flatten().tolist()) <= {row // 2 * 2, row // 2 * 2 + 1}


def test_cutmix_takes_boxes_and_mixup_everything() -> None:
    cut, _ = mixed(cutmix=1.0)
    assert set(cut.unique().tolist()) <= set(range(COUNT))
    assert any(len(image.unique()) == 2 for image in cut)
    even, _ = mixed(mixup=1.0)
    assert all(len(image.unique()) == 1 for image in even)
    both = [mixed(seed, mixup=1.0, cutmix=1.0)[0] for seed in range(9)]
    whole = [len(image.unique()) == 1 for images in both for image in images[:8:2]]
    assert 5 < sum(whole) < 31


def test_it_is_a_function_of_the_seed_and_of_the_pair() -> None:
    inputs, target = mixed(mixup=0.5, cutmix=0.5)
    part = slice(2, 6)
    one, shares = Mixing(COUNT, 0.5, 0.5).mix(INPUTS[part], LABELS[part], (0, 1, 0, 4), 2, COUNT)
    assert torch.equal(one, inputs[part])
    assert torch.equal(shares, target[part])
    assert not torch.equal(mixed(1, mixup=0.5, cutmix=0.5)[1], target)


@pytest.mark.parametrize(("alpha", "deviation"), [(1.0, 1 / math.sqrt(12)), (0.2, 0.5 / math.sqrt(1.4))])
def test_shares_are_of_the_beta_distribution(alpha: float, deviation: float) -> None:
    draws = 4000
    shares = Mixing(2, mixup=alpha)._draw((0,), draws, (1, 1))[:, 0, 0, 0].double()
    assert abs(float(shares.mean()) - 0.5) < 5 * deviation / math.sqrt(draws)
    assert abs(float(shares.std()) / deviation - 1) < 0.05


def test_who_takes_labels_alone_is_refused() -> None:
    for methods in (("labels", "kd", "cid"), ("cid-no-head", "cid-no-class")):
        assert resolve({"data.mixup": 0.2, "method.methods": methods}).data.mixes
    with pytest.raises(
        ConfigError, match=r"--cutmix: given, and --methods cid-ipw dkd, accepted: .*: labels, kd, cid, cid-no"
    ):
        resolve({"data.cutmix": 1.0, "method.methods": ("kd", "cid-ipw", "dkd")})
    with pytest.raises(ConfigError, match=r"--mixup: given, accepted: not together with a teacher's outputs"):
        resolve({"data.mixup": 1.0, "method.methods": ("kd",), "models.cache_teacher": True, "data.pad": 0})


def test_a_mixed_sample_is_right_by_its_largest_share() -> None:
    monitor = LossMonitor(torch.device("cpu"))
    logits = torch.eye(3)
    target = torch.tensor([[0.6, 0.4, 0.0], [0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    monitor.add(0, StepOutput(torch.tensor(1.0), {}, logits), target)
    assert monitor.means()["train_accuracy"] == pytest.approx(2 / 3)
