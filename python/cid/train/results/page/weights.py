"""The weights of a run's training images: which weigh most, and how far what they are made of can be trusted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cid._errors import CheckpointError
from cid.propensity import NoisyCalibration, effective_sample_size, label_belief
from cid.train.config import Config
from cid.train.data import Dataset, Split
from cid.train.files import read_tensors

HEAVIEST = 24  # images that are shown
BINS = 10  # of beliefs
BELIEF = "_belief"


@dataclass(frozen=True)
class HeavyImage:
    """A training image that weighs much.

    Attributes:
        index: in the training data.
        label: its class.
        weight: in means.
        beliefs: in its class, by what the models are called.
        context: its group; None where groups are not known.
        usual: the most frequent group of its class, likewise.
        image: (channels, height, width), uint8.
    """

    index: int
    label: int
    weight: float
    beliefs: dict[str, float]
    context: str | None
    usual: str | None
    image: Tensor


@dataclass(frozen=True)
class AgainstContext:
    """Training images of another group than the most frequent one of their class.

    Attributes:
        images: the part that they are.
        weight: the part of the weight that they have.
        heaviest: how many of the heaviest images they are.
    """

    images: float
    weight: float
    heaviest: int


@dataclass(frozen=True)
class BeliefBin:
    """Samples whose largest belief is in one of equal parts of 0..1.

    Attributes:
        place: which part, from 0.
        count: how many.
        belief: their mean belief.
        right: the part of them whose class it is.
        lowest: end of the exact 95% interval of `right`.
        highest: the other end.
    """

    place: int
    count: int
    belief: float
    right: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Reliability:
    """How often a model is right, by how sure it is, on samples that it has not seen.

    Attributes:
        calibration: of its logits.
        bins: those with samples, by belief.
        error: the mean of `|belief - right|` over the samples' bins, the expected calibration error.
    """

    calibration: NoisyCalibration
    bins: list[BeliefBin]
    error: float


@dataclass(frozen=True)
class WeightNumbers:
    """What the page shows of a weighting.

    Attributes:
        name: of its folder.
        methods: those of the run that weigh by it, at least one.
        train: the weights, (N,).
        adjusts: whether the teacher's logits are adjusted, too.
        effective_size: of how many equal weights.
        warnings: in words, as when they were computed.
        reliabilities: by model; empty where a weighting has no beliefs.
        heaviest: the heaviest first; of equals, in the data's order.
        against: None where groups are not known.
        changed: why images, groups and labels are not shown; empty where they are.
    """

    name: str
    methods: list[str]
    train: Tensor
    adjusts: bool
    effective_size: float
    warnings: list[str]
    reliabilities: dict[str, Reliability]
    heaviest: list[HeavyImage]
    against: AgainstContext | None
    changed: str


def gather_weights(path: Path, config: Config, data: Dataset) -> list[WeightNumbers]:
    """Reads all weightings of a run.

    Args:
        path: the folder of the run.
        config: of the run.
        data: the run's, on the CPU.

    Raises:
        CheckpointError: a file is damaged.
    """
    methods: dict[str, list[str]] = {}
    for method in config.method.methods:
        weighting = config.method.options(method).weighting()
        if weighting is not None:
            methods.setdefault(weighting.name, []).append(method)
    files = {name: path / "weights" / name / "weights.safetensors" for name in methods}
    return [_weighting(file, methods[name], data) for name, file in files.items() if file.is_file()]


def _weighting(file: Path, methods: list[str], data: Dataset) -> WeightNumbers:
    tensors, header = read_tensors(file)
    try:
        weights, notes, warnings = tensors["train"], dict(header["notes"]), list(header["warnings"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: holds no weights: {error}") from error
    train = data.train
    beliefs = {key.removesuffix(BELIEF): value for key, value in tensors.items() if key.endswith(BELIEF)}
    models = {
        model: (logits, NoisyCalibration(float(notes[f"{model}_temperature"]), float(notes.get(f"{model}_noise", 0))))
        for model in beliefs
        if f"{model}_temperature" in notes and (logits := out_of_fold(file.parent, model)) is not None
    }
    changed = _what_changed(weights, beliefs, models, train.labels)
    heaviest = weights.sort(descending=True, stable=True).indices[:HEAVIEST]
    contexts = contexts_of(train)
    if changed:
        heaviest, models, contexts = heaviest[:0], {}, None
    return WeightNumbers(
        name=file.parent.name,
        methods=methods,
        train=weights,
        adjusts="logit_adjustment" in tensors,
        effective_size=effective_sample_size(weights),
        warnings=warnings,
        reliabilities={model: reliability(*found, train.labels) for model, found in models.items()},
        heaviest=[_heavy(index, weights, beliefs, contexts, data) for index in heaviest.tolist()],
        against=None if contexts is None else _against(weights, heaviest, contexts),
        changed=changed,
    )


def out_of_fold(folder: Path, model: str) -> Tensor | None:
    """The logits of all samples by models that have not seen them, (N, C); None where they were not kept.

    They lie in the folder of the model's name; with a number behind it where it was trained in rounds, the last counts.

    Raises:
        CheckpointError: a file is damaged.
    """
    rounds = {
        int(each[1] or 0): path
        for path in folder.iterdir()
        if (each := re.fullmatch(rf"{re.escape(model)}(\d*)", path.name))
    }
    files = sorted(rounds[max(rounds)].glob("fold*.safetensors")) if rounds else []
    folds = [read_tensors(file)[0] for file in files]
    if not folds or not all({"logits", "held_out"} <= fold.keys() for fold in folds):
        return None
    order = torch.cat([fold["held_out"] for fold in folds]).argsort()
    return torch.cat([fold["logits"] for fold in folds])[order]


def _what_changed(
    weights: Tensor, beliefs: dict[str, Tensor], models: dict[str, tuple[Tensor, NoisyCalibration]], labels: Tensor
) -> str:
    """Why the training data can't be that of the weights, in words; nothing where it can.

    The beliefs are in the classes that the images had: where no model's are in those of now, these are others. Nearly
    equal will do, as another machine rounds otherwise: by up to 6e-5 where logits / T are a thousand.
    """
    if len(labels) != len(weights):
        return f"there are {len(labels):,} training images now, and there were {len(weights):,}"
    same = [
        len(logits) == len(labels) == len(beliefs[model])
        and torch.allclose(
            label_belief(logits, calibration).gather(1, labels[:, None])[:, 0], beliefs[model], rtol=2e-4, atol=1e-6
        )
        for model, (logits, calibration) in models.items()
    ]
    return "" if any(same) or not same else "the training images have other classes now"


# --- calibration -----------------------------------------------------------------------------------------------------


def reliability(logits: Tensor, calibration: NoisyCalibration, labels: Tensor) -> Reliability:
    """How often a model is right, by its largest belief.

    Args:
        logits: (N, C), of samples that it has not seen.
        calibration: what makes beliefs of them, `cid.propensity.label_belief`.
        labels: (N,).

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    largest, guess = label_belief(logits.double(), calibration).max(1)
    hits = (guess == labels).double()
    places = (largest * BINS).long().clamp_max(BINS - 1)
    members = [places == place for place in range(BINS)]
    bins = [_bin(place, largest[own], hits[own]) for place, own in enumerate(members) if bool(own.any())]
    error = sum(one.count * abs(one.belief - one.right) for one in bins) / len(labels)
    return Reliability(calibration, bins, error)


def _bin(place: int, beliefs: Tensor, hits: Tensor) -> BeliefBin:
    count, right = len(hits), int(hits.sum())
    return BeliefBin(place, count, float(beliefs.mean()), right / count, *exact_interval(right, count))


def exact_interval(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share of which `right` of `count` draws are seen, by Clopper and Pearson 1934."""
    from scipy.special import betaincinv  # type: ignore[import-untyped]

    lowest = float(betaincinv(right, count - right + 1, 0.025)) if right else 0.0
    highest = float(betaincinv(right + 1, count - right, 0.975)) if right < count else 1.0
    return lowest, highest


# --- images ----------------------------------------------------------------------------------------------------------


class Contexts(NamedTuple):
    """The group of each image, and the most frequent one of its class, the first of equals, both (N,)."""

    own: Tensor
    usual: Tensor


def contexts_of(split: Split) -> Contexts | None:
    """None where groups are not known."""
    if split.groups is None:
        return None
    classes, groups = int(split.labels.max()) + 1, int(split.groups.max()) + 1
    pairs = torch.bincount(split.labels * groups + split.groups, minlength=classes * groups)
    return Contexts(split.groups, pairs.view(classes, groups).argmax(1)[split.labels])


def _against(weights: Tensor, heaviest: Tensor, contexts: Contexts) -> AgainstContext:
    other = contexts.own.ne(contexts.usual)
    shares = weights.double() / weights.double().sum()
    return AgainstContext(float(other.double().mean()), float(shares[other].sum()), int(other[heaviest].sum()))


def _heavy(
    index: int, weights: Tensor, beliefs: dict[str, Tensor], contexts: Contexts | None, data: Dataset
) -> HeavyImage:
    return HeavyImage(
        index=index,
        label=int(data.train.labels[index]),
        weight=float(weights[index]),
        beliefs={model: float(belief[index]) for model, belief in beliefs.items()},
        context=None if contexts is None else data.groups[int(contexts.own[index])],
        usual=None if contexts is None else data.groups[int(contexts.usual[index])],
        image=data.train.pixels(slice(index, index + 1))[0],
    )
