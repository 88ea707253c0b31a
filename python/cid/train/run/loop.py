"""The one training loop, of teachers and of students by every method."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cid._errors import InterruptedRunError, NonFiniteError
from cid.train.data import Batch, Batches
from cid.train.methods import StepOutput, Training
from cid.train.run.accumulation import micro_batches
from cid.train.run.average import Average
from cid.train.run.batch_norm import over_ranks
from cid.train.run.checkpoint import Best, Checkpoint, Position
from cid.train.run.fabric import Fabric, is_sharding
from cid.train.run.monitor import LossMonitor
from cid.train.run.progress import Observer
from cid.train.run.schedule import learning_rate, make_optimizer, set_learning_rate
from cid.train.run.signals import StopRequest
from cid.train.scoring import evaluate
from cid.train.sections import OptimConfig
from cid.train.sharding import whole

# On another device than the CPU, looking at a loss waits for it.
CHECK_EVERY = {"cpu": 1}
CHECK_EVERY_ELSEWHERE = 50


@dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        name: how messages call it.
        folder: where its checkpoint goes.
        epochs: how long to train.
        optim: how to train.
        checkpoint_every: steps between checkpoints, beside each epoch's.
        last: whether the last epoch is kept, rather than the best.
        norms_over_ranks: whether batch normalisation has the statistics of all ranks, where there are several.
        patience: after how many epochs without a better one it ends.
        ema: the decay of the average that is scored and kept, in place of the weights themselves.
    """

    name: str
    folder: Path
    epochs: int
    optim: OptimConfig
    checkpoint_every: int | None = None
    last: bool = False
    norms_over_ranks: bool = True
    patience: int | None = None
    ema: float | None = None


@dataclass(frozen=True)
class Trained:
    """The outcome of a job; the training holds the kept epoch's weights."""

    best_epoch: int
    validation: float
    seconds: float


class Trainer:
    """Trains the network of one job, from its checkpoint if there is one.

    Args:
        fabric: where and in what precision.
        job: what to train.
        training: the network and its loss.
        batches: training images.
        validation: images to choose the epoch by.
        observer: hears of the progress.
        record: takes the metrics of each epoch.
        stop: whether somebody asked to stop.
    """

    def __init__(
        self,
        fabric: Fabric,
        job: Job,
        training: Training,
        *,
        batches: Batches,
        validation: Batches,
        observer: Observer,
        record: Callable[[dict[str, Any]], None],
        stop: StopRequest,
    ) -> None:
        self._fabric = fabric
        self._ranks = batches.ranks
        self._job = job
        self._whole = training
        self._batches = batches
        self._validation = validation
        self._observer = observer
        self._record = record
        self._stop = stop
        if self._ranks.size > 1 and job.norms_over_ranks:
            over_ranks(training, fabric.device)
            training.keep_buffers()
        # What is left in parts can't be made whole again, but its values can.
        self._training = training = copy.deepcopy(training) if is_sharding(fabric) else training
        self._wrapped = fabric.setup_module(training)
        optimizer = make_optimizer(training.param_groups(job.optim.weight_decay), job.optim)
        self._optimizer: Any = fabric.setup_optimizers(optimizer)
        self._average = None if job.ema is None else Average(training, job.ema)
        self._checkpoint = Checkpoint(
            job.folder / "checkpoint.safetensors",
            training,
            optimizer,
            fabric.device,
            fabric.strategy.precision,
            self._average,
            self._ranks,
        )
        self._position = self._checkpoint.load()
        self._started = 0.0
        self._check_every = CHECK_EVERY.get(fabric.device.type, CHECK_EVERY_ELSEWHERE)

    @property
    def position(self) -> Position:
        """How far the training is."""
        return self._position

    def train(self) -> Trained:
        """Trains to the end and loads the kept epoch's weights.

        Raises:
            NonFiniteError: a loss or a weight is NaN or infinite; the last checkpoint stays.
            InterruptedRunError: a signal came; a checkpoint was written.
            OSError: a checkpoint can't be written.
        """
        position, steps = self._position, self._batches.steps
        self._started = time.perf_counter() - position.seconds
        self._observer.start(self._job.name, self._job.epochs * steps, position.epoch * steps + position.step)
        try:
            while position.epoch < self._job.epochs and not self._out_of_patience():
                losses = self._train_epoch()
                self._finish_epoch(losses)
        except NonFiniteError as error:
            kept = "the last checkpoint is kept" if self._checkpoint.path.exists() else "there is no checkpoint yet"
            raise NonFiniteError(f"{self._job.name}: {error}; {kept}. It may take a smaller --lr") from error
        best = position.best
        if best is None:
            raise RuntimeError(f"{self._job.name}: no epoch could be scored")
        self._whole.load_trained_state(best.state)
        self._whole.eval()
        return Trained(best.epoch, best.score[0], position.seconds)

    def _out_of_patience(self) -> bool:
        """Whether it is too long since the best epoch; where no epoch could be scored yet, it is not."""
        best, patience = self._position.best, self._job.patience
        return patience is not None and best is not None and self._position.epoch - 1 - best.epoch >= patience

    def _train_epoch(self) -> LossMonitor:
        """The steps of the current epoch that are not done yet."""
        position = self._position
        losses = LossMonitor(self._fabric.device, self._ranks)
        if position.losses is not None:
            losses.load_state(position.losses)
        self._training.epoch.fill_(position.epoch)
        self._wrapped.train()
        for batch in self._batches.epoch(position.epoch, position.step):
            loss = self._step(batch, losses)
            position.step += 1
            if position.step % self._check_every == 0:
                losses.check()
                self._observer.step(self._check_every, float(loss))
            self._save_if_due(losses)
        losses.check()
        return losses

    def _step(self, batch: Batch, losses: LossMonitor) -> Tensor:
        done = self._position.epoch * self._batches.steps + self._position.step
        set_learning_rate(self._optimizer, self._learning_rate(done))
        self._optimizer.zero_grad()
        optim, parts = self._job.optim, micro_batches(batch, self._job.optim.accumulate, self._ranks)
        for number, (part, fraction) in enumerate(parts, 1):
            unfinished = number < len(parts)
            with self._fabric.no_backward_sync(self._wrapped) if unfinished else nullcontext():
                output: StepOutput = self._wrapped(part)
                factor = fraction if self._training.method.knows_ranks else part.share
                losses.add(done, output, part.target, factor=factor, part=fraction)
                self._fabric.backward(output.loss if factor == 1 else factor * output.loss)
        if optim.clip_norm is not None:
            # A gradient that is not finite makes a weight that is not, which is seen there.
            self._fabric.clip_gradients(
                self._wrapped, self._optimizer, max_norm=optim.clip_norm, error_if_nonfinite=False
            )
        self._optimizer.step()
        if self._average is not None:
            self._average.update(done)
        return output.loss.detach()

    def _learning_rate(self, steps_done: int) -> float:
        return learning_rate(self._job.optim, steps_done / (self._job.epochs * self._batches.steps))

    def _save_if_due(self, losses: LossMonitor) -> None:
        """Saves within the epoch: as often as asked for, and before stopping."""
        every = self._job.checkpoint_every
        number = self._stop.signal_number
        if self._ranks.size > 1:  # all stop at the same step, where they look at their losses together anyway
            step = self._position.step
            looks = step % self._check_every == 0 or step == self._batches.steps
            number = self._ranks.first_of(number) if looks else None
        if number is None and (every is None or self._position.step % every):
            return
        losses.check()
        self._position.losses = losses.state()
        self._save()
        if number is not None:
            raise InterruptedRunError(self._job.name, number)

    def _save(self) -> None:
        self._position.seconds = time.perf_counter() - self._started
        self._checkpoint.save(self._position)

    def _predict(self, inputs: Tensor) -> Tensor:
        """Scores in the precision of the training: Fabric applies it to `forward` alone."""
        with self._fabric.autocast():
            return self._training.predict(self._fabric.strategy.precision.convert_input(inputs))

    def _finish_epoch(self, losses: LossMonitor) -> None:
        """Scores the epoch, keeps it if it is the best, turns to the next and saves."""
        if not self._job.norms_over_ranks:
            self._share_buffers()
        with nullcontext() if self._average is None else self._average.applied():
            metrics = self._score(losses)
        self._record(metrics)
        self._observer.epoch(metrics)
        self._training.epoch_end()
        position = self._position
        position.epoch += 1
        position.step = 0
        position.losses = None
        self._save()

    def _share_buffers(self) -> None:
        """Gives all ranks the first one's statistics of batch normalisation, so that all score one network."""
        saved, gathered = self._training.trained_state(), self._training.gathered()
        buffers = {name: value for name, value in self._training.named_buffers() if name in saved}
        for name, value in buffers.items():
            if name not in gathered:
                self._ranks.same(value)
        if self._average is not None:
            for name, value in self._average.state().items():
                if name in buffers:
                    self._ranks.same(value)

    def _score(self, losses: LossMonitor) -> dict[str, Any]:
        """The metrics of the epoch, which is kept if it is the best."""
        position, training = self._position, self._training
        self._wrapped.eval()
        (score,) = evaluate([self._predict], self._validation)
        if not math.isfinite(score.loss):
            raise NonFiniteError(f"epoch {position.epoch}: the loss on the validation split is {score.loss}")
        ranking = (score.accuracy, -score.loss)
        better = self._job.last or position.best is None or ranking > position.best.score
        if training.scorable and better:
            state = {key: whole(value.detach().clone()) for key, value in training.trained_state().items()}
            position.best = Best(position.epoch, ranking, state)
        return {
            "epoch": position.epoch,
            "lr": self._learning_rate((position.epoch + 1) * self._batches.steps - 1),
            **losses.means(),
            **training.found(),
            "val_accuracy": score.accuracy,
            "val_loss": score.loss,
            "scorable": training.scorable,
            "best_epoch": position.best and position.best.epoch,
        }
