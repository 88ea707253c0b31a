"""No framework is imported unasked, and one that is missing is named."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "module"), [("lightning", "lightning.pytorch"), ("transformers", "transformers")], ids=["L", "HF"]
)
def test_a_missing_framework_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"cid.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"^cid\.integrations\.{name} needs .*pip install \"cid-distill\[{name}\]\""):
        importlib.import_module(f"cid.integrations.{name}")


def test_no_framework_is_imported_unasked() -> None:
    """What `import cid` brings is PyTorch alone."""
    code = "import sys, cid; print(sorted({'lightning', 'transformers', 'timm', 'accelerate'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
