import pytest

from tests.train.models.counts import CIFAR10, millions


# He et al. 2016, table 6; resnet8, the smallest of the family, is not in it.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.73),
        ("resnet8", 0.08),
    ],
)
def test_parameters_as_published(name: str, published: float) -> None:
    assert millions(name, CIFAR10) == pytest.approx(published, abs=0.011)
