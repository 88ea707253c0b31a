"""What holds for every method, and what a new file in the folder of methods is enough for."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cid._errors import ConfigError
from cid.functional import kd_loss
from cid.train.config import resolve
from cid.train.data import Batch
from cid.train.methods import DEFAULT_METHODS, Ingredients, Method, Training, option_fields, register, registry
from cid.train.methods._base import REGISTERED
from cid.train.methods._features import MapsMethod
from cid.train.models import InputSpec
from cid.train.results.page import COLOURS
from cid.train.settings import setting
from tests import draws

CLASSES, SAMPLES = 3, 12
SPEC, LABELS = InputSpec(1, (5, 2), CLASSES), torch.arange(SAMPLES) % CLASSES
FEATURES = ("at", "crd", "fitnet", "rkd", "sp")
every_method = pytest.mark.parametrize("name", registry())


def network(width: int) -> nn.Module:
    maps = nn.Sequential(nn.Conv2d(1, width, 1), nn.Dropout(0.5))
    return nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def images() -> torch.Tensor:
    return torch.randn(SAMPLES, SPEC.channels, *SPEC.size)


def make(name: str, **options: float) -> tuple[Training, nn.Module, Batch]:
    draws.seed(0)
    teacher = network(8)
    given = Ingredients(network(4), teacher, SPEC, LABELS, fresh_student=partial(network, 4))
    batch = Batch(images(), torch.arange(SAMPLES) % CLASSES, torch.arange(SAMPLES))
    given_options = {f"method.{option}": value for option, value in {"warmup_epochs": 0, **options}.items()}
    return Training(resolve(given_options).method.options(name), given), teacher, batch


@every_method
def test_its_terms_are_those_that_it_says(name: str) -> None:
    training, _, batch = make(name, kd_weight=1.0)
    output = training(batch)
    assert tuple(output.terms) == registry()[name].terms
    assert not any(term.requires_grad for term in output.terms.values())
    output.loss.backward()
    assert all(p.grad is not None for p in training.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", FEATURES)
def test_what_compares_features_takes_softened_logits_beside_them(name: str) -> None:
    alone, with_kd = (make(name, kd_weight=weight, temperature=2.0)[0] for weight in (0.0, 3.0))
    *_, batch = make(name)
    alone.eval(), with_kd.eval()
    with_kd.load_state_dict(alone.state_dict())
    draws.seed(1)
    without = alone(batch)
    draws.seed(1)
    whole = with_kd(batch)
    assert list(without.terms) == [term for term in whole.terms if term != "kd"]
    kd = kd_loss(alone.student(batch.inputs), alone.teacher(batch.inputs), temperature=2.0)
    torch.testing.assert_close(whole.terms["kd"], kd)
    torch.testing.assert_close(whole.loss, without.loss + 3 * kd)


@every_method
def test_the_teacher_is_neither_trained_nor_saved(name: str) -> None:
    training, teacher, _ = make(name)
    assert not any(p.requires_grad for p in teacher.parameters())
    trained = {id(p) for group in training.param_groups(0.1) for p in group["params"]}
    assert trained == {id(p) for p in training.parameters() if p.requires_grad}
    assert not [key for key in training.trained_state() if "teacher" in key]
    if any(module is teacher for module in training.modules()):
        assert training.training
        assert not teacher.training
    state = {key: torch.full_like(value, 2.0) for key, value in training.trained_state().items()}
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    training.load_trained_state(state)
    assert all(torch.equal(value, state[key]) for key, value in training.trained_state().items())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@every_method
def test_without_a_teacher_its_outputs_must_come_with_the_batch(name: str) -> None:
    draws.seed(0)
    options = resolve({"method.warmup_epochs": 0}).method.options(name)
    given = Ingredients(network(4), None, SPEC, LABELS, teacher_dim=8, fresh_student=partial(network, 4))
    if isinstance(options, MapsMethod):
        with pytest.raises(ConfigError, match=r"^--teacher-cache: got one, accepted: none"):
            Training(options, given)
        return
    training = Training(options, given)
    batch = Batch(images(), torch.arange(SAMPLES) % CLASSES, torch.arange(SAMPLES))
    outputs = torch.randn(SAMPLES, 8), torch.randn(SAMPLES, CLASSES)
    assert torch.isfinite(training(batch._replace(teacher=outputs)).loss)
    if name not in ("labels", "lff", "jtt"):
        with pytest.raises(ValueError, match=r"^teacher: not given, accepted: \(features, logits\)"):
            training(batch)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        *((name, None) for name in ("labels", "kd", "dkd", "kd-ipw", "cid", "cid-ipw")),
        *((name, ("ce", "kd")) for name in FEATURES),
    ],
)
def test_samples_count_as_often_as_their_weight_says(name: str, terms: tuple[str, ...] | None) -> None:
    training, _, batch = make(name, kd_weight=1.0)
    training.eval()  # without dropout
    plain, ones = training(batch), training(batch._replace(weight=torch.ones(SAMPLES)))
    doubled = training(batch._replace(weight=torch.full((SAMPLES,), 2.0)))
    weight = draws.uniform(SAMPLES)
    once, twice = (training(batch._replace(weight=value)) for value in (weight, 1 - weight))
    for term in terms or plain.terms:
        value = plain.terms[term]
        near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}  # sums of 12 samples, of terms of few units
        torch.testing.assert_close(ones.terms[term], value, **near)
        times = 1 if term == "class" else 2  # of pairs of samples, which are not weighed
        torch.testing.assert_close(doubled.terms[term], times * value, **near)
        torch.testing.assert_close(once.terms[term] + twice.terms[term], (3 - times) * value, **near)


@pytest.mark.parametrize("name", ["kd", "kd-ipw", "cid", "cid-ipw", *FEATURES])
@pytest.mark.parametrize("cached", [False, True])
def test_the_teacher_is_adjusted_as_the_batch_says(name: str, cached: bool) -> None:
    training, teacher, batch = make(name, kd_weight=1.0, temperature=2.0)
    training.eval()  # without dropout
    assert isinstance(teacher, nn.Sequential)
    features = teacher[:-1](batch.inputs).detach()
    logits, adjustment = teacher(batch.inputs).detach(), 3 * draws.normal(SAMPLES, CLASSES)
    if issubclass(registry()[name], MapsMethod):  # which has no cache
        kd = kd_loss(training.student(batch.inputs), logits + adjustment, temperature=2.0)
        torch.testing.assert_close(training(batch._replace(logit_adjustment=adjustment)).terms["kd"], kd)
        return
    expected = training(batch._replace(teacher=(features, logits + adjustment)))
    given = batch._replace(teacher=(features, logits)) if cached else batch
    found = training(given._replace(logit_adjustment=adjustment))
    assert not torch.allclose(found.terms["kd"], training(batch).terms["kd"])
    for term, value in expected.terms.items():
        if term == "crd":  # remembers each call
            continue
        # The teacher's outputs are computed once more, in the same order.
        torch.testing.assert_close(found.terms[term], value, rtol=1e-6, atol=1e-7)


def test_order_and_names() -> None:
    assert tuple(registry())[: len(DEFAULT_METHODS)] == DEFAULT_METHODS
    others = list(registry())[len(DEFAULT_METHODS) :]
    assert others == sorted(others)
    assert all(name == method.name for name, method in registry().items())


@pytest.fixture
def registered() -> Iterator[Callable[[type[Method]], type[Method]]]:
    """As `register`, until the test is done."""
    before = dict(REGISTERED)
    registry.cache_clear()
    yield register
    REGISTERED.clear()
    REGISTERED.update(before)
    registry.cache_clear()


def test_a_name_that_is_taken(registered: Callable[[type[Method]], type[Method]]) -> None:
    @dataclass(frozen=True)
    class Other(Method):
        name = "kd"

    with pytest.raises(TypeError, match=r"test_methods: method 'kd' is in cid\.train\.methods\.kd, too$"):
        registered(Other)


@pytest.mark.parametrize(
    "declared",
    [(float, setting(2.0, "softens logits and contexts")), (float, setting(4.0, "softens")), (int, setting(4, "T"))],
)
def test_an_option_that_is_declared_otherwise(
    registered: Callable[[type[Method]], type[Method]], declared: tuple[Any, Any]
) -> None:
    kind, field = declared
    namespace = {"__annotations__": {"temperature": kind}, "temperature": field, "name": "other", "terms": ("ce",)}
    registered(dataclass(frozen=True)(type("Other", (Method,), namespace)))
    with pytest.raises(TypeError, match=r"^methods kd and other declare the option 'temperature' differently"):
        option_fields()


def test_an_option_that_hides_another_thing(registered: Callable[[type[Method]], type[Method]]) -> None:
    @dataclass(frozen=True)
    class Other(Method):
        name = "other"
        methods: float = setting(1.0, "of something")

    registered(Other)
    with pytest.raises(TypeError, match=r"^method other declares the option 'methods', accepted: any other name$"):
        option_fields()


# --- a new method ----------------------------------------------------------------------------------------------------

NEW = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cid.train.methods import LogitsMethod, _shared, register
from cid.train.settings import at_least, setting

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class MSE(LogitsMethod):
    """The distance of the logits."""

    name = "mse"
    terms = ("ce", "distance")

    alpha: float = _shared.alpha()
    distance_weight: float = setting(0.5, "weight of the distance", rule=at_least(0))

    def loss(
        self, logits: Tensor, teacher: Tensor, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from torch.nn.functional import cross_entropy, mse_loss

        ce, distance = cross_entropy(logits, target), mse_loss(logits, teacher)
        return self.alpha * ce + self.distance_weight * distance, {"ce": ce, "distance": distance}
'''
WITH_NEW = """
import sys
import cid.train.methods
cid.train.methods.__path__.append(sys.argv.pop(1))
from cid.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_new_method_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mse.py").write_text(NEW)
    run = tmp_path / "run"

    def cid(arguments: str) -> str:
        command = [sys.executable, "-c", WITH_NEW, str(tmp_path / "methods"), *arguments.split()]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    text = " ".join(cid("distill --help").split())
    assert "--distance-weight FLOAT mse: weight of the distance" in text
    assert re.search(r"--alpha FLOAT kd, cid,? [^:]*and mse: weight of", text)
    output = cid(
        "distill --limit 150 --limit-test 60 --teacher cnn-3 --student cnn-2 --epochs 2 --teacher-epochs 1 --seeds 0 "
        f"--device cpu --threads 1 --methods kd mse --distance-weight 2 --out {run}"
    )
    assert "\nmse " in output
    assert "mse - kd: " in output
    assert "distance_weight = 2.0" in (run / "config.toml").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] == pytest.approx(line["ce"] + 2 * line["distance"], rel=1e-5) for line in lines[-2:])
    cid(f"report {run}")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Terms of mse&#39;s loss, before their weights" in page
    assert "Terms of kd&#39;s loss, before their weights" in page
    names = [*DEFAULT_METHODS, *sorted({"mse", *registry()} - set(DEFAULT_METHODS))]
    assert f'class="strip c{names.index("mse") % COLOURS + 1}"' in page
    assert cid(f"eval {run} --method mse").startswith("mse-seed0: accuracy ")
