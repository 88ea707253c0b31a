"""What a bag of patches can tell, and what it cannot."""

import pytest
import torch
from torch import Tensor, nn

from cid.train.models import InputSpec, build_model, count_parameters
from tests import draws

SIZES = [(1, 1), (1, 40), (8, 8), (12, 12), (28, 28), (32, 32), (224, 224), (12, 40), (33, 17)]


def patches(size: tuple[int, int], width: int = 3) -> tuple[nn.Module, int, int]:
    """A network in float64 that has seen a batch, and the side and the stride of its patches."""
    model = build_model(f"patches-{width}", InputSpec(3, size, 5)).double()
    model(draws.normal(4, 3, *size, dtype=torch.float64))  # its normalisations are no identities
    first = next(layer for layer in model.children() if isinstance(layer, nn.Conv2d))
    return model.eval(), first.kernel_size[0], first.stride[0]


@pytest.mark.parametrize("size", SIZES)
def test_a_patch_is_an_eighth_of_the_image(size: tuple[int, int]) -> None:
    model, side, stride = patches(size)
    assert abs(side - min(size) / 8) <= 0.5 or side == 1
    assert stride == max(1, side // 2)
    assert model(torch.zeros(2, 3, *size, dtype=torch.float64)).shape == (2, 5)
    # Two layers of 3 features, a scale and a shift of each of both, and the classifier.
    assert count_parameters(model) == 3 * 3 * side**2 + 3 * 3 + 4 * 3 + (3 + 1) * 5


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (8, 30), (1, 40)])
def test_the_order_of_pixels_is_nothing_to_patches_of_one(size: tuple[int, int]) -> None:
    model, side, stride = patches(size)
    assert side == stride == 1
    images = draws.normal(3, 3, *size, dtype=torch.float64)
    order = draws.uniform(size[0] * size[1]).argsort()
    torch.testing.assert_close(model(images.flatten(2)[:, :, order].unflatten(2, size)), model(images))


@pytest.mark.parametrize("size", [(12, 12), (28, 28), (32, 32), (33, 17), (224, 224)])
def test_where_things_lie_is_nothing_to_larger_patches(size: tuple[int, int]) -> None:
    """Things no larger than a patch, so far from each other and from the edge that none shares a patch with another."""
    model, side, _ = patches(size)
    assert side > 1
    rows, columns = (range(side, length - 2 * side + 1, 2 * side) for length in size)
    places = [(row, column) for row in rows for column in columns]
    things = draws.normal(len(places), 3, side, side, dtype=torch.float64)

    def image(order: Tensor) -> Tensor:
        whole = torch.zeros(1, 3, *size, dtype=torch.float64)
        for (row, column), thing in zip(places, things[order], strict=True):
            whole[0, :, row : row + side, column : column + side] = thing
        return whole

    order = torch.arange(len(places))
    one, other = image(order), image(order.roll(1))
    assert not torch.equal(one, other)
    torch.testing.assert_close(model(one), model(other))
    assert not torch.allclose(model(one), model(torch.zeros_like(one)), rtol=0, atol=1e-3)  # what there is, it tells
