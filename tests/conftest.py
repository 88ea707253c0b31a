"""What all tests share."""

import os

import pytest
import torch
from hypothesis import settings

import tests.gpu  # noqa: F401  (before anything imports triton)

os.environ.pop("CID_BACKEND", None)  # read when cid is imported; each test names the backend it means

# Imports and first calls are slow, examples are not: a deadline would only measure the machine.
# Where a failure stops somebody else's work, the examples are the same each time.
settings.register_profile("cid", deadline=None, max_examples=40, derandomize="CI" in os.environ)
settings.load_profile("cid")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers with two threads each on two cores wait for each other more than they compute.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
