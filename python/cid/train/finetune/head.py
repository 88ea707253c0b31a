"""The classifying layer of a teacher that exists, fitted to the features that the rest of it makes of other images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from cid._errors import ConfigError, DataError
from cid.capture import Classifier
from cid.train.config import Config
from cid.train.data import Dataset, Split
from cid.train.files import write_json
from cid.train.folder import TEACHER, Result, RunFolder
from cid.train.models import count_parameters
from cid.train.networks import Description, save_network
from cid.train.run.inputs import Inputs, cpu_threads
from cid.train.run.precision import FULL
from cid.train.scoring import evaluate, in_batches, score_tests
from cid.train.transfer import Probe


def finetune(config: Config, out: Path, report: Callable[[str], None]) -> tuple[Path, Result]:
    """Writes a teacher of the data's classes: what others have trained, but for its classifying layer.

    Args:
        config: data, teacher, and where to compute.
        out: a new folder.
        report: takes lines on what is done.

    Returns:
        The file of its weights, and how good it is.

    Raises:
        ConfigError: the folder exists, there is no such teacher, or its classifying layer is no linear one.
        CheckpointError: the file of weights is missing, damaged, or of another network.
        DataError: images are missing or damaged, or a class has none to train on.
    """
    RunFolder.check_new(out)
    models = dataclasses.replace(config.models, student=config.models.teacher)
    run = dataclasses.replace(config.run, precision=FULL)
    inputs = Inputs.load(dataclasses.replace(config, models=models, run=run))
    with cpu_threads(config.run.threads):
        torch.manual_seed(0)
        start, began = inputs.teacher(new_head=True), time.perf_counter()
        report(f"Teacher: {start.said}")
        network = start.network.eval()
        fit_head(network, config, inputs.data)
        (validation,) = evaluate([network], in_batches(inputs.data.validation, config, inputs.data))
        (scores,) = score_tests([network], config, inputs.data)
    data = inputs.data
    result = Result(
        name=TEACHER,
        method=TEACHER,
        seed=0,
        parameters=count_parameters(network),
        seconds=time.perf_counter() - began,
        best_epoch=None,
        validation_accuracy=validation.accuracy,
        **asdict(scores),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "teacher.safetensors"
    description = Description(config.models.teacher, data.classes, data.channels, data.size, data.preprocessing)
    save_network(path, network, description)
    write_json(out / "result.json", result.to_json())
    return path, result


@torch.no_grad()
def fit_head(network: nn.Module, config: Config, data: Dataset) -> None:
    """Fits the classifying layer of a network, in place.

    Raises:
        ConfigError: what the network yields is not a linear layer's output.
        DataError: a class has no image to train on.
    """
    absent = set(range(len(data.classes))) - set(data.train.labels.tolist())
    if absent:
        names = ", ".join(data.classes[label] for label in sorted(absent))
        raise DataError(f"there is no image to train on of the classes {names}")
    try:
        classifier = Classifier(network, len(data.classes), role="teacher")
        features, _, labels = _read(network, classifier, data.train, config, data)
        by, _, labels_by = _read(network, classifier, data.validation, config, data)
    except ValueError as error:
        raise ConfigError(f"--teacher: {config.models.teacher}: {error}") from error
    name = classifier.names[-1]
    layer = network.get_submodule(name)
    if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.bias is None:
        raise ConfigError(
            f"--teacher: {config.models.teacher}: its classifying layer {name!r} is a {type(layer).__name__}, "
            "accepted: a linear layer or a convolution, with a bias"
        )
    weight, bias = Probe(*(each.numpy() for each in (features, labels, by, labels_by))).linear()
    layer.weight.copy_(torch.from_numpy(weight).view_as(layer.weight))
    layer.bias.copy_(torch.from_numpy(bias))
    expected = by @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    _, yields, _ = _read(network, classifier, data.validation, config, data)
    if not torch.allclose(yields, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ConfigError(
            f"--teacher: {config.models.teacher}: what it yields is not the output of its layer {name!r}, accepted: a "
            "network that does nothing to that but average it"
        )


def _read(
    network: nn.Module, classifier: Classifier, split: Split, config: Config, data: Dataset
) -> tuple[Tensor, Tensor, Tensor]:
    """What the classifying layer reads of a split, (N, D), the logits, and the labels."""
    features, logits, labels = [], [], []
    for _, inputs, target in in_batches(split, config, data).in_order():
        read, made = classifier.read(network, inputs)
        features.append(read.double().cpu())
        logits.append(made.double().cpu())
        labels.append(target.cpu())
    return torch.cat(features), torch.cat(logits), torch.cat(labels)
