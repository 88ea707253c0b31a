"""What saved networks have learned, by how well a linear classifier of their representations tells other data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cid.capture import Classifier
from cid.train.data import Dataset, Normalize, Preprocessing, Split
from cid.train.folder import Result, RunFolder, in_words
from cid.train.networks import Description, read_network, without_head

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

BATCH = 256
# Inverse strengths of the regularisation, of which validation data choose one.
STRENGTHS = tuple(10.0**power for power in range(-4, 3))

NOTES = (
    "Accuracy in %, of a linear classifier of the representations, which are not trained. Its regularisation was "
    "chosen on validation data; the test data was used once.",
    "+/-: 95% interval of the mean over seeds (Student's t). Differences are taken seed by seed.",
)


class Probe:
    """A linear classifier of standardised features, with the regularisation that validation data choose.

    Of those with the best accuracy there, that of the strongest regularisation.

    Args:
        features: (N, D).
        labels: (N,), not all the same.
        validation: features to choose by.
        validation_labels: theirs.

    Attributes:
        validation: the accuracy there.
        parameters: how many it has.
    """

    def __init__(self, features: Floats, labels: Labels, validation: Floats, validation_labels: Labels) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        def fitted(strength: float) -> Any:
            return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(features, labels)

        models = list(map(fitted, STRENGTHS))
        accuracies = [float(model.score(validation, validation_labels)) for model in models]
        self.validation = max(accuracies)
        self._model = models[accuracies.index(self.validation)]
        self.parameters = (features.shape[1] + 1) * len(self._model.classes_)

    def linear(self) -> tuple[Floats, Floats]:
        """Weight (C, D) and bias (C,) of the classifier as one layer of the features as they are, not standardised."""
        scaler, model = (step for _, step in self._model.steps)
        weight, bias = model.coef_ / scaler.scale_, model.intercept_ - model.coef_ @ (scaler.mean_ / scaler.scale_)
        if len(weight) == 1:  # of two classes it has the difference
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return weight, bias

    def scores(self, features: Floats, labels: Labels) -> tuple[float, float]:
        """The accuracy, and the mean of -log of the probability of the label: infinite of a class never seen."""
        found = self._model.predict_log_proba(features)
        every = np.full((len(labels), max(labels.max(), self._model.classes_.max()) + 1), -np.inf)
        every[:, self._model.classes_] = found
        own = np.take_along_axis(every, labels[:, None], 1)
        return float((every.argmax(1) == labels).mean()), float(-own.mean())


def transfer(
    folder: RunFolder, data: Dataset, method: str | None, seed: int | None, report: Callable[[str], None]
) -> list[Result]:
    """Probes a run's teacher and students, each by its own representation, which its classifying layer reads.

    Args:
        folder: of the run.
        data: other images, which are brought to the size and the channels that the networks were trained for.
        method: only this method's students.
        seed: only this seed's.
        report: takes a line for each network.

    Raises:
        CheckpointError: no such student is there, or a file is damaged.
        ConfigError: the folder is no run.
    """
    found = []
    for one in folder.saved(method, seed):
        result = probe(*one, *read_network(folder.weights(one.name)), data)
        report(f"{one.name}: {in_words(result)}")
        found.append(result)
    return found


def probe(name: str, method: str, seed: int, description: Description, network: nn.Module, data: Dataset) -> Result:
    """The result of a linear classifier of a network's representations."""
    began = time.perf_counter()
    model = without_head(network) or network
    classifier = Classifier(model, len(description.classes))

    def features(split: Split) -> Floats:
        return _features(model, classifier, description, data.preprocessing, split)

    def labels(split: Split) -> Labels:
        found: Labels = split.labels.numpy()
        return found

    train, validation = data.train, data.validation
    fitted = Probe(features(train), labels(train), features(validation), labels(validation))
    scores = {part: fitted.scores(features(split), labels(split)) for part, split in data.every_test.items()}
    test_accuracy, test_loss = scores.pop("test")
    return Result(
        name=name,
        method=method,
        seed=seed,
        parameters=fitted.parameters,
        seconds=time.perf_counter() - began,
        best_epoch=None,
        validation_accuracy=fitted.validation,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        tests={part: accuracy for part, (accuracy, _) in scores.items()},
    )


@torch.inference_mode()
def _features(
    model: nn.Module, classifier: Classifier, description: Description, given: Preprocessing, split: Split
) -> Floats:
    """The representations of a split, (N, D)."""
    normalize, parts = Normalize(description.preprocessing), []
    for images, _ in split.read(slice(start, start + BATCH) for start in range(0, len(split), BATCH)):
        inputs = normalize(as_trained(images.float() / given.scale, description))
        parts.append(classifier.read(model, inputs)[0].double())
    return torch.cat(parts).numpy()


def as_trained(images: Tensor, description: Description) -> Tensor:
    """Images (B, channels, H, W) in the size and the channels of a network: grey in each, or the mean of them."""
    if images.shape[1] != description.channels:
        images = images.mean(1, keepdim=True).expand(-1, description.channels, -1, -1)
    if tuple(images.shape[2:]) != description.size:
        images = interpolate(images, description.size, mode="bilinear", antialias=True)
    return images
