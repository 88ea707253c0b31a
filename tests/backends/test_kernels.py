"""Every layer has the kernels that `cid.backends.kernels` lists, with the same arguments under the same names."""

import inspect

import pytest

import cid
from cid import _native
from cid.backends import kernels

triton = pytest.importorskip("cid.backends.triton.kernels")


def arguments(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", kernels.NAMES)
def test_a_kernel_has_the_same_arguments_everywhere(name: str) -> None:
    expected = list(kernels.signature(name).parameters)
    assert arguments(getattr(_native, name)) == expected
    # One that others call as well may take what they know already.
    assert arguments(getattr(triton, name))[: len(expected)] == expected


def test_no_layer_has_others() -> None:
    own = {"build_info", "use_torch_threads", "run_serially", "plain", "cid_fits"}
    built = {name for name, function in vars(_native).items() if callable(function) and not name.startswith("_")}
    assert built == {*kernels.NAMES} | own
    assert {*triton.__all__} == {*kernels.NAMES, "scale"}


def test_build_info() -> None:
    info = _native.build_info()
    assert info["version"] == cid.__version__
    assert info["profile"] in ("release", "debug")
