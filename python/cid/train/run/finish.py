"""The end of a network's training: it is saved, scored on the test data, the only time, and marked as done."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from torch import nn

from cid.train.files import write_json
from cid.train.folder import Result, WithoutHead, in_words
from cid.train.models import count_parameters
from cid.train.networks import save_network, without_head
from cid.train.run.loop import Trained
from cid.train.scoring import evaluate, score_tests

if TYPE_CHECKING:
    from cid.train.run.runner import Network, Run


def finish(run: Run, network: Network, predictor: nn.Module, trained: Trained | None) -> None:
    """Saves a network, scores it on the test data and further tests, the only time, and marks it as done.

    Raises:
        InterruptedRunError: a signal came.
    """
    name = network.name
    # Whatever the precision in training, what leaves it is float32.
    predictor = predictor.to(run.fabric.device).float().eval()
    folder = run.folder.network(name)
    run.ranks.of_first(lambda: save_network(run.folder.weights(name), predictor, run.describe(network.model)))
    result = score(run, network, predictor, trained)
    run.log.end(network.method, result)
    run.ranks.of_first(lambda: write_json(folder / "result.json", result.to_json()))
    met = run.ranks.every(dict(run.data.train.unreadable))
    run.ranks.of_first(lambda: run.folder.keep_unreadable({name: why for each in met for name, why in each.items()}))
    run.observer.finish(name, summary(network, result))
    run.stop_if_asked(name)


def summary(network: Network, result: Result) -> str:
    """A result in a line of text."""
    return (
        f"{network.model}, {result.parameters:,} parameters, {in_words(result)}, "
        f"{result.validation_accuracy:.2%} (validation), {result.seconds:.1f} s"
    )


def score(run: Run, network: Network, predictor: nn.Module, trained: Trained | None) -> Result:
    """The result of a network that predicts as `predictor` does; `trained` is None where it was given."""
    own = without_head(predictor)
    scores, *own_scores = score_tests([predictor] if own is None else [predictor, own], run.config, run.data, run.ranks)
    if trained is None:
        (validation,) = evaluate([predictor], run.batches(run.data.validation, 0))
    return Result(
        name=network.name,
        method=network.method,
        seed=network.seed,
        parameters=count_parameters(predictor),
        seconds=trained.seconds if trained else 0.0,
        best_epoch=trained.best_epoch if trained else None,
        validation_accuracy=trained.validation if trained else validation.accuracy,
        without_head=None if own is None else WithoutHead(count_parameters(own), **asdict(own_scores[0])),
        **asdict(scores),
    )
