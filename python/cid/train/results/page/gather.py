"""The numbers of the page: what a run folder holds, and what its networks say about the test data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cid._errors import CheckpointError, ConfigError
from cid.train.config import Config
from cid.train.data import Split, load_dataset
from cid.train.folder import TEACHER, Result, RunFolder, network_name
from cid.train.networks import interventional, read_network_for
from cid.train.results.page.weights import WeightNumbers, gather_weights
from cid.train.scoring import accuracy, all_logits, right, test_batches

SAMPLES = 12  # shown of each kind of change


@dataclass(frozen=True)
class Guess:
    """A class and how much of something it gets, 0..1."""

    label: int
    share: float


@dataclass(frozen=True)
class Sample:
    """A test image whose decision the intervention changed.

    Attributes:
        index: in the test data.
        label: its class.
        student: the network that decided.
        own: what it would have decided by s.
        final: what it decides by z.
        contexts: the heaviest two in the mixture.
        image: (channels, height, width), uint8.
    """

    index: int
    label: int
    student: str
    own: Guess
    final: Guess
    contexts: tuple[Guess, ...]
    image: Tensor


@dataclass(frozen=True)
class Student:
    """One student's decisions by s and by z: their accuracy, and how many samples change from one to the other."""

    name: str
    own_accuracy: float
    accuracy: float
    mended: int
    broken: int
    still_wrong: int


@dataclass(frozen=True)
class Confounder:
    """The other class whose context a class is most mixed with.

    Attributes:
        label: the class.
        own_weight: mean weight of its own context, over its test samples and the students.
        other: whose context is mixed in most.
        weight: the mean weight of that.
        students: in how many students it is that one.
        cosine: between the two contexts.
        taken_for: how often the class is taken for the other.
    """

    label: int
    own_weight: float
    other: int
    weight: float
    students: int
    cosine: float
    taken_for: float


@dataclass(frozen=True)
class Intervention:
    """What the intervention of a run's cid students does on the test data.

    Attributes:
        temperature: T.
        mixing: (C, C), mean softmax(s/T) over the samples of a class (row) and the students.
        cosines: (C, C), between the contexts of the bank, mean over the students.
        confounders: of each class that has test samples, strongest first.
        students: one each.
        mended: samples that s gets wrong and z right, the most confident first.
        broken: the other way round.
    """

    temperature: float
    mixing: Tensor
    cosines: Tensor
    confounders: list[Confounder]
    students: list[Student]
    mended: list[Sample]
    broken: list[Sample]


@dataclass(frozen=True)
class RunNumbers:
    """All that the page shows of a run.

    Attributes:
        title: what the page calls it.
        config: of the run.
        results: the teacher's, then the students'.
        metrics: of every epoch.
        classes: what they are called.
        test_images: how many.
        scale: what image bytes are divided by.
        confusions: by method: (C, C), the part of a class's samples (row) that is taken for each class (column), mean
            over the networks; NaN for a class without a sample.
        intervention: None without a cid student.
        weightings: of the training images.
    """

    title: str
    config: Config
    results: list[Result]
    metrics: list[dict[str, Any]]
    classes: tuple[str, ...]
    test_images: int
    scale: float
    confusions: dict[str, Tensor]
    intervention: Intervention | None
    weightings: list[WeightNumbers]


def gather(
    path: Path, title: str, data_dir: str | None = None, scoring: Callable[[str], None] = lambda name: None
) -> RunNumbers:
    """Reads a finished run and asks its networks about the test data.

    Args:
        path: the folder of the run.
        title: what the page calls it.
        data_dir: where the data set is now, if it was moved.
        scoring: hears of each network.

    Raises:
        ConfigError: the folder is no run, or the data is not the run's.
        CheckpointError: the run is not finished, or a file of it is missing or damaged.
        DataError: images are missing or damaged.
    """
    folder = RunFolder(path)
    config = folder.config(data_dir)
    results = _results(path, config)
    metrics = _metrics(folder, results)
    data = load_dataset(config.data)
    batches = test_batches(config, data)
    confusions: dict[str, list[Tensor]] = {}
    students: dict[str, Answers] = {}
    for result in results:
        scoring(str(path / result.name))
        network = read_network_for(folder.weights(result.name), data)
        student = interventional(network)
        z, *own = all_logits([network] if student is None else [network, student.model], batches)
        _check_accuracy(path, result, z, data.test.labels)
        confusions.setdefault(result.method, []).append(confusion(z, data.test.labels))
        if student is not None:
            students[result.name] = Answers(z, own[0], student.context, student.head.temperature)
    return RunNumbers(
        title=title,
        config=config,
        results=results,
        metrics=metrics,
        classes=data.classes,
        test_images=len(data.test),
        scale=data.preprocessing.scale,
        confusions={method: _mean(each) for method, each in confusions.items()},
        intervention=_intervention(students, data.test) if students else None,
        weightings=gather_weights(path, config, data),
    )


def _results(path: Path, config: Config) -> list[Result]:
    names = [network_name(method, seed) for method in config.method.methods for seed in config.run.seeds]
    files = [path / name / "result.json" for name in (TEACHER, *names)]
    missing = [file.parent.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: is not finished, it lacks {', '.join(missing)}; go on with: cid distill --resume {path}"
        )
    return [Result.read(file) for file in files]


def _metrics(folder: RunFolder, results: list[Result]) -> list[dict[str, Any]]:
    metrics = folder.metrics()
    needed = {"name", "method", "epoch", "val_accuracy", "val_loss"}
    whole = all(isinstance(line, dict) and needed <= line.keys() for line in metrics)
    trained = {result.name for result in results if result.best_epoch is not None}
    if not whole or not trained <= {line["name"] for line in metrics}:
        raise CheckpointError(f"{folder.path / 'metrics.jsonl'}: is missing or damaged, it holds the training curves")
    return metrics


# --- the networks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What an interventional student says about the test data.

    Attributes:
        z: (N, C), the logits that it predicts with.
        s: (N, C), the student's own logits.
        context: M, (C, Ds).
        temperature: T.
    """

    z: Tensor
    s: Tensor
    context: Tensor
    temperature: float


def _check_accuracy(path: Path, result: Result, logits: Tensor, labels: Tensor) -> None:
    """The same images give the same accuracy, but for what another device rounds otherwise."""
    scored = accuracy(logits, labels)
    if abs(scored - result.test_accuracy) > max(0.01, 1.5 / len(labels)):
        raise ConfigError(
            f"{path / result.name}: scores {scored:.2%} on the test data, and {result.test_accuracy:.2%} when it was "
            "trained: the data is not the run's (see --data-dir)"
        )


# --- by class --------------------------------------------------------------------------------------------------------


def class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Row k: the mean over the samples of class k.

    Args:
        values: (N, C).
        labels: (N,).

    Returns:
        (C, C), float64; a class without a sample has NaN.
    """
    members = nn.functional.one_hot(labels, values.shape[1]).double()
    sums: Tensor = members.T @ values.double()
    return sums / members.sum(0)[:, None]


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """(C, C): the part of class k's samples (row) that is taken for each class."""
    return class_means(nn.functional.one_hot(logits.argmax(1), logits.shape[1]), labels)


def mixing(s: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """(C, C): the mean weight softmax(s/T) that the samples of class k (row) give to each class's context."""
    return class_means((s.double() / temperature).softmax(1), labels)


def cosines(context: Tensor) -> Tensor:
    """(C, C): between the contexts of the bank; NaN for a class that training never saw."""
    unit = context.double() / context.double().norm(dim=1, keepdim=True)
    products: Tensor = unit @ unit.T
    return products


def others(matrix: Tensor) -> Tensor:
    """The matrix without its diagonal, and without NaN: both are -inf."""
    diagonal = torch.eye(len(matrix), dtype=torch.bool)
    return matrix.nan_to_num(nan=-torch.inf).masked_fill(diagonal, -torch.inf)


# --- the intervention ------------------------------------------------------------------------------------------------


def _intervention(students: dict[str, Answers], test: Split) -> Intervention:
    labels = test.labels
    return Intervention(
        temperature=next(iter(students.values())).temperature,
        mixing=_mean(mixing(answers.s, labels, answers.temperature) for answers in students.values()),
        cosines=_mean(cosines(answers.context) for answers in students.values()),
        confounders=confounders(students, labels),
        students=[_student(name, answers, labels) for name, answers in students.items()],
        mended=changed(students, test, mended=True),
        broken=changed(students, test, mended=False),
    )


def _mean(matrices: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(matrices)).mean(0)


def confounders(students: dict[str, Answers], labels: Tensor) -> list[Confounder]:
    """Of each class that has test samples, the strongest first."""
    each = [mixing(answers.s, labels, answers.temperature) for answers in students.values()]
    weights = _mean(each)
    alike = _mean(cosines(answers.context) for answers in students.values())
    taken = _mean(confusion(answers.z, labels) for answers in students.values())
    strongest = [others(one).argmax(1).tolist() for one in each]
    found = [
        Confounder(
            label=label,
            own_weight=float(weights[label, label]),
            other=other,
            weight=float(weights[label, other]),
            students=sum(one[label] == other for one in strongest),
            cosine=float(alike[label, other]),
            taken_for=float(taken[label, other]),
        )
        for label, other in enumerate(others(weights).argmax(1).tolist())
        if not weights[label, label].isnan()
    ]
    return sorted(found, key=lambda confounder: -confounder.weight)


def _student(name: str, answers: Answers, labels: Tensor) -> Student:
    before, after = right(answers.s, labels), right(answers.z, labels)
    moved = answers.s.argmax(1) != answers.z.argmax(1)
    return Student(
        name=name,
        own_accuracy=accuracy(answers.s, labels),
        accuracy=accuracy(answers.z, labels),
        mended=int((~before & after).sum()),
        broken=int((before & ~after).sum()),
        still_wrong=int((~before & ~after & moved).sum()),
    )


def changed(students: dict[str, Answers], test: Split, *, mended: bool) -> list[Sample]:
    """Images that z gets right and s wrong (or the other way round), each once, the most confident first."""
    found: list[Sample] = []
    for name, answers in students.items():
        before, after = right(answers.s, test.labels), right(answers.z, test.labels)
        chosen = ~before & after if mended else before & ~after
        found += [_sample(index, name, answers, test) for index in chosen.nonzero().flatten().tolist()]
    found.sort(key=lambda sample: (-sample.final.share, sample.index))
    first: dict[int, Sample] = {}
    for sample in found:
        first.setdefault(sample.index, sample)
    return list(first.values())[:SAMPLES]


def _sample(index: int, name: str, answers: Answers, test: Split) -> Sample:
    s, z = answers.s[index], answers.z[index]
    return Sample(
        index=index,
        label=int(test.labels[index]),
        student=name,
        own=_guesses(s.softmax(0), 1)[0],
        final=_guesses(z.softmax(0), 1)[0],
        contexts=_guesses((s / answers.temperature).softmax(0), 2),
        image=test.pixels(slice(index, index + 1))[0],
    )


def _guesses(shares: Tensor, count: int) -> tuple[Guess, ...]:
    best = shares.sort(descending=True, stable=True)  # as argmax, the first of equals
    return tuple(Guess(*each) for each in zip(best.indices[:count].tolist(), best.values[:count].tolist(), strict=True))
