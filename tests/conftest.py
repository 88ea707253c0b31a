"""What all tests share."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import settings

import tests.gpu  # noqa: F401  (before anything imports triton)
from tests import draws

os.environ.pop("CID_BACKEND", None)  # read when cid is imported; each test names the backend it means

# Imports and first calls are slow, examples are not: a deadline would only measure the machine.
# Where a failure stops somebody else's work, the examples are the same each time.
settings.register_profile("cid", deadline=None, max_examples=40, derandomize="CI" in os.environ)
settings.load_profile("cid")

# PyTorch's compiler takes from its cache what it made for other vectors than this run's, and reads and writes beyond
# tensors then: the key does not tell what ATEN_CPU_CAPABILITY allowed (seen in 2.15).
_COMPILED = f"target/inductor/{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parents[1] / _COMPILED))

if "CID_TEST_THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["CID_TEST_THREADS"]))
elif "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers with two threads each on two cores wait for each other more than they compute.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A seed that is given is Hypothesis's too."""
    for item in items if "CID_TEST_SEED" in os.environ else ():
        if isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.obj):
            hypothesis.seed(draws.SHIFT)(item.obj)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    draws.seed(0)
