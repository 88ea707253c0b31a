"""The accuracy of a run's networks on corrupted test data."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cid._errors import ConfigError
from cid.train.data import Dataset, Split, load_dataset
from cid.train.evaluation.corruptions import SMALLEST, STRENGTHS, corrupted, corruptions
from cid.train.files import write_json
from cid.train.folder import RunFolder
from cid.train.networks import read_network_for
from cid.train.scoring import evaluate, in_batches


@dataclass(frozen=True)
class Robustness:
    """How one network takes corrupted images.

    Attributes:
        name: its folder in the run.
        method: how it was trained, or "teacher".
        seed: of its training.
        accuracy: on the test data as it is.
        corruptions: accuracy on it under each corruption, at each of `STRENGTHS`.
    """

    name: str
    method: str
    seed: int
    accuracy: float
    corruptions: dict[str, list[float]]

    def at(self, strength: int) -> float:
        """The mean over the corruptions at a strength."""
        return statistics.fmean(each[STRENGTHS.index(strength)] for each in self.corruptions.values())

    @property
    def corrupted(self) -> float:
        """The mean over all corruptions and strengths."""
        return statistics.fmean(map(self.at, STRENGTHS))


def measure(
    folder: RunFolder,
    *,
    method: str | None,
    seed: int | None,
    data_dir: str | None,
    limit: int | None,
    report: Callable[[str], None],
) -> list[Robustness]:
    """Scores a run's teacher and students on its test data under every corruption at every strength.

    What is found is written to the run's folder, as `corruptions.json`.

    Args:
        folder: of the run.
        method: only this method's students.
        seed: only this seed's.
        data_dir: where the data set is now, if it was moved.
        limit: so many test images, the first; None for all.
        report: takes a line for each corruption.

    Raises:
        CheckpointError: no such student is there, or a file is damaged.
        ConfigError: the data is not what the students were trained for, or its images are too small.
        DataError: images are missing or damaged.
    """
    names, saved = corruptions(), folder.saved(method, seed)
    config = folder.config(data_dir)
    data = load_dataset(config.data)
    check_size(data)
    networks = [read_network_for(folder.weights(one.name), data) for one in saved]
    test = data.test.take(torch.arange(min(limit or len(data.test), len(data.test))))

    def accuracies(split: Split) -> list[float]:
        return [score.accuracy for score in evaluate(networks, in_batches(split, config, data))]

    clean = accuracies(test)
    found: list[dict[str, list[float]]] = [{name: [] for name in names} for _ in saved]
    for place, name in enumerate(names, 1):
        for strength in STRENGTHS:
            images = torch.from_numpy(corrupted(test.images.numpy(), name, strength))
            for each, accuracy in zip(found, accuracies(replace(test, images=images)), strict=True):
                each[name].append(accuracy)
        report(f"{name}: {place} of {len(names)}")
    results = [Robustness(*one, accuracy, each) for one, accuracy, each in zip(saved, clean, found, strict=True)]
    write_json(folder.path / "corruptions.json", to_json(results, len(test)))
    return results


def check_size(data: Dataset) -> None:
    """Refuses images of which the library would.

    Raises:
        ConfigError: they are too small.
    """
    if min(data.size) < SMALLEST:
        height, width = data.size
        raise ConfigError(
            f"--corruptions: got images of {height} x {width}, accepted: of {SMALLEST} x {SMALLEST} at least"
        )


def to_json(found: Sequence[Robustness], images: int) -> dict[str, Any]:
    """What was found, for programs."""
    networks = [
        {
            "name": each.name,
            "method": each.method,
            "seed": each.seed,
            "test_accuracy": each.accuracy,
            "corrupted_accuracy": each.corrupted,
            "corruptions": each.corruptions,
        }
        for each in found
    ]
    return {"images": images, "strengths": list(STRENGTHS), "networks": networks}
