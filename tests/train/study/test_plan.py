"""What a study's file multiplies out, and what its rows are known by."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from cid._errors import ConfigError
from cid.train.folder import TEACHER
from cid.train.study.plan import Setting, digest, read_study

STUDY = """
methods = ["labels", "kd"]
seeds = [3, 4]

[settings]
data = { name = "digits", limit = 100 }
optim = { epochs = 6 }

[grid.pair]
"a to b" = { models = { teacher = "cnn-3", student = "cnn-2" } }
"c/d" = { models = { teacher = "cnn-4" }, optim = { epochs = 7 } }

[grid.rate]
slow = { optim = { lr = 0.001 } }
fast = { optim = { lr = 0.1 } }
"""


def study(tmp_path: Path, text: str = STUDY, given: Mapping[str, Any] = MappingProxyType({})) -> list[Setting]:
    file = tmp_path / "study.toml"
    file.write_text(text)
    return read_study(file, given)


def test_all_combinations_in_order(tmp_path: Path) -> None:
    found = study(tmp_path)
    assert [each.label for each in found] == [
        {"pair": "a to b", "rate": "slow"},
        {"pair": "a to b", "rate": "fast"},
        {"pair": "c/d", "rate": "slow"},
        {"pair": "c/d", "rate": "fast"},
    ]
    first, last = found[0].config, found[3].config
    assert (first.models.teacher, first.optim.epochs, first.optim.lr) == ("cnn-3", 6, 0.001)
    assert (last.models.teacher, last.optim.epochs, last.optim.lr) == ("cnn-4", 7, 0.1)
    assert found[0].students() == [("labels", 3), ("kd", 3), ("labels", 4), ("kd", 4)]
    assert first.run.threads == 1
    assert len({each.name for each in found}) == 4
    assert found[2].name.startswith("c-d_slow_")


def test_what_is_given_goes_over_the_file(tmp_path: Path) -> None:
    assert {each.config.data.limit for each in study(tmp_path, given={"data.limit": 50})} == {50}


def test_without_a_grid_there_is_one_run(tmp_path: Path) -> None:
    (one,) = study(tmp_path, "")
    assert one.label == {}
    assert one.config.data.name == "digits"


def test_each_seed_may_draw_all(tmp_path: Path) -> None:
    found = study(tmp_path, 'seeds = [5, 6]\ndraws = ["data.split_seed", "data.data_seed"]')
    assert [(each.config.run.seeds, each.config.data.split_seed, each.config.data.data_seed) for each in found] == [
        ((5,), 5, 5),
        ((6,), 6, 6),
    ]
    assert len({each.name for each in found}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = [0]", r": has 'seed', accepted: methods, seeds, draws, settings, grid$"),
        ("seeds = [", ": is no TOML: "),
        ("[settings]\noptim = { rate = 1 }", r": settings: has 'optim\.rate', accepted: data\.name, "),
        ("[settings]\nrun = { seeds = [1] }", r": settings: has 'run\.seeds' \(a study has 'seeds' for all runs\)"),
        ("settings = 3", ": settings: got 3, accepted: tables"),
        ("[grid]\npair = 1", r": grid: got \{'pair': 1\}, accepted: tables"),
        ("[grid.pair.one]\nmodels = 1", r": grid\.pair\.one: got \{'models': 1\}, accepted: tables"),
        ("[grid.pair.one]\noptim = { lr = -1.0 }", r": pair one: optim\.lr: got -1\.0, accepted: "),
        ('methods = ["magic"]', "method.methods: got magic, accepted: "),
        ('draws = ["data.limit"]', r"draws: got \['data.limit'\], accepted: a list of data\.split_seed, "),
        ('draws = "data.split_seed"', r"draws: got 'data\.split_seed', accepted: a list of "),
    ],
)
def test_what_is_not_accepted(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        read_study(tmp_path / "none.toml", {})


def test_a_row_is_known_by_all_that_decides_it_and_nothing_else(tmp_path: Path) -> None:
    def key(method: str, changed: Mapping[str, Any] = MappingProxyType({}), seed: int = 3) -> str:
        return digest(study(tmp_path, given=changed)[0].config, method, seed)

    for method in (TEACHER, "labels", "kd"):
        whole = key(method)
        assert whole != key(method, seed=4)
        assert whole == key(method, {"data.dir": "/elsewhere", "run.device": "cpu", "run.threads": 3})
        assert whole == key(method, {"method.methods": ["kd"], "run.seeds": [3, 4, 5]})
        assert whole != key(method, {"data.limit": 99})
        assert whole != key(method, {"run.precision": "bf16-mixed"})
        # The first seed is the teacher's, and the weights'.
        assert (whole == key(method, {"run.seeds": [4, 3]})) == (method == TEACHER)
        assert (whole == key(method, {"method.temperature": 3.0})) == (method != "kd")
        assert (whole == key(method, {"models.student": "cnn-5"})) == (method == TEACHER)
    assert len({key(method) for method in (TEACHER, "labels", "kd")}) == 3


def test_a_folder_stays_with_more_seeds_and_methods(tmp_path: Path) -> None:
    name = study(tmp_path)[0].name
    assert name == study(tmp_path, given={"method.methods": ["crd"], "run.seeds": [3]})[0].name
    assert name != study(tmp_path, given={"method.alpha": 2.0})[0].name


def test_a_setting_that_came_later_changes_no_row_of_before(tmp_path: Path) -> None:
    found = study(tmp_path)[0]
    assert digest(found.config, TEACHER, 3) == "050d3515585c451b"
    assert digest(found.config, "kd", 4) == "a505aa8d73217e1f"
    assert digest(found.config, "sp", 4) == "682453ee1b7b0a18"
    # Of what is not in the loss the temperature says nothing.
    assert len({digest(study(tmp_path, given=kd)[0].config, "sp", 4) for kd in ({}, {"method.temperature": 3.0})}) == 1
    beside = [{"method.kd_weight": 1.0, "method.temperature": temperature} for temperature in (2.0, 3.0)]
    assert digest(study(tmp_path, given=beside[0])[0].config, "kd", 4) == "a505aa8d73217e1f"
    assert len({digest(study(tmp_path, given=given)[0].config, "sp", 4) for given in ({}, *beside)}) == 3
    assert found.name == "a-to-b_slow_94b8aa89"
    for later in ({"accumulate": 2}, {"clip_norm": 1.0}, {"ema": 0.9}, {"patience": 3}):
        config = study(tmp_path, given={f"optim.{name}": value for name, value in later.items()})[0].config
        assert digest(config, "kd", 4) != "a505aa8d73217e1f"
        # A teacher has no average: one serves students with and without.
        assert (digest(config, TEACHER, 3) == "050d3515585c451b") == ("ema" in later)
    shown = study(tmp_path, given={"run.logger": ["csv"]})[0]
    assert (digest(shown.config, "kd", 4), shown.name) == ("a505aa8d73217e1f", found.name)
    few = study(tmp_path, '[settings]\ndata = { classes = ["1", "0"] }')[0].config
    same = study(tmp_path, '[settings]\ndata = { classes = ["0", "1"] }')[0].config
    assert digest(few, "kd", 0) == digest(same, "kd", 0) != digest(study(tmp_path, "")[0].config, "kd", 0)
