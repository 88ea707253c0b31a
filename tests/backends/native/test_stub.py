"""The stub of the compiled module says what the module has."""

import ast
import inspect
from pathlib import Path

import cid
from cid import _native


def test_the_stub_matches_the_module() -> None:
    stub = ast.parse((Path(cid.__file__).parent / "_native.pyi").read_text())
    declared = {
        f.name: [a.arg for a in (*f.args.args, *filter(None, [f.args.vararg]))]
        for f in stub.body
        if isinstance(f, ast.FunctionDef)
    }
    built = {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(_native).items()
        if callable(function) and not name.startswith("_")
    }
    assert built == declared


def test_build_info() -> None:
    info = _native.build_info()
    assert info["version"] == cid.__version__
    assert info["profile"] in ("release", "debug")
