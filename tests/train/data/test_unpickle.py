import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cid.train.data.unpickle import load_batch


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("pwned"),)


def test_a_pickle_can_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(ValueError, match="not allowed"):
            load_batch(pickle.dumps({b"data": Evil()}, protocol=protocol))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value", [np.zeros(3), np.array([None, "x"]), np.asfortranarray(np.zeros((2, 2), np.uint8)), np.zeros(2, "u1,u1")]
)
def test_only_arrays_of_bytes_are_built(value: Any) -> None:
    with pytest.raises(ValueError, match=r"array|unknown"):
        load_batch(pickle.dumps({b"data": value}, protocol=2))


def test_a_pickle_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="no dict"):
        load_batch(pickle.dumps([1, 2]))
