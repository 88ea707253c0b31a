"""Weights that others have saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cid._errors import CheckpointError
from cid.train.models import InputSpec, build_model
from cid.train.states import fitted, read_state, without_prefix
from tests import draws


@pytest.fixture
def model() -> nn.Module:
    draws.seed(2)
    return build_model("cnn-2", InputSpec(3, (8, 8), 4))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".ckpt"])
def test_any_usual_file(model: nn.Module, tmp_path: Path, suffix: str) -> None:
    path, state = tmp_path / f"weights{suffix}", model.state_dict()
    if suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    found = read_state(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"epoch": 3, "model": {"state_dict": state}},
        lambda state: {**state, "step": 7},
    ],
    ids=["state_dict", "model", "beside"],
)
def test_within_a_checkpoint(model: nn.Module, tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(wrap(model.state_dict()), path)
    assert read_state(path).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "model._orig_mod.module.", "student.", "module.model."]
)
def test_prefixes_of_wrappers_are_taken_off(model: nn.Module, prefix: str) -> None:
    state = model.state_dict()
    # Lightning saves what else its module has, too.
    found = {**{f"{prefix}{key}": value for key, value in state.items()}, "criterion.weight": torch.ones(4)}
    if prefix in ("", "_orig_mod."):
        del found["criterion.weight"]
    assert fitted(found, state, Path("x.pt"), "cnn-2").keys() == state.keys()


def test_of_a_compiled_part(model: nn.Module) -> None:
    state = {f"module.{key.replace('.', '._orig_mod.', 1)}": value for key, value in model.state_dict().items()}
    assert without_prefix(state, model.state_dict().keys()).keys() == model.state_dict().keys()


def test_old_files_do_not_count_batches(model: nn.Module) -> None:
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert fitted(state, model.state_dict(), Path("x.pt"), "cnn-2").keys() == model.state_dict().keys()


def test_it_says_exactly_what_does_not_fit(model: nn.Module) -> None:
    state = model.state_dict()
    found = {f"module.{key}": value for key, value in state.items() if key != "0.weight"}
    found |= {"module.11.weight": torch.zeros(7, 4), "module.head": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        fitted(found, state, Path("x.pt"), "cnn-2")
    assert str(error.value) == (
        "x.pt does not fit cnn-2: missing (1): 0.weight; unknown (1): head; of another shape (1): "
        "11.weight (7, 4) for (4, 4)"
    )
    with pytest.raises(CheckpointError, match=r"missing \(17\): 0.weight, .* and 9 more; unknown \(1\): other$"):
        fitted({"other": torch.zeros(1)}, state, Path("x.pt"), "cnn-2")


class Code:
    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Code(), "holds more than tensors and plain values"),
        (nn.Linear(2, 2), "holds more than tensors and plain values"),
        ({"epoch": 3}, "holds no weights, accepted: tensors by name, or under 'state_dict'; got epoch"),
        ([torch.zeros(1)], "holds no weights.*got list"),
    ],
    ids=["code", "module", "no weights", "list"],
)
def test_other_files_are_refused(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        read_state(tmp_path / "x.pt")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"", b"PK no zip", b"plain text"])
def test_damaged_files(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt: "):
        read_state(path)


def test_an_unknown_kind_of_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.onnx: accepted: a file that ends in \.safetensors, \.pt, \.pth"):
        read_state(tmp_path / "x.onnx")
    torch.save({"a": torch.ones(2)}, tmp_path / "X.PTH")
    assert read_state(tmp_path / "X.PTH").keys() == {"a"}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.eye(2).to_sparse(), "is torch.sparse_coo"),
        (torch.ones(2, dtype=torch.complex64), "is torch.strided, torch.complex64"),
        (torch.ones(2, device="meta"), "has no values"),
    ],
    ids=["sparse", "complex", "meta"],
)
def test_tensors_that_are_no_weights_are_named(value: torch.Tensor, message: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": value}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=f"b {message}.*, accepted: dense tensors of real numbers"):
        read_state(tmp_path / "x.pt")


@pytest.mark.parametrize("error", [KeyError("x"), AttributeError("x"), AssertionError("x")])
def test_whatever_pytorch_stumbles_over_is_a_message(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", stumble)
    with pytest.raises(CheckpointError, match=r"x\.pt: cannot be read: "):
        read_state(tmp_path / "x.pt")
