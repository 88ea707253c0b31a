"""Reads the "python version" of CIFAR without running anything that its pickle asks for.

A pickle names the functions that rebuild its objects. Here only stand-ins can be named: they record what NumPy would
have been called with, and `_Array.build` alone makes an array from it, of bytes, after checking. So a file from
anywhere can at worst be refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Type:
    """Stands for `numpy.dtype`: keeps the name of the type, ignores the rest."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for `numpy.ndarray`: keeps shape, type and bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def build(self) -> NDArray[np.uint8]:
        """The array of bytes that was recorded."""
        try:
            _, shape, kind, fortran, raw = self.state
            if kind.code not in ("u1", "|u1") or fortran or not isinstance(raw, bytes):
                raise ValueError("an array that is not of bytes in C order")
            return np.frombuffer(raw, np.uint8).reshape(shape)
        except (TypeError, AttributeError) as error:
            raise ValueError("an array in an unknown form") from error


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, kind, order != "C", bytes(raw))
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as pickles of protocol 2 hold them."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("text in an unexpected encoding")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    # Old and new NumPy name the module differently; protocol 5 uses _frombuffer.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only a stand-in is ever found."""
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed") from None


def load_batch(raw: bytes) -> dict[str, Any]:
    """The dictionary in a CIFAR batch: keys as text, arrays of bytes as NumPy's.

    Raises:
        ValueError: `raw` is something else.
    """
    try:
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    # A damaged pickle can raise nearly anything from the bytes it is misread as.
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(batch, dict):
        raise ValueError(f"it holds {type(batch).__name__}, no dict")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): (
            value.build() if isinstance(value, _Array) else value
        )
        for key, value in batch.items()
    }
