"""The stage of inverse propensities: its options, and which networks it asks for what."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cid._errors import ConfigError
from cid.functional import context_weights
from cid.propensity import CrossFit, calibrate, propensity_weights
from cid.train.config import resolve
from cid.train.methods import SampleWeights
from cid.train.methods._propensity import InversePropensity
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
class FakeLab:
    """Networks of one kind yield the same logits for training samples, and each fold's its own for the others."""

    folder: Path
    seed: int = 3
    models: ModelsConfig = field(default_factory=lambda: ModelsConfig(teacher="cnn-5", student="cnn-2"))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=20, teacher_epochs=30))
    classes: int = CLASSES
    labels: Tensor = field(default_factory=lambda: torch.arange(SAMPLES) % CLASSES)
    validation_labels: Tensor = field(default_factory=lambda: torch.arange(OTHERS) % CLASSES)
    asked: list[tuple[str, str, int, Tensor | None, Tensor | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = ("context", "full1", "full2")
        right = nn.functional.one_hot(self.labels, CLASSES)
        # Right more often than not, so that temperatures are neither end of their range.
        self.samples = {kind: 2 * draws.normal(SAMPLES, CLASSES) + 2 * right for kind in kinds}
        self.others = {kind: draws.normal(FOLDS, OTHERS, CLASSES) for kind in kinds}

    def train(
        self, name: str, model: str, epochs: int, *, index: Tensor | None = None, weight: Tensor | None = None
    ) -> nn.Module:
        self.asked.append((name, model, epochs, index, weight))
        return Fold(name)

    def logits(self, network: nn.Module, index: Tensor | None = None) -> Tensor:
        assert isinstance(network, Fold)
        assert index is not None
        return self.samples[network.kind][index]

    def validation_logits(self, network: nn.Module) -> Tensor:
        assert isinstance(network, Fold)
        return self.others[network.kind][network.number]

    def beliefs(self, kind: str) -> tuple[Tensor, Tensor]:
        """What the definition says of training and validation samples."""
        temperature = calibrate(self.samples[kind], self.labels)
        others = torch.stack(
            [context_weights(logits, self.validation_labels, temperature=temperature) for logits in self.others[kind]]
        )
        return context_weights(self.samples[kind], self.labels, temperature=temperature), others.mean(0)


def options(**changed: Any) -> InversePropensity:
    given: dict[str, Any] = {"folds": FOLDS, "context_epochs": 2, "clip": 5.0, "numerator": "full", "rounds": 1}
    return InversePropensity(**{**given, **changed})


def compute(lab: FakeLab, **changed: Any) -> SampleWeights:
    return options(**changed).compute(lab)


def assert_weights(found: SampleWeights, context: tuple[Tensor, Tensor], full: tuple[Tensor, Tensor] | None) -> None:
    numerators = full or (None, None)
    assert found.validation is not None
    for got, belief, numerator in zip((found.train, found.validation), context, numerators, strict=True):
        # The mean of the folds' beliefs may be added up in another order.
        torch.testing.assert_close(got, propensity_weights(belief, numerator, clip=5.0), rtol=2e-6, atol=0)


def test_the_weights_are_full_by_context(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path)
    found = compute(lab)
    assert_weights(found, lab.beliefs("context"), lab.beliefs("full1"))
    assert torch.equal(found.kept["context_belief"], lab.beliefs("context")[0])
    assert torch.equal(found.kept["full_belief"], lab.beliefs("full1")[0])
    assert found.notes["full_temperature"] == calibrate(lab.samples["full1"], lab.labels)
    names = [f"{kind}-fold{fold}" for kind in ("context", "full1") for fold in range(FOLDS)]
    assert [name for name, *_ in lab.asked] == names
    assert [epochs for _, _, epochs, *_ in lab.asked] == [2] * FOLDS + [30] * FOLDS
    for fold, (_, model, _, index, weight) in enumerate(lab.asked):
        assert model == "cnn-5"
        assert index is not None
        assert torch.equal(index, CrossFit(SAMPLES, FOLDS, 3).split(fold % FOLDS)[0])
        assert weight is None


def test_the_plain_inverse_asks_for_the_context_alone(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path)
    assert_weights(compute(lab, numerator="one"), lab.beliefs("context"), None)
    assert len(lab.asked) == FOLDS


def test_a_round_more_is_by_networks_of_the_last_weights(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path)
    found = compute(lab, rounds=2)
    assert_weights(found, lab.beliefs("context"), lab.beliefs("full2"))
    last = propensity_weights(lab.beliefs("context")[0], lab.beliefs("full1")[0], clip=5.0)
    for name, *_, weight in lab.asked:
        assert (weight is not None) == name.startswith("full2")
        assert weight is None or torch.equal(weight, last)


def test_finished_folds_are_not_trained_again(tmp_path: Path) -> None:
    first, again = FakeLab(tmp_path), FakeLab(tmp_path)
    assert torch.equal(compute(first).train, compute(again).train)
    assert again.asked == []


def test_more_folds_than_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--ipw-folds: got 31, accepted: up to the training images, here 30$"):
        compute(FakeLab(tmp_path), folds=31)


@pytest.mark.parametrize(("epochs", "teacher", "context"), [(240, None, 24), (30, 50, 5), (3, None, 1)])
def test_the_context_has_a_tenth_of_the_epochs(epochs: int, teacher: int | None, context: int) -> None:
    given = {"optim.epochs": epochs, "data.name": "cifar10"}
    method = resolve(given if teacher is None else {**given, "optim.teacher_epochs": teacher}).method
    assert method.ipw_context_epochs == context
    assert resolve({**given, "method.ipw_context_epochs": 7}).method.ipw_context_epochs == 7


def test_methods_of_equal_options_share_the_weights() -> None:
    method = resolve({"method.ipw_clip": 7.0}).method
    one, other = (method.options(name).weighting() for name in ("kd-ipw", "cid-ipw"))
    assert one == other == InversePropensity(3, 5, 7.0, "full", 1)
    assert hash(one) == hash(other)
    assert all(method.options(name).weighting() is None for name in ("labels", "kd", "cid"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ipw_folds": 1}, "--ipw-folds: got 1, accepted: a number of at least 2"),
        ({"ipw_context_epochs": 0}, "--ipw-context-epochs: got 0, accepted: a number of at least 1"),
        ({"ipw_clip": 0.5}, r"--ipw-clip: got 0\.5, accepted: a number of at least 1"),
        ({"ipw_numerator": "two"}, "--ipw-numerator: got 'two', accepted: full or one"),
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
