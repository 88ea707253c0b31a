"""The examples: what cid adds to a loop, and that both run."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PAIRS = {
    "plain": [],
    "lightning_module": ["lightning"],
    "hf_trainer": ["transformers", "accelerate"],
    "timm_models": ["timm"],
}
END = "--- end of an example\n"
RUN_ALL = f"""
import runpy, sys
for script in sys.argv[1:]:
    runpy.run_path(script, run_name="__main__")
    print({END!r}, end="")
"""


def difference(name: str) -> list[str]:
    """The lines that differ, as `diff` marks them."""
    before, after = (
        (EXAMPLES / f"{name}{ending}.py").read_text(encoding="utf-8").splitlines() for ending in ("", "_cid")
    )
    return [line for line in list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:] if line[0] in "+-"]


def test_every_example_is_here() -> None:
    assert {path.stem.removesuffix("_cid") for path in EXAMPLES.glob("*.py")} == {*PAIRS, "digits"}


@pytest.mark.parametrize("name", PAIRS)
def test_five_lines_at_most(name: str) -> None:
    """A changed line counts once, among those that came."""
    lines = difference(name)
    came, gone = ([line for line in lines if line[0] == sign] for sign in "+-")
    assert 1 <= len(came) <= 5
    assert len(gone) < len(came)


@pytest.mark.parametrize("name", PAIRS)
def test_the_page_shows_the_difference(name: str) -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```diff\n(.*?)\n```", page, re.DOTALL)
    assert "\n".join(difference(name)) in blocks


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each example says; all ran in one process, as imports take longer than they do."""
    there = [name for name, needed in PAIRS.items() if all(map(importlib.util.find_spec, needed))]
    scripts = [f"{name}{ending}" for name in there for ending in ("", "_cid")]
    path = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *(str(EXAMPLES / f"{script}.py") for script in scripts)],
        cwd=tmp_path_factory.mktemp("examples"),
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(zip(scripts, ran.stdout.split(END)[:-1], strict=True))


@pytest.mark.parametrize("name", PAIRS)
def test_both_run(name: str, outputs: dict[str, str]) -> None:
    for package in PAIRS[name]:
        pytest.importorskip(package, reason=f"needs an extra: pip install {package}")
    for output in (outputs[name], outputs[f"{name}_cid"]):
        assert float(re.findall(r"accuracy (0\.\d+)\n", output)[-1]) > 0.6, output


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell, as in a fresh kernel, and its outputs were left out of the repository."""
    notebook = json.loads((EXAMPLES / "distill.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    kernel: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), kernel)
    result = kernel["result"]
    assert [network.method for network in result.networks] == ["teacher", "labels", "kd", "cid"]
    assert min(network.test_accuracy for network in result.networks) > 0.5
    assert len(kernel["axes"].lines) == len(result.networks)
    assert kernel["probabilities"].shape == (5, 10)
    kernel["plt"].close("all")
