"""The stage of inverse propensities: its options, and which networks it asks for what."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cid import cli
from cid._errors import ConfigError
from cid.propensity import (
    CrossFit,
    calibrate_with_noise,
    context_power,
    label_belief,
    logit_adjustment,
    propensity_weights,
    right_label_belief,
)
from cid.train.config import resolve
from cid.train.methods import SampleWeights
from cid.train.methods._propensity import InversePropensity
from cid.train.run.inputs import Inputs
from cid.train.sections import ModelsConfig, OptimConfig
from tests import draws

SAMPLES, OTHERS, CLASSES, FOLDS = 30, 8, 4, 3


class Fold(nn.Module):
    """A network that knows what it was trained for alone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.kind, _, number = name.partition("-fold")
        self.number = int(number)


@dataclass
class Asked:
    name: str
    model: str
    epochs: int
    index: Tensor | None
    weight: Tensor | None


@dataclass
class FakeLab:
    """Networks of one kind yield the same logits for training samples, and each fold's its own for the others."""

    folder: Path
    seed: int = 3
    models: ModelsConfig = field(default_factory=lambda: ModelsConfig(teacher="cnn-5", student="cnn-2"))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=20, teacher_epochs=30))
    classes: int = CLASSES
    labels: Tensor = field(default_factory=lambda: torch.arange(SAMPLES) % CLASSES)
    validation_labels: Tensor = field(default_factory=lambda: torch.arange(OTHERS) % CLASSES)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = ("context", "full1", "full2")
        right = nn.functional.one_hot(self.labels, CLASSES)
        # Right more often than not, so that temperatures are neither end of their range.
        self.samples = {kind: 2 * draws.normal(SAMPLES, CLASSES) + 2 * right for kind in kinds}
        self.others = {kind: draws.normal(FOLDS, OTHERS, CLASSES) for kind in kinds}

    def train(
        self, name: str, model: str, epochs: int, *, index: Tensor | None = None, weight: Tensor | None = None
    ) -> nn.Module:
        self.asked.append(Asked(name, model, epochs, index, weight))
        return Fold(name)

    def logits(self, network: nn.Module, index: Tensor | None = None) -> Tensor:
        assert isinstance(network, Fold)
        assert index is not None
        return self.samples[network.kind][index]

    def validation_logits(self, network: nn.Module) -> Tensor:
        assert isinstance(network, Fold)
        return self.others[network.kind][network.number]

    def context(self) -> tuple[Tensor, Tensor]:
        """What the definition says of training and validation samples: the belief in the label."""
        found = calibrate_with_noise(self.samples["context"], self.labels)
        others = [
            label_belief(logits, found).gather(1, self.validation_labels[:, None])[:, 0]
            for logits in self.others["context"]
        ]
        own = label_belief(self.samples["context"], found).gather(1, self.labels[:, None])[:, 0]
        return own, torch.stack(others).mean(0)

    def full(self, kind: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The same: that the label is right, by networks trained with these weights."""
        found = calibrate_with_noise(self.samples[kind], self.labels, weight=weight)
        others = [right_label_belief(logits, self.validation_labels, found) for logits in self.others[kind]]
        return right_label_belief(self.samples[kind], self.labels, found), torch.stack(others).mean(0)


POWER = 0.7


def options(**changed: Any) -> InversePropensity:
    usual: dict[str, Any] = {"folds": FOLDS, "context": "patches-4", "context_epochs": 2, "clip": 5.0, "power": POWER}
    return InversePropensity(**{**usual, "numerator": "full", "epochs": 7, "rounds": 1, "adjusts": True, **changed})


def compute(lab: FakeLab, **changed: Any) -> SampleWeights:
    return options(**changed).compute(lab)


# In the definition and in the stage a belief in the label is rounded in another order: some roundings of float32.
NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 0}


def weights(lab: FakeLab, context: Tensor, full: Tensor | None = None, power: float = POWER) -> Tensor:
    """Of the training samples."""
    return propensity_weights(context, full, target=lab.labels, power=power, clip=5.0)


def assert_weights(
    lab: FakeLab, found: SampleWeights, context: tuple[Tensor, Tensor], full: tuple[Tensor, Tensor] | None
) -> None:
    numerators = full or (None, None)
    assert found.validation is not None
    torch.testing.assert_close(found.train, weights(lab, context[0], numerators[0]), **NEAR)
    others = propensity_weights(context[1], numerators[1], target=lab.validation_labels, power=POWER, clip=5.0)
    torch.testing.assert_close(found.validation, others, **NEAR)


def test_the_weights_are_full_by_context(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path)
    found = compute(lab)
    context = lab.context()
    first = weights(lab, context[0])
    full = lab.full("full1", first)
    assert_weights(lab, found, context, full)
    torch.testing.assert_close(found.kept["context_belief"], context[0], **NEAR)
    torch.testing.assert_close(found.kept["full_belief"], full[0], **NEAR)
    of_context = calibrate_with_noise(lab.samples["context"], lab.labels)
    calibration = calibrate_with_noise(lab.samples["full1"], lab.labels, weight=first)
    assert found.notes == pytest.approx(
        {
            "context_temperature": of_context.temperature,
            "context_noise": of_context.noise,
            "power": POWER,
            "full_temperature": calibration.temperature,
            "full_noise": calibration.noise,
        },
        rel=1e-5,
        abs=1e-5,
    )
    names = [f"{kind}-fold{fold}" for kind in ("context", "full1") for fold in range(FOLDS)]
    assert [asked.name for asked in lab.asked] == names
    for number, asked in enumerate(lab.asked):
        early = number < FOLDS
        assert (asked.model, asked.epochs) == (("patches-4", 2) if early else ("cnn-5", 7))
        assert asked.index is not None
        assert torch.equal(asked.index, CrossFit(SAMPLES, FOLDS, 3).split(number % FOLDS)[0])
        assert (asked.weight is None) == early
        if asked.weight is not None:  # one as biased as the teacher would take what matters for wrong labels
            torch.testing.assert_close(asked.weight, first, **NEAR)


def test_the_plain_inverse_asks_for_the_context_alone(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path)
    found = compute(lab, numerator="one")
    assert_weights(lab, found, lab.context(), None)
    assert list(found.notes) == ["context_temperature", "context_noise", "power"]
    assert list(found.kept) == ["context_belief"]
    assert len(lab.asked) == FOLDS


def test_a_round_more_is_by_networks_of_the_last_weights(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path)
    found = compute(lab, rounds=2)
    context = lab.context()
    by_kind: dict[str, Any] = {"context": None, "full1": weights(lab, context[0])}
    by_kind["full2"] = weights(lab, context[0], lab.full("full1", by_kind["full1"])[0])
    assert_weights(lab, found, context, lab.full("full2", by_kind["full2"]))
    assert [asked.name for asked in lab.asked] == [f"{kind}-fold{fold}" for kind in by_kind for fold in range(FOLDS)]
    for asked in lab.asked:
        torch.testing.assert_close(asked.weight, by_kind[asked.name.partition("-")[0]], **NEAR)


def test_the_power_is_what_the_context_tells(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path)
    found = compute(lab, power=None, numerator="one")
    context, _ = lab.context()
    power = context_power(context, lab.labels)
    assert 0 < power < 1
    assert found.notes["power"] == pytest.approx(power, rel=1e-5)
    torch.testing.assert_close(found.train, weights(lab, context, power=power), **NEAR)


def test_the_teacher_is_adjusted_by_what_the_context_says_of_each_class(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path)
    logits = lab.samples["context"]
    belief = label_belief(logits, calibrate_with_noise(logits, lab.labels))
    found = compute(lab).logit_adjustment
    torch.testing.assert_close(found, logit_adjustment(belief, lab.labels, power=POWER), rtol=1e-5, atol=1e-6)
    assert compute(lab, adjusts=False).logit_adjustment is None


def test_finished_folds_are_not_trained_again(tmp_path: Path) -> None:
    first, again = FakeLab(tmp_path), FakeLab(tmp_path)
    assert torch.equal(compute(first).train, compute(again).train)
    assert again.asked == []


def test_more_folds_than_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--ipw-folds: got 31, accepted: up to the training images, here 30$"):
        compute(FakeLab(tmp_path), folds=31)


@pytest.mark.parametrize(
    ("given", "context", "full"),
    [
        ({"optim.epochs": 240}, 40, 80),
        ({"optim.epochs": 30, "optim.teacher_epochs": 50}, 8, 17),
        ({"optim.epochs": 240, "method.ipw_folds": 2, "method.ipw_rounds": 2}, 80, 80),
        ({"optim.epochs": 240, "method.ipw_context_epochs": 20}, 20, 100),
        ({"optim.epochs": 240, "method.ipw_epochs": 9}, 40, 9),
        ({"optim.epochs": 4}, 1, 1),
        ({"optim.epochs": 1}, 1, 1),
    ],
)
def test_the_context_has_a_third_and_the_numerator_the_rest(given: dict[str, Any], context: int, full: int) -> None:
    method = resolve({"data.name": "cifar10", **given}).method
    assert (method.ipw_context_epochs, method.ipw_epochs) == (context, full)


@given(st.integers(1, 400), st.integers(2, 9), st.integers(1, 4))
def test_the_weights_cost_no_more_than_the_teacher(teacher: int, folds: int, rounds: int) -> None:
    given = {"optim.teacher_epochs": teacher, "method.ipw_folds": folds, "method.ipw_rounds": rounds}
    method = resolve({"data.name": "cifar10", **given}).method
    context, full = method.ipw_context_epochs, method.ipw_epochs
    assert isinstance(context, int)
    assert isinstance(full, int)
    # Each of K networks sees (K - 1) / K of the images in an epoch.
    cost = (folds - 1) * (context + rounds * full)
    # Of one epoch, a network costs what it costs.
    assert cost <= teacher or full == 1
    assert context >= 1
    assert full >= 1
    if rounds == 1 and teacher >= 2 * (folds - 1):
        assert teacher - folds < cost <= teacher


def test_methods_of_equal_options_share_the_weights() -> None:
    method = resolve({"method.ipw_clip": 7.0}).method
    one, other = (method.options(name).weighting() for name in ("kd-ipw", "cid-ipw"))
    assert one == other == InversePropensity(3, "patches-16", 8, None, 7.0, "full", 17, 1, True)
    assert hash(one) == hash(other)
    assert all(method.options(name).weighting() is None for name in ("labels", "kd", "cid"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ipw_folds": 1}, "--ipw-folds: got 1, accepted: a number of at least 2"),
        ({"ipw_context_epochs": 0}, "--ipw-context-epochs: got 0, accepted: a number of at least 1"),
        ({"ipw_power": 1.5}, r"--ipw-power: got 1\.5, accepted: a number from 0 to 1"),
        ({"ipw_clip": 0.5}, r"--ipw-clip: got 0\.5, accepted: a number of at least 1"),
        ({"ipw_numerator": "two"}, "--ipw-numerator: got 'two', accepted: full or one"),
        ({"ipw_epochs": 0}, "--ipw-epochs: got 0, accepted: a number of at least 1"),
        ({"ipw_teacher": "none"}, "--ipw-teacher: got 'none', accepted: adjusted or given"),
        ({"ipw_rounds": 0}, "--ipw-rounds: got 0, accepted: a number of at least 1"),
        (
            {"ipw_rounds": 2, "ipw_numerator": "one", "methods": ("kd-ipw",)},
            "--ipw-rounds: got 2, accepted: 1 with --ipw-numerator one",
        ),
        (
            {"ipw_rounds": 2, "ipw_numerator": "one", "methods": ("cid-ipw",)},
            "--ipw-rounds: got 2, accepted: 1 with --ipw-numerator one",
        ),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        resolve({f"method.{name}": value for name, value in given.items()})


def test_an_unknown_context_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["distill", "--ipw-context", "vgg", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert cli.main([*arguments, "--methods", "kd-ipw"]) != 0
    message = "--teacher, --student or --ipw-context: got 'vgg', accepted: "
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=message):
        Inputs.load(resolve({"method.ipw_context": "vgg", "method.methods": ("cid-ipw",), "run.device": "cpu"}))
    # Who does not ask for it need not name it rightly.
    Inputs.load(resolve({"method.ipw_context": "vgg", "method.methods": ("kd",), "run.device": "cpu"}))
