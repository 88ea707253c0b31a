"""How good saved students are class by class: precision, recall, and what each class is taken for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from cid.train.folder import RunFolder
from cid.train.scoring import in_short, score_each_student


def measure(folder: RunFolder, *, method: str | None, seed: int | None, data_dir: str | None) -> dict[str, Any]:
    """All scores of saved students of a run, as JSON holds them.

    Args:
        folder: of the run.
        method: only this method's.
        seed: only this seed's.
        data_dir: where the data set is now, if it was moved.

    Returns:
        `classes`, their names; and `networks`, each with `name`, `method`, `seed`, the scores as in `result.json`,
        and by the name of each test `per_class` (see `per_class`) and `confusion`: how many images of each class (row)
        were taken for each (column).

    Raises:
        CheckpointError: no such student is there.
        ConfigError: the data is not what the students were trained for.
        DataError: images are missing or damaged.
    """
    classes: tuple[str, ...] = ()
    networks = []
    for student, found, data in score_each_student(folder, method=method, seed=seed, data_dir=data_dir):
        classes = data.classes
        labels = {name: data.every_test[name].labels for name in found}
        networks.append(
            {
                **student._asdict(),
                **asdict(in_short(found, data)),
                "per_class": {name: per_class(each.decided, labels[name], classes) for name, each in found.items()},
                "confusion": {
                    name: confusion(each.decided, labels[name], len(classes)) for name, each in found.items()
                },
            }
        )
    return {"classes": list(classes), "networks": networks}


def confusion(decided: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """How many samples of each class (row) were taken for each (column)."""
    from sklearn.metrics import confusion_matrix

    counts: list[list[int]] = confusion_matrix(labels.cpu(), decided.cpu(), labels=range(classes)).tolist()
    return counts


def per_class(decided: Tensor, labels: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class its name, precision, recall and support, which is how many samples it has.

    Without samples a class has no recall (None), and without decisions for it no precision.
    """
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, _, support = precision_recall_fscore_support(
        labels.cpu(), decided.cpu(), labels=range(len(classes)), zero_division=math.nan
    )
    return [
        {
            "class": name,
            "precision": _known(precision[k]),
            "recall": _known(recall[k]),
            "support": int(support[k]),
        }
        for k, name in enumerate(classes)
    ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
