import numpy as np
import pytest

from cid.train.data.corruptions import (
    CORRUPTIONS,
    Values,
    brightness,
    contrast,
    corrupted,
    elastic,
    fog,
    frost,
    jpeg,
    pixelate,
    saturate,
    snow,
    spatter,
)
from tests import draws

# What float32 rounds of some sums and products of values up to 2.
ROUNDING = 1e-5


def rng(number: int = 0) -> np.random.Generator:
    return np.random.default_rng((draws.SHIFT, number))


@pytest.fixture
def images() -> Values:
    """Of rough shapes and fine noise."""
    shapes = rng().random((12, 3, 4, 4), np.float32).repeat(8, 2).repeat(8, 3)
    return (0.8 * shapes + 0.2 * rng(1).random((12, 3, 32, 32), np.float32)).astype(np.float32)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_changes_each_image_by_the_generator_alone(name: str, images: Values) -> None:
    before = images.copy()
    found = CORRUPTIONS[name](images, rng())
    assert found.shape == images.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert (abs(found - images).mean((1, 2, 3)) > 0.01).all()
    assert np.array_equal(images, before)
    assert np.array_equal(found, CORRUPTIONS[name](images, rng()))


@pytest.mark.parametrize("name", ["snow", "frost", "fog", "spatter", "elastic"])
def test_what_is_drawn_differs_between_images(name: str) -> None:
    grey = np.linspace(0.3, 0.7, 32, dtype=np.float32) * np.ones((2, 3, 32, 1), np.float32)
    one, other = CORRUPTIONS[name](grey, rng())
    assert abs(one - other).max() > 0.01


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_black_and_white_images_give_finite_numbers(name: str) -> None:
    flat = np.stack([np.zeros((3, 32, 32), np.float32), np.ones((3, 32, 32), np.float32)])
    assert np.isfinite(CORRUPTIONS[name](flat, rng())).all()


def test_snow_whitens(images: Values) -> None:
    assert (snow(images, rng()) >= images - ROUNDING).all()


def test_frost_darkens_what_is_below_the_ice(images: Values) -> None:
    ice = frost(images, rng()) - 0.75 * images
    assert (ice > 0).all()
    assert (ice[:, 0] < ice[:, 2]).all()  # bluish


def test_fog_keeps_the_highest_value_in_bounds(images: Values) -> None:
    found = fog(images, rng())
    assert (found.max((1, 2, 3)) <= images.max((1, 2, 3)) + ROUNDING).all()
    assert (found >= 0).all()


def test_brightness_raises_the_value_and_keeps_the_hue(images: Values) -> None:
    found = brightness(images, rng())
    np.testing.assert_allclose(found.max(1), np.minimum(images.max(1) + 0.2, 1), atol=ROUNDING)
    np.testing.assert_allclose(
        found / found.max(1, keepdims=True), images / images.max(1, keepdims=True), atol=ROUNDING
    )


def test_contrast_keeps_the_mean(images: Values) -> None:
    found = contrast(images, rng())
    np.testing.assert_allclose(found.mean((2, 3)), images.mean((2, 3)), atol=ROUNDING)
    np.testing.assert_allclose(found.std((2, 3)), 0.3 * images.std((2, 3)), atol=ROUNDING)


def test_spatter_leaves_what_is_dry(images: Values) -> None:
    dry = (abs(spatter(images, rng()) - images) < ROUNDING).all(1).mean((1, 2))
    assert ((dry > 0.2) & (dry < 0.98)).all()


def test_elastic_moves_pixels_within_their_range(images: Values) -> None:
    found = elastic(images, rng())
    assert (found <= images.max((2, 3), keepdims=True) + ROUNDING).all()
    assert (found >= images.min((2, 3), keepdims=True) - ROUNDING).all()
    # On a ramp a pixel's value is its place: how far it came from.
    ramp = np.broadcast_to(np.arange(32, dtype=np.float32), (4, 3, 32, 32))
    np.testing.assert_array_less(abs(elastic(ramp, rng()) - ramp), 2.5 + 1e-4)


def test_jpeg_is_near(images: Values) -> None:
    assert abs(jpeg(images, rng()).mean((2, 3)) - images.mean((2, 3))).max() < 0.05


def test_pixelate_has_the_mean_of_each_block(images: Values) -> None:
    found = pixelate(images, rng())
    for row, column in ((0, 1), (1, 0), (1, 1)):
        assert np.array_equal(found[..., ::2, ::2], found[..., row::2, column::2])
    np.testing.assert_allclose(found[0, 0, 4, 6], images[0, 0, 4:6, 6:8].mean(), atol=ROUNDING)


def test_saturate_keeps_the_value_and_leaves_grey(images: Values) -> None:
    found = saturate(images, rng())
    np.testing.assert_allclose(found.max(1), images.max(1), atol=ROUNDING)
    assert (found.min(1) <= images.min(1) + ROUNDING).all()
    assert (found.min(1) >= -ROUNDING).all()
    grey = np.full((1, 3, 32, 32), 0.4, np.float32)
    np.testing.assert_allclose(saturate(grey, rng()), grey, atol=ROUNDING)


def test_each_image_gets_its_own(images: Values) -> None:
    as_bytes = (255 * images).astype(np.uint8)
    chosen = np.arange(12) % 10
    found = corrupted(as_bytes, chosen, rng())
    assert found.dtype == np.uint8
    for label, corrupt in ((4, contrast), (8, pixelate), (9, saturate)):  # which draw nothing
        expected = corrupt(as_bytes[chosen == label] / np.float32(255), rng()).clip(0, 1)
        np.testing.assert_allclose(found[chosen == label], 255 * expected, atol=0.51)
