"""A saved student as one file for where this package is not: ONNX, torch.export or safetensors."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cid._errors import ConfigError, RunError
from cid._files import write_atomically
from cid.train.data import Normalize
from cid.train.files import separate
from cid.train.folder import RunFolder
from cid.train.networks import Description, folded, read_network, to_json, without_head
from cid.train.ship import EXPORTS

# How far logits may be from PyTorch's, by the largest of them (or 1): another program sums in another order.
TOLERANCE = 1e-4


def export_student(folder: RunFolder, *, to: str, method: str, seed: int | None, head: bool, out: Path | None) -> str:
    """Writes a run's student to one file.

    Args:
        folder: of the run.
        to: a format, of `EXPORTS`.
        method: whose student.
        seed: of which seed; None for the first.
        head: whether a student of method cid predicts with its interventional logits, or with its own.
        out: where to; None for a file in the run folder.

    Returns:
        What was written, for people to read.

    Raises:
        ConfigError: the folder is no run, or the file exists.
        CheckpointError: no such student is there, or it is damaged.
        RunError: PyTorch can't export this network.
        ModuleNotFoundError: the extra is missing.
        OSError: the file can't be written.
    """
    name = folder.students(method, seed)[0].name
    path = out or folder.path / f"{name}{'' if head else '-no-head'}{EXPORTS[to]}"
    if path.exists():
        raise ConfigError(f"--out: got {path}, which exists, accepted: a new file")
    if not path.parent.is_dir():
        raise ConfigError(f"--out: got {path}, accepted: a file in a folder that exists")
    description, network = read_network(folder.weights(name))
    if head:
        network, about = folded(network, description)
    else:
        own = without_head(network)
        network = network if own is None else own
        about = to_json(description, network)
    content = WRITERS[to](network, description, json.dumps(about))
    write_atomically(path, content)
    channels, (height, width) = description.channels, description.size
    return (
        f"{path}: {name}{'' if head else ' without its head'}, {description.model}, {len(content):,} bytes\n"
        f"images: float32 (batch, {channels}, {height}, {width}), values in 0..1; "
        f"logits: float32 (batch, {len(description.classes)})"
    )


def _safetensors(network: nn.Module, description: Description, about: str) -> bytes:
    return safetensors.torch.save(separate(network.state_dict()), {"json": about})


def _torch(network: nn.Module, description: Description, about: str) -> bytes:
    student = _images_to_logits(network, description)
    file = io.BytesIO()
    torch.export.save(_traced(student, description), file, extra_files={"description.json": about})
    file.seek(0)
    _check(torch.export.load(file).module(), student, description)
    return file.getvalue()


def _onnx(network: nn.Module, description: Description, about: str) -> bytes:
    import onnxruntime
    import onnxscript  # noqa: F401  # PyTorch asks for it, but does not say what to install

    student = _images_to_logits(network, description)
    traced = _traced(student, description)
    # Else it warns of operators of torchvision, which no student has, where that is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with _explained(description.model):
        program = torch.onnx.export(
            traced,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=BATCH,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.metadata_props.add(key="json", value=about)
    content: bytes = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _check(lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), student, description)
    return content


# Each takes the network, its description, and that with all else about it as JSON.
WRITERS: dict[str, Callable[[nn.Module, Description, str], bytes]] = {
    "onnx": _onnx,
    "torch": _torch,
    "safetensors": _safetensors,
}


def _images_to_logits(network: nn.Module, description: Description) -> nn.Module:
    """From images in 0..1 to logits, without gradients."""
    whole = nn.Sequential(Normalize(description.preprocessing), network).eval().requires_grad_(False)
    # `torch.export` takes weights that lie channels-last for parts of something larger.
    return whole.to(memory_format=torch.contiguous_format)


BATCH: Any = ({0: torch.export.Dim("batch")},)


def _images(description: Description, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, description.channels, *description.size, generator=generator)


def _traced(student: nn.Module, description: Description) -> torch.export.ExportedProgram:
    """The student as a graph for batches of any size."""
    with _explained(description.model):
        program = torch.export.export(student, (_images(description, 2),), dynamic_shapes=BATCH)
    for node in program.graph.nodes:
        # Paths of this machine have no place in the file.
        node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turns PyTorch's errors into one line; it has an exception for each way in which a network may not be traced."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"{model}: PyTorch can't export it for batches of any size: {reason}") from error


def _check(exported: Callable[[Tensor], Tensor], student: nn.Module, description: Description) -> None:
    """Compares what was exported with the student, on batches of other sizes than the traced one."""
    for count in (1, 5):
        images = _images(description, count)
        expected = student(images)
        difference = float((exported(images) - expected).abs().max())
        accepted = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= accepted:
            raise RunError(
                f"{description.model}: its export differs from it by {difference:.1e}, accepted: up to {accepted:.1e}; "
                "nothing was written"
            )
