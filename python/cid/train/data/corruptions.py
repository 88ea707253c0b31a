"""Ten corruptions of photographs: after the list of Hendrycks and Dietterich, not equal to their published images.

Ours are simple: frost is drawn, not cut from photographs, snow is blurred along straight lines, and pixels are blocks
of two by two. Strengths are near severity 4 of theirs for images of 32 x 32. All take values of 0..1, float32,
(N, 3, H, W), and give such, of which `corrupted` cuts off what is beyond.

Source:
    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cid.train.data.bias import Indices, to_bytes
from cid.train.data.images import Bytes

Values = NDArray[np.float32]


def corrupted(images: Bytes, corruptions: Indices, rng: np.random.Generator) -> Bytes:
    """Each image (N, 3, H, W) with the corruption (N,) of that number in `CORRUPTIONS`."""
    found = np.empty_like(images)
    for number, corrupt in enumerate(CORRUPTIONS.values()):
        chosen = corruptions == number
        found[chosen] = to_bytes(corrupt(images[chosen] / np.float32(255), rng))
    return found


def snow(images: Values, rng: np.random.Generator) -> Values:
    """Flakes, drawn out along one of three directions, over an image that is whiter."""
    count, _, height, width = images.shape
    flakes = rng.normal(0.25, 0.3, (count, height, width)).astype(np.float32)
    flakes[flakes < 0.8] = 0
    fallen = np.empty_like(flakes)
    direction = rng.integers(-1, 2, count)
    for sideways in (-1, 0, 1):
        falling = flakes[direction == sideways]
        fallen[direction == sideways] = sum(np.roll(falling, (step, step * sideways), (1, 2)) for step in range(4)) / 2
    grey: Values = images.mean(1, keepdims=True)
    whiter = 0.8 * images + 0.2 * np.maximum(images, 1.5 * grey + 0.5)
    found: Values = whiter + (fallen + fallen[:, ::-1, ::-1])[:, None]
    return found


def frost(images: Values, rng: np.random.Generator) -> Values:
    """Ridges of ice in bluish white over an image that is darker."""
    ridges = (1 - abs(2 * _clouds(images, rng) - 1)) ** 3
    ice = np.array([0.8, 0.9, 1.0], np.float32)[:, None, None]
    return 0.75 * images + 0.45 * ice * (0.4 + 0.6 * ridges)


def fog(images: Values, rng: np.random.Generator) -> Values:
    """Clouds, after which the brightest pixel is as bright as before."""
    brightest: Values = images.max((1, 2, 3), keepdims=True)
    return (images + _clouds(images, rng)) * brightest / (brightest + 1)


def brightness(images: Values, rng: np.random.Generator) -> Values:
    """The value (of hue, saturation and value) raised by 0.2; black stays black."""
    value: Values = images.max(1, keepdims=True)
    found: Values = images * np.minimum(value + 0.2, 1) / np.maximum(value, 1 / 255)
    return found


def contrast(images: Values, rng: np.random.Generator) -> Values:
    """0.3 of each pixel's distance from its channel's mean."""
    mean: Values = images.mean((2, 3), keepdims=True)
    return mean + 0.3 * (images - mean)


def spatter(images: Values, rng: np.random.Generator) -> Values:
    """Drops of mud."""
    from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

    count, _, height, width = images.shape
    wet = gaussian_filter(rng.normal(size=(count, height, width)).astype(np.float32), (0, 1, 1), mode="wrap")
    mud = gaussian_filter((wet > 0.3).astype(np.float32), (0, 0.5, 0.5), mode="wrap")[:, None]
    brown = np.array([63, 42, 20], np.float32)[:, None, None] / 255
    found: Values = images * (1 - mud) + brown * mud
    return found


def elastic(images: Values, rng: np.random.Generator) -> Values:
    """Pixels moved by up to 2.5, near ones alike."""
    count, channels, height, width = images.shape
    moves = [5 * _between_knots(count, (height, width), 8, rng) - 2.5 for _ in range(2)]
    row = np.clip(np.arange(height, dtype=np.float32)[:, None] + moves[0], 0, height - 1)
    column = np.clip(np.arange(width, dtype=np.float32) + moves[1], 0, width - 1)
    above, left = np.minimum(row.astype(int), height - 2), np.minimum(column.astype(int), width - 2)
    pixels = images.reshape(count, channels, height * width)

    def pixels_at(rows: NDArray[np.int_], columns: NDArray[np.int_]) -> Values:
        index = np.broadcast_to((rows * width + columns).reshape(count, 1, height * width), pixels.shape)
        return np.take_along_axis(pixels, index, 2).reshape(images.shape)

    down, right = ((at - low).astype(np.float32)[:, None] for at, low in ((row, above), (column, left)))
    upper = pixels_at(above, left) * (1 - right) + pixels_at(above, left + 1) * right
    lower = pixels_at(above + 1, left) * (1 - right) + pixels_at(above + 1, left + 1) * right
    found: Values = upper * (1 - down) + lower * down
    return found


def jpeg(images: Values, rng: np.random.Generator) -> Values:
    """What JPEG leaves of an image at quality 50."""
    from PIL import Image

    found = np.empty_like(images)
    for i, image in enumerate(to_bytes(images)):
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "JPEG", quality=50)
        found[i] = np.asarray(Image.open(file), np.float32).transpose(2, 0, 1) / 255
    return found


def pixelate(images: Values, rng: np.random.Generator) -> Values:
    """Blocks of two by two pixels, each its mean."""
    count, channels, height, width = images.shape
    blocks: Values = images.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))
    return blocks.repeat(2, 2).repeat(2, 3)


def saturate(images: Values, rng: np.random.Generator) -> Values:
    """Twice the saturation (of hue, saturation and value) and 0.1; grey stays grey."""
    value: Values = images.max(1, keepdims=True)
    away = value - images  # saturation is the furthest channel's, in parts of the value
    saturation = away.max(1, keepdims=True) / np.maximum(value, 1 / 255)
    found: Values = value - away * np.minimum(2 * saturation + 0.1, 1) / np.maximum(saturation, 1 / 255)
    return found


# In the order of the classes of CIFAR-10 that they go with.
CORRUPTIONS: dict[str, Callable[[Values, np.random.Generator], Values]] = {
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "spatter": spatter,
    "elastic": elastic,
    "jpeg": jpeg,
    "pixelate": pixelate,
    "saturate": saturate,
}


def _clouds(images: Values, rng: np.random.Generator) -> Values:
    """Noise of 0..1 for each image, (N, 1, H, W), each of finer and finer parts half as strong as the one before."""
    count, _, height, width = images.shape
    layers = [_between_knots(count, (height, width), 2**k, rng) / np.float32(2**k) for k in range(1, 5)]
    clouds: Values = sum(layers[1:], layers[0])[:, None]
    low, high = (of(clouds, axis=(2, 3), keepdims=True) for of in (np.min, np.max))
    found: Values = (clouds - low) / (high - low)
    return found


def _between_knots(count: int, size: tuple[int, int], cells: int, rng: np.random.Generator) -> Values:
    """Noise of 0..1, (count, *size): numbers drawn at the corners of cells x cells cells, and linear between them."""
    found: Values = rng.random((count, cells + 1, cells + 1), np.float32)
    for axis, length in enumerate(size, 1):
        place = np.linspace(0, cells, length, endpoint=False, dtype=np.float32)
        low = place.astype(int)
        part = (place % 1).reshape(-1, *[1] * (2 - axis))
        found = found.take(low, axis) * (1 - part) + found.take(low + 1, axis) * part
    return found
