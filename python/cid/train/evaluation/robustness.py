"""The accuracy of a run's networks on corrupted test data."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cid._errors import ConfigError
from cid.train.data import Dataset, Split, load_dataset
from cid.train.evaluation.corruptions import SMALLEST, STRENGTHS, corrupted, corruptions
from cid.train.files import read_json, write_json
from cid.train.folder import RunFolder, Saved
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
        limit: so many test images, as a run with this `--limit-test` would have them; None for all of this run's.
        report: takes a line for each corruption.

    Raises:
        CheckpointError: no such student is there, or a file is damaged.
        ConfigError: the data is not what the students were trained for, its images are not photographs of 32 x 32 at
            least, what would be overwritten is of more networks or images, or the library can't be imported.
        DataError: images are missing or damaged.
        ModuleNotFoundError: the library is not there.
    """
    names, saved = corruptions(), folder.saved(method, seed)
    config = folder.config(data_dir)
    if limit is not None:
        limit = min(limit, config.data.limit_test or limit)
        config = replace(config, data=replace(config.data, limit_test=limit))
    data = load_dataset(config.data)
    check_images(data)
    test, file = data.test, folder.path / "corruptions.json"
    check_nothing_is_lost(file, saved, len(test))
    networks = [read_network_for(folder.weights(one.name), data) for one in saved]

    clean_images = test.pixels(slice(None))

    def accuracies(split: Split) -> list[float]:
        return [score.accuracy for score in evaluate(networks, in_batches(split, config, data))]

    clean = accuracies(test)
    found: list[dict[str, list[float]]] = [{name: [] for name in names} for _ in saved]
    for place, name in enumerate(names, 1):
        for strength in STRENGTHS:
            images = torch.from_numpy(corrupted(clean_images.numpy(), name, strength))
            for each, accuracy in zip(found, accuracies(replace(test, kept=images)), strict=True):
                each[name].append(accuracy)
        report(f"{name}: {place} of {len(names)}")
    results = [Robustness(*one, accuracy, each) for one, accuracy, each in zip(saved, clean, found, strict=True)]
    write_json(file, to_json(results, len(test)))
    return results


def check_images(data: Dataset) -> None:
    """Refuses what the library can't corrupt: images without colours, or smaller than 32 x 32.

    Raises:
        ConfigError: these are.
    """
    height, width = data.size
    if data.channels != 3 or min(data.size) < SMALLEST or data.preprocessing.scale != 255:
        raise ConfigError(
            f"--corruptions: got {data.channels} x {height} x {width} images with values up to "
            f"{data.preprocessing.scale:.0f}, accepted: 3 channels of {SMALLEST} x {SMALLEST} at least, up to 255"
        )


def check_nothing_is_lost(file: Path, saved: Sequence[Saved], images: int) -> None:
    """Refuses to overwrite what was found of other networks or of more images.

    Raises:
        ConfigError: it would be.
        CheckpointError: the file is damaged.
    """
    if not file.is_file():
        return
    there = read_json(file)
    lost = {each["name"] for each in there["networks"]} - {one.name for one in saved}
    if lost or there["images"] > images:
        what = ", ".join(sorted(lost)) if lost else f"{there['images']:,} images, not {images:,}"
        raise ConfigError(f"--corruptions: {file} is of {what}, accepted: no less, or that file moved away")


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
