"""Settings that go with a data set."""

from __future__ import annotations

from typing import Any

# Beside the paper's own for CIFAR, settings that were seen to train; docs and the resolved file show them.
_CIFAR: dict[str, Any] = {"data.validation": 0.1, "data.pad": 4, "data.flip": True}
DATA_PRESETS: dict[str, dict[str, Any]] = {
    # Chosen on validation data alone: docs/choosing.md has the numbers.
    "digits": {
        "data.validation": 0.2,
        "data.pad": 2,
        "models.teacher": "cnn-32",
        "models.student": "cnn-8",
        "optim.epochs": 30,
        "optim.teacher_epochs": 50,
        "optim.batch_size": 64,
        "optim.optimizer": "adamw",
        "optim.lr": 0.02,
        "optim.schedule": "onecycle",
        "optim.weight_decay": 0.01,
        "method.beta": 10.0,
        "method.gamma": 1.0,
        "method.temperature": 2.0,
        "method.weights_from": "the digits preset, chosen on validation data",
        "run.seeds": (0, 1, 2, 3, 4, 5),
        # Networks this small gain nothing from a second thread, and beside other work they wait for it.
        "run.threads": 1,
    },
    # Its validation part is biased as what is trained on: nothing of the test "unbiased" is known in training.
    "coloured-digits": {
        "data.rho": 0.9,
        "data.validation": 0.1,
        "models.teacher": "convnet-16",
        "models.student": "convnet-3",
        "optim.epochs": 30,
        "optim.batch_size": 64,
        "optim.optimizer": "sgd",
        "optim.lr": 0.05,
        "optim.schedule": "cosine",
        "method.temperature": 4.0,
        "run.seeds": (0, 1, 2, 3, 4),
        "run.threads": 1,
    },
    "mnist": {
        "data.validation": 0.1,
        "data.pad": 2,
        "models.teacher": "cnn-32",
        "models.student": "cnn-4",
        "optim.epochs": 12,
        "optim.batch_size": 128,
        "optim.optimizer": "adamw",
        "optim.lr": 0.01,
        "optim.schedule": "onecycle",
        "optim.weight_decay": 0.01,
    },
    # These two are sized for a CPU; Nam et al. train longer, and on the second a ResNet-18.
    "colored-mnist": {
        "data.rho": 0.95,
        "data.validation": 0.1,
        "data.pad": 2,
        "models.teacher": "cnn-32",
        "models.student": "cnn-8",
        "optim.epochs": 10,
        "optim.batch_size": 128,
        "optim.optimizer": "adamw",
        "optim.lr": 0.01,
        "optim.schedule": "onecycle",
        "optim.weight_decay": 0.01,
    },
    "cifar10": _CIFAR,
    "corrupted-cifar10": {
        **_CIFAR,
        "data.rho": 0.95,
        "models.teacher": "resnet20",
        "models.student": "resnet8",
        "optim.epochs": 20,
        "optim.batch_size": 128,
        "optim.lr": 0.1,
        "optim.schedule": "cosine",
        # Corruptions are more than colours: of 16 features these networks told less of them.
        "method.ipw_context": "patches-64",
    },
    "cifar100": _CIFAR,
}
FOLDER_PRESET: dict[str, Any] = {"data.flip": True, "data.pad": 4}


def preset(data: str, *, cropped: bool = False) -> dict[str, Any]:
    """The settings of a data set by key, `section.name`; those of images in files for any other name.

    Args:
        data: its name.
        cropped: whether images are cropped at random otherwise, so that none are padded for it.
    """
    found = DATA_PRESETS.get(data, FOLDER_PRESET)
    return {**found, "data.pad": 0} if cropped else found
