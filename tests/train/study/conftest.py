"""A study of two settings, and rows of it."""

from pathlib import Path
from typing import Any

import pytest

from cid.train.study.plan import Setting, digest, read_study

STUDY = """
methods = ["labels", "kd", "cid"]
seeds = [0, 1, 2]
[grid.rate]
slow = { optim = { lr = 0.001 } }
fast = { optim = { lr = 0.1 } }
"""


@pytest.fixture
def study(tmp_path: Path) -> list[Setting]:
    file = tmp_path / "study.toml"
    file.write_text(STUDY)
    return read_study(file, {})


def row(setting: Setting, method: str, seed: int, accuracy: float, **tests: float) -> dict[str, Any]:
    key = digest(setting.config, method, seed)
    return {"digest": key, "test_accuracy": accuracy, "tests": tests, "seconds": 600.0}
