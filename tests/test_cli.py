"""The command line before any training: options, help, versions, missing extras."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from cid import cli
from cid.train.config import settings


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["--version"])
    assert error.value.code == 0
    assert capsys.readouterr().out == f"cid {version('cid-distill')}\n"


@pytest.mark.parametrize("arguments", [[], ["distill", "--epochs", "many"], ["nothing"], ["distill", "--nothing"]])
def test_bad_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert "usage: cid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--methods magic", "--methods: got magic, accepted: one or more, each once, of: labels or kd or cid"),
        (
            "--data nowhere",
            "--data: got 'nowhere', accepted: digits, coloured-digits, mnist, colored-mnist, cifar10",
        ),
        ("--teacher vgg", "--teacher, --student or --ipw-context: got 'vgg', accepted: cnn-W"),
        ("--device tpu", "--device: got 'tpu', accepted: auto, cpu, cuda, cuda:N or mps"),
        ("--device cuda:x", "--device: got 'cuda:x'"),
        ("--epochs 5 --warmup-epochs 5", "--warmup-epochs: got 5, accepted: less than --epochs, here 5"),
        ("--limit 2", "--validation: got"),
        ("--cache-teacher", "--cache-teacher: needs fixed views, accepted: together with --views"),
        ("--rho 0.9", "--rho: got 0.9, accepted: none, but for coloured-digits"),
        ("--data coloured-digits --rho 1.1", "--rho: got 1.1, accepted: a number from 0 to 1"),
        ("--label-noise -1", "--label-noise: got -1.0, accepted: a number from 0 to 1"),
    ],
)
def test_bad_values_are_one_line(tmp_path: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["distill", *option.split(), "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cid: error: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [("--beta", "own", "a number, or auto"), ("--lr", "fast", "a number"), ("--seeds", "1.5", "a whole number")],
)
def test_values_of_another_type(option: str, value: str, accepted: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["distill", option, value])
    assert error.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{option}: got {value!r}, accepted: {accepted}")


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["distill", "--help"])
    text = capsys.readouterr().out
    shown = set(re.findall(r"--[a-z][a-z-]*", text))
    flags = {setting.flag for setting in settings() if setting.flag}
    assert {"--data", "--lr"} < flags
    assert flags | {"--config", "--out", "--resume"} <= shown


@pytest.mark.parametrize("name", ["lightning_fabric", "safetensors", "sklearn", "rich"])
def test_a_missing_extra_says_what_to_install(tmp_path: Path, name: str) -> None:
    program = f"import sys; sys.modules[{name!r}] = None; from cid.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "distill", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f'cid: error: {name} is missing: pip install "cid-distill[train]"\n'
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", ["--help", "--version", "distill --help", "cache --help", "bench --help"])
def test_help_needs_neither_torch_nor_an_extra(arguments: str) -> None:
    program = """
import sys
from cid.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "numpy", "PIL", "lightning_fabric", "matplotlib", "rich", "safetensors", "sklearn", "tomli_w"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program, *arguments.split()], check=True, capture_output=True)
