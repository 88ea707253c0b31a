import pytest

from cid._errors import ConfigError
from cid.train.data import load_dataset
from tests.train.data.reading import config


def test_a_split_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="--validation"):
        load_dataset(config("digits", limit=2))
