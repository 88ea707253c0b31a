"""What a run's folder holds."""

from dataclasses import replace
from pathlib import Path

import pytest

from cid._errors import CheckpointError
from cid.train.files import write_json
from cid.train.folder import Result, WithoutHead, in_words

RESULT = Result("cid-seed0", "cid", 0, 1030, 2.5, 3, 0.5, 0.8, 1.0)


FURTHER = {"unbiased": 0.6}
GROUPS = {"unbiased": {"red": 0.7, "blue": 0.5}}


@pytest.mark.parametrize("own", [None, WithoutHead(700, 0.75, 1.5), WithoutHead(700, 0.75, 1.5, FURTHER, GROUPS)])
def test_a_result_is_read_as_it_was_written(tmp_path: Path, own: WithoutHead | None) -> None:
    result = replace(RESULT, without_head=own, tests=FURTHER, groups=GROUPS)
    write_json(tmp_path / "result.json", result.to_json())
    assert Result.read(tmp_path / "result.json") == result


def test_results_of_before_there_was_more_than_one_row_and_test(tmp_path: Path) -> None:
    content = RESULT.to_json()
    for name in ("without_head", "tests", "groups"):
        del content[name]
    write_json(tmp_path / "result.json", content)
    assert Result.read(tmp_path / "result.json") == RESULT
    write_json(tmp_path / "result.json", {**content, "without_head": {"accuracy": 1}})
    with pytest.raises(CheckpointError, match=r"result\.json: is no result"):
        Result.read(tmp_path / "result.json")


def test_scores_in_words() -> None:
    assert in_words(RESULT) == "accuracy 80.00% (test)"
    assert in_words(replace(RESULT, tests=FURTHER, groups=GROUPS)) == (
        "accuracy 80.00% (test), 60.00% (unbiased), 50.00% (worst group of unbiased)"
    )
