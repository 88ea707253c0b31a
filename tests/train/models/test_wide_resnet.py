import pytest

from tests.train.models.counts import CIFAR100, millions


# Zagoruyko and Komodakis 2016, and Tian et al. 2020.
@pytest.mark.parametrize(("name", "published"), [("wrn-16-2", 0.70), ("wrn-40-2", 2.26), ("wrn-40-4", 8.97)])
def test_parameters_as_published(name: str, published: float) -> None:
    assert millions(name, CIFAR100) == pytest.approx(published, abs=0.011)
