"""The stage before the students: what their methods ask for in weights of the samples, each computed once a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import cid._checks as check
from cid._errors import CheckpointError
from cid.propensity import effective_sample_size
from cid.train.data import Split, mix_seed
from cid.train.files import read_tensors, write_json, write_tensors
from cid.train.folder import RunFolder
from cid.train.methods import SampleWeights, Training, Weighting
from cid.train.methods.labels import Labels
from cid.train.models import build_model
from cid.train.run.loop import Job
from cid.train.scoring import all_logits
from cid.train.sections import ModelsConfig, OptimConfig

if TYPE_CHECKING:
    from cid.train.run.runner import Run


def weigh_samples(run: Run, weightings: Iterable[Weighting | None]) -> dict[Weighting | None, SampleWeights]:
    """The weights of each weighting that there is, from the run's folder where they are there.

    Raises:
        RunError: see `cid._errors`.
        OSError: a file can't be written.
    """
    asked = [weighting for weighting in dict.fromkeys(weightings) if weighting is not None]
    return {weighting: _kept(run, weighting) or _computed(run, weighting) for weighting in asked}


def _folder(run: Run, weighting: Weighting) -> Path:
    return run.folder.path / "weights" / weighting.name


def _kept(run: Run, weighting: Weighting) -> SampleWeights | None:
    path = _folder(run, weighting) / "weights.safetensors"
    if not run.ranks.of_first(path.is_file):  # others might find them before the first has gone on
        return None
    tensors, header = read_tensors(path)
    if header["options"] != asdict(weighting):
        raise CheckpointError(f"{path}: was made with {header['options']}, accepted: {asdict(weighting)}")
    return SampleWeights(
        tensors.pop("train"),
        tensors.pop("validation", None),
        tensors.pop("logit_adjustment", None),
        kept=tensors,
        notes=header["notes"],
        warnings=tuple(header["warnings"]),
    )


def _computed(run: Run, weighting: Weighting) -> SampleWeights:
    folder = _folder(run, weighting)
    folder.mkdir(parents=True, exist_ok=True)
    weights = weighting.compute(RunLab(run, weighting.name, RunFolder(folder, writes=run.ranks.first)))
    check.shape("train", weights.train, (len(run.data.train),))
    if weights.validation is not None:
        check.shape("validation", weights.validation, (len(run.data.validation),))
    if weights.logit_adjustment is not None:
        check.shape("logit_adjustment", weights.logit_adjustment, (len(run.data.train), run.spec.classes))
    size, count = effective_sample_size(weights.train), len(weights.train)
    header: dict[str, Any] = {
        "options": asdict(weighting),
        "samples": count,
        "effective_size": size,
        "largest": float(weights.train.max()),
        "notes": dict(weights.notes),
        "warnings": list(weights.warnings),
    }
    given = {
        "train": weights.train,
        "validation": weights.validation,
        "logit_adjustment": weights.logit_adjustment,
    }
    tensors = {**{name: value for name, value in given.items() if value is not None}, **weights.kept}

    def write() -> None:
        # The tensors last: where they are, all is there.
        write_json(folder / "weights.json", header)
        write_tensors(folder / "weights.safetensors", tensors, header)

    run.ranks.of_first(write)
    doubts = "".join(f"; {warning}" for warning in weights.warnings)
    run.observer.finish(f"weights {weighting.name}", f"of {count:,} samples, effective size {size:,.0f}{doubts}")
    return weights


@dataclass(frozen=True)
class RunLab:
    """The `cid.train.methods.Lab` of a run.

    Attributes:
        run: what is shared.
        name: of the weighting.
        files: its folder, with the metrics of its networks, which are no students.
    """

    run: Run
    name: str
    files: RunFolder

    @property
    def seed(self) -> int:
        """Of the run's first student."""
        return self.run.config.run.seeds[0]

    @property
    def folder(self) -> Path:
        """For files of the weighting's own."""
        return self.files.path

    @property
    def models(self) -> ModelsConfig:
        """The names of teacher and student."""
        return self.run.config.models

    @property
    def optim(self) -> OptimConfig:
        """How networks are trained."""
        return self.run.config.optim

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.run.spec.classes

    @property
    def labels(self) -> Tensor:
        """Of the training samples."""
        return self.run.data.train.labels.cpu()

    @property
    def validation_labels(self) -> Tensor:
        """Of the validation samples."""
        return self.run.data.validation.labels.cpu()

    def train(
        self, name: str, model: str, epochs: int, *, index: Tensor | None = None, weight: Tensor | None = None
    ) -> nn.Module:
        """A network, trained from the labels; see `cid.train.methods.Lab`."""
        run, full_name, seed = self.run, f"{self.name}-{name}", mix_seed(self.seed, *name.encode())
        split = self._part(index)
        torch.manual_seed(seed)
        network = build_model(model, run.spec).to(run.inputs.home)
        training = Training(Labels(), run.ingredients(network, None, split))
        run.seed(mix_seed(seed, 1))
        trained = run.fit(
            Job(full_name, self.files.network(name), epochs, self.optim, run.config.run.checkpoint_every, last=True),
            training,
            run.batches(split, seed, weights=weight if weight is None or index is None else weight[index]),
            run.batches(run.data.validation, seed),
            self.files,
            {"name": name},
        )
        run.observer.finish(
            full_name,
            f"{model}, {len(split):,} samples, accuracy {trained.validation:.2%} (validation), {trained.seconds:.1f} s",
        )
        run.stop_if_asked(full_name)
        # As what leaves a student's training.
        return training.predictor().to(run.fabric.device).float().eval()

    def logits(self, network: nn.Module, index: Tensor | None = None) -> Tensor:
        """Of the training samples."""
        return self._logits(network, self._part(index))

    def validation_logits(self, network: nn.Module) -> Tensor:
        """Of the validation samples."""
        return self._logits(network, self.run.data.validation)

    def _logits(self, network: nn.Module, split: Split) -> Tensor:
        (logits,) = all_logits([network], self.run.batches(split, 0))
        return logits.cpu()

    def _part(self, index: Tensor | None) -> Split:
        """The training samples at `index`."""
        whole = self.run.data.train
        return whole if index is None else whole.take(index.to(whole.labels.device))
