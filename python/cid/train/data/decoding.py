"""Image files as Pillow images, and these as pixels."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cid.train.data.images import Bytes

if TYPE_CHECKING:
    from PIL.Image import Image

# What torchvision's ImageFolder reads.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def decode(file: str | Path | BinaryIO) -> Image:
    """An image of any kind, in three channels of bytes.

    Raises:
        ValueError: it is not there, or no image; the message says why.
        OSError: the system does not let it be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            decoded: Image.Image = _of_bytes(image)
            return decoded
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError("no image that Pillow knows") from error
    # Of a damaged file Pillow's decoders raise whatever they stumble over.
    except Exception as error:
        # The system's errors of opening and reading have a number; they say nothing of the image, if it is there.
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise
        raise ValueError(str(error) or type(error).__name__) from error


def to_pixels(image: Image, size: tuple[int, int] | None = None) -> Bytes:
    """The pixels of an image, (channels, height, width), resized where a size (height, width) is given."""
    from PIL.Image import Resampling

    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Resampling.BILINEAR)
    pixels: Bytes = np.asarray(image).reshape(*image.size[::-1], -1).transpose(2, 0, 1)
    return pixels


def read_image(path: Path, size: tuple[int, int] | None = None, channels: int = 3) -> Bytes:
    """An image of any kind, (channels, height, width), resized where a size (height, width) is given.

    Raises:
        ValueError: it can't be read; the message says why.
    """
    image = decode(path)
    return to_pixels(image.convert("L") if channels == 1 else image, size)


def image_files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The images in a folder and in those below it, in order of name."""
    here = folder.resolve()
    if here in above:  # by a link, which would lead around for ever
        return
    for path in sorted(folder.iterdir()):
        if hidden(path.name):
            continue
        if path.is_dir():
            yield from image_files(path, above | {here})
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path


def hidden(name: str) -> bool:
    """Whether a file or folder is a system's or a program's own: `._a.png`, `.ipynb_checkpoints`."""
    return name.startswith(".")


def _of_bytes(image: Any) -> Any:
    """A Pillow image of any kind in three channels of bytes; transparency is dropped.

    Raises:
        ValueError: its pixels are numbers whose range nobody knows.
    """
    from PIL import Image

    if image.mode[0] in "IF":  # one channel of numbers, which `convert` would cut off at 255
        # Where Pillow reads 16 bits as 32: these formats have no more.
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            raise ValueError(f"its pixels are of Pillow's mode {image.mode}, expected at most 16 bits")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # by a way on which Pillow does not warn of transparency
        image = image.convert("RGBA")
    return image.convert("RGB")
