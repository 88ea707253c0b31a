"""Common corruptions of images, as a library has them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from cid._errors import ConfigError
from cid.train.data.images import Bytes

STRENGTHS = (1, 2, 3, 4, 5)
SMALLEST = 32  # pixels; of smaller images the library refuses all

# These draw from elsewhere than NumPy's global state.
_SEEDED = ("glass_blur", "impulse_noise")


def corruptions() -> list[str]:
    """The names of the corruptions: the paper's fifteen.

    Raises:
        ModuleNotFoundError: the library is not there.
        ConfigError: it is there, but not what it needs of the system.
    """
    try:
        from imagecorruptions import get_corruption_names
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise ConfigError(f"--corruptions: the library of corruptions can't be imported: {error}") from error
    names: list[str] = get_corruption_names("common")
    return names


def corrupted(images: Bytes, corruption: str, strength: int) -> Bytes:
    """Images with a corruption: the same ones whenever asked.

    Args:
        images: (N, 3, H, W), of 32 x 32 at least, values up to 255.
        corruption: one of `corruptions()`.
        strength: one of `STRENGTHS`.

    Source:
        Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
        2019, by the package imagecorruptions.
    """
    from imagecorruptions import corrupt

    found = np.empty_like(images)
    seeds = np.random.default_rng((zlib.crc32(corruption.encode()), strength)).integers(2**32, size=len(images))
    with _global_state_kept():
        for i, (image, seed) in enumerate(zip(images, seeds.tolist(), strict=True)):
            np.random.seed(seed)
            options = {"seed": seed} if corruption in _SEEDED else {}
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
            found[i] = corrupt(pixels, corruption_name=corruption, severity=strength, **options).transpose(2, 0, 1)
    return found


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Within it NumPy's global random state, from which the library draws, may be set."""
    before = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(before)
