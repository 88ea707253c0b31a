"""How the options of method cid are completed, and where beta and gamma come from."""

from pathlib import Path

import pytest

from cid.train.config import read_toml, resolve, to_toml


def test_beta_and_gamma_say_where_they_come_from() -> None:
    pair = {"models.teacher": "wrn-40-2", "models.student": "wrn-16-2", "data.name": "cifar100"}
    method = resolve(pair).method
    assert (method.beta, method.gamma) == (65.0, 1.0)
    assert "paper" in method.weights_from
    assert "generic" in resolve({"data.name": "cifar10"}).method.weights_from
    given = resolve({**pair, "method.beta": 1.0, "method.gamma": 2.0}).method
    assert (given.beta, given.gamma, given.weights_from) == (1.0, 2.0, "given")
    half = resolve({**pair, "method.beta": 1.0}).method
    assert (half.beta, half.gamma) == (1.0, 1.0)
    assert half.weights_from == "one given, the other the paper's for wrn-40-2 to wrn-16-2"
    assert "digits" in resolve({}).method.weights_from
    assert resolve({}, {"method.beta": 1.0}).method.weights_from == "given"


def test_beta_over_a_resolved_file_is_given(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(resolve({"data.name": "cifar10"})))
    method = resolve({"method.beta": 2.0}, read_toml(path)).method
    assert (method.beta, method.gamma, method.weights_from) == (2.0, 1.0, "given")


@pytest.mark.parametrize(("epochs", "warmup"), [(240, 20), (12, 1), (2, 1), (1, 0)])
def test_the_warm_up_scales(epochs: int, warmup: int) -> None:
    config = resolve({"data.name": "cifar10", "optim.epochs": epochs})
    assert config.method.warmup_epochs == warmup
