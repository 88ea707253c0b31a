"""The outputs of a run's teacher on its training images: made by `cid cache`, read with `--teacher-cache`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cid._errors import CheckpointError, ConfigError
from cid.cache import CacheError, CacheLayout, TeacherCache, digest, write_cache
from cid.teacher import teacher_outputs
from cid.train.config import Config
from cid.train.data import Batches, Dataset, Split
from cid.train.models.feed import feed_of


def made_from(config: Config, data: Dataset, teacher: nn.Module) -> dict[str, Any]:
    """The fingerprint: all that the teacher's outputs on the fixed views depend on."""
    return {
        "teacher": config.models.teacher,
        "teacher weights": digest(teacher.state_dict()),
        **_of_images(data.train),
        **asdict(data.preprocessing),
        **({} if (feed := feed_of(teacher)) is None else {"feed": repr(feed)}),
        "pad": config.data.pad,
        "flip": config.data.flip,
        "view seed": config.data.view_seed,
        **({"crop": config.data.crop} if config.data.crop else {}),
        **({"randaugment": list(config.data.randaugment)} if config.data.randaugment else {}),
        # PyTorch does not promise that a seed yields the same numbers in every release.
        "random numbers": digest({"first": torch.rand(16, generator=torch.Generator().manual_seed(0))}),
    }


def _of_images(split: Split) -> dict[str, Any]:
    if isinstance(split.kept, Tensor):
        return {"training images and labels": digest({"images": split.kept, "labels": split.labels})}
    return {"training files": split.kept.fingerprint(), "training labels": digest({"labels": split.labels})}


def open_cache(config: Config, data: Dataset, teacher: nn.Module) -> TeacherCache:
    """The cache that `--teacher-cache` names, for this teacher and these images.

    Raises:
        CheckpointError: it is missing, damaged, not finished, or made from something else.
    """
    assert config.models.teacher_cache is not None
    try:
        cache = TeacherCache(config.models.teacher_cache, expect=made_from(config, data, teacher))
    except CacheError as error:
        raise CheckpointError(f"--teacher-cache: {error}") from error
    if config.data.views not in (None, cache.layout.views):
        raise CheckpointError(f"--views: got {config.data.views}, but {cache.path} has {cache.layout.views}")
    return cache


def make_cache(
    config: Config,
    data: Dataset,
    teacher: nn.Module,
    out: Path,
    *,
    dtype: str,
    top_k: int | None,
    progress: Callable[[int, int], None],
) -> TeacherCache:
    """Runs the teacher on every training image in every view, as far as that is not done yet.

    Args:
        config: all settings; `views` of `data`, `batch_size` and, for `top_k`, `temperature` matter beside the
            fingerprint's.
        data: the images, on the teacher's device.
        teacher: the trained network.
        out: the folder.
        dtype: float16 or float32.
        top_k: how many logits to keep; None for all.
        progress: told the number of shards that are done, and of all.

    Raises:
        ConfigError: a setting does not fit.
        CheckpointError: the folder holds something else, or the outputs can't be stored.
        OSError: a file can't be written.
    """
    views, classes = config.data.views, len(data.classes)
    if views is None:
        if config.data.augments:
            raise ConfigError("--views: not given, accepted: how many augmented views of each image to keep")
        views = 1
    if top_k is not None and not 0 < top_k < classes:
        raise ConfigError(f"--top-k: got {top_k}, accepted: from 1 to {classes - 1}, or leave it out for all logits")
    batches = Batches(
        data.train,
        data.preprocessing,
        batch_size=config.optim.batch_size,
        pad=config.data.pad,
        flip=config.data.flip,
        seed=0,
        views=views,
        view_seed=config.data.view_seed,
    )

    def outputs(samples: range, view: int) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs in batches.in_view(view, samples):
            yield teacher_outputs(teacher, inputs, num_classes=classes)

    layout = CacheLayout(
        samples=len(data.train),
        views=views,
        feature_dim=teacher_outputs(teacher, next(batches.in_view(0, range(1))), num_classes=classes)[0].shape[1],
        num_classes=classes,
        dtype=dtype,
        top_k=top_k,
        # Where all logits are kept it plays no role, and must not tell caches apart.
        temperature=config.method.temperature if top_k else CacheLayout.temperature,
    )
    try:
        return write_cache(out, outputs, layout=layout, fingerprint=made_from(config, data, teacher), progress=progress)
    except ValueError as error:
        raise CheckpointError(f"--out: {error}") from error
