"""`--compile`: a step as one graph, or always the same few, which yields what it yields without."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cid import cli
from cid.train.config import resolve
from cid.train.data import Batch
from cid.train.methods import Ingredients, Training, registry
from cid.train.models import InputSpec, build_model
from tests import draws

BATCH, STEPS, EPOCHS = 16, 2, 3
SPEC = InputSpec(1, (8, 8), 4)
NETWORK = "cnn-2"
AUTO = {"method.beta": "auto", "method.gamma": "auto"}
WITH_KD = {"method.kd_weight": 1.0}
# The teacher and the student run by themselves, with hooks that take their maps: four graphs by two networks.
BY_PARTS = {"fitnet", "at", "sp"}


def losses(name: str, compiler: Any = None, **more: Any) -> list[float]:
    """Of some steps of a method, the last batch of each epoch smaller; its steps compiled, if by something."""
    settings = {"models.teacher": NETWORK, "models.student": NETWORK, "optim.epochs": EPOCHS, **more}
    options = resolve(settings).method.options(name)
    generator = torch.manual_seed(draws.SHIFT)
    labels = torch.randint(SPEC.classes, (BATCH * STEPS + 3,), generator=generator)
    make = partial(build_model, NETWORK, SPEC)
    training = Training(options, Ingredients(make(), make(), SPEC, labels, fresh_student=make))
    images = torch.randn(len(labels), SPEC.channels, *SPEC.size)
    if compiler is not None:
        training._compiled = torch.compile(options.step, dynamic=False, backend=compiler), BATCH
    found = []
    for epoch in range(EPOCHS):
        training.epoch.fill_(epoch)
        training.train()
        for index in torch.arange(len(labels)).split(BATCH):
            weight = None if options.weighting() is None else torch.rand(len(index))
            loss = training(Batch(images[index], labels[index], index, weight=weight)).loss
            loss.backward()
            found.append(float(loss.detach()))
        training.epoch_end()
    return found


def compiled(name: str, **more: Any) -> tuple[list[float], list[Any]]:
    """The same of steps that are compiled, but run as they are, and their graphs."""
    graphs: list[Any] = []

    def as_they_are(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(module)
        return module

    torch._dynamo.reset()
    return losses(name, as_they_are, **more), graphs


# PyTorch hides this from all but those for whom warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, {}) for name in registry()), ("cid", AUTO), ("cid-no-head", AUTO), ("at", WITH_KD), ("crd", WITH_KD)],
)
def test_each_method_becomes_few_graphs_and_the_same_losses(
    name: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cid.balance.BATCHES", 2)  # which are not compiled, of nine
    found, graphs = compiled(name, **more)
    assert found == losses(name, **more)
    # Of CID's schedule: in the warm-up, which gathers contexts, and after it.
    assert len(graphs) <= (4 if name in BY_PARTS else 2)
    assert graphs or name == "rkd"  # see there


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("name", ["cid", "crd"])
def test_what_is_looked_at_on_a_first_batch_makes_no_second_graph(name: str) -> None:
    assert len(compiled(name, **{"method.warmup_epochs": 0})[1]) == 1


TINY = (
    "--limit 150 --limit-test 60 --teacher cnn-2 --student cnn-2 --epochs 2 --batch-size 32 --optimizer sgd --lr 0.001 "
    f"--seeds 0 --split-seed {draws.SHIFT} --device cpu"
)


def test_the_command_compiles_every_network(tmp_path: Path) -> None:
    found = []
    for more in ([], ["--compile"]):
        out = tmp_path / f"run{len(more)}"
        assert cli.main(["distill", *TINY.split(), "--methods", "kd", *more, "--out", str(out)]) == 0
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found.append([line["loss"] for line in lines])
    # Steps this small move a loss by a hundredth in all; rounding by another order, by a millionth of that.
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert "compile = true" in (tmp_path / "run1/config.toml").read_text()


def test_where_nothing_can_be_compiled_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(module: nn.Module, _: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    arguments = f"{TINY} --methods labels --compile".split()
    assert cli.main(["distill", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert "--compile: " in (said := capsys.readouterr().err)
    assert "no C++ compiler" in said
