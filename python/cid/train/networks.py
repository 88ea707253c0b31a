"""Trained networks as files: weights in safetensors, and JSON that says how to rebuild and feed them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cid._errors import CheckpointError, ConfigError
from cid.head import FoldedHead, InterventionalHead
from cid.student import InterventionalStudent, with_head
from cid.train.data import Dataset, Preprocessing
from cid.train.files import read_json, read_tensors, write_json, write_tensors
from cid.train.models import InputSpec, bare_model
from cid.train.models.feed import Feed, attach, feed_of
from cid.train.models.hf import config_of

FORMAT = 1


@dataclass(frozen=True)
class Description:
    """How to rebuild a network.

    Attributes:
        model: its name, as `--student` takes it.
        classes: what its outputs stand for.
        channels: of an image.
        size: height and width of an image.
        preprocessing: how image bytes become the network's input.
        feed: what the network does with that before it reads it, if anything.
        config: the configuration of a model of Transformers, which its name alone does not tell.
    """

    model: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    preprocessing: Preprocessing
    feed: Feed | None = None
    config: dict[str, Any] | None = None

    @property
    def spec(self) -> InputSpec:
        """What the network reads and yields."""
        return InputSpec(self.channels, self.size, len(self.classes))


def save_network(path: Path, network: nn.Module, description: Description) -> None:
    """Writes `path` (safetensors) and the JSON beside it.

    Args:
        path: where, ending in `.safetensors`.
        network: what a method's `predictor()` gave.
        description: how to rebuild it.
    """
    # The description first: weights are never without it.
    write_json(path.with_suffix(".json"), to_json(description, network))
    write_tensors(path, network.state_dict())


def to_json(description: Description, network: nn.Module) -> dict[str, Any]:
    """The JSON of a network: its description, and how its interventional head is attached, if it has one."""
    own = asdict(replace(description, feed=feed_of(network), config=config_of(network)))
    content = {"format": FORMAT, **{key: value for key, value in own.items() if value is not None}}
    if (student := interventional(network)) is not None:
        content["intervention"] = {"layer": student.layers, "temperature": student.head.temperature}
    return content


def interventional(network: nn.Module) -> InterventionalStudent | None:
    """The network as a student with an interventional head; None where it has none."""
    return network if isinstance(network, InterventionalStudent) else None


def without_head(network: nn.Module) -> nn.Module | None:
    """The student alone, which predicts with its own logits s; None where the network has no head to be without."""
    student = interventional(network)
    return None if student is None else student.model


def folded(network: nn.Module, description: Description) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the contexts multiplied into its head, if it has one, and the JSON that `read_network` takes."""
    content = to_json(description, network)
    student = interventional(network)
    if student is None:
        return network, content
    content["intervention"]["folded"] = True
    return student.fold(), content


def read_network(path: Path) -> tuple[Description, nn.Module]:
    """A network as it was saved, which takes normalised images, and how it is described.

    Raises:
        CheckpointError: the file or the JSON beside it is missing, damaged, or does not fit.
        ConfigError: the network's name is unknown, or its library is missing.
    """
    tensors, header = read_tensors(path)
    beside = path.with_suffix(".json")
    description, intervention = _description(header, path) if header else read_description(beside)
    network = rebuilt(description)
    try:
        if intervention is not None:
            network = _with_intervention(network, intervention, tensors)
        network.load_state_dict(tensors)
    except (AttributeError, KeyError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit {description.model}: {error}") from error
    return description, network.eval()


def rebuilt(description: Description) -> nn.Module:
    """The network that is described, with fresh weights."""
    spec, feed = description.spec, description.feed
    if feed is None:
        return bare_model(description.model, spec, description.config)
    read = InputSpec(len(feed.scale), feed.size, spec.classes)
    return attach(bare_model(description.model, read, description.config), feed)


def read_network_for(path: Path, data: Dataset) -> nn.Module:
    """A network as `read_network` has it, if it was trained for such data.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit.
        ConfigError: the data is not what the network was trained for.
    """
    described, network = read_network(path)
    here = Description(described.model, data.classes, data.channels, data.size, data.preprocessing)
    if described != replace(here, feed=described.feed, config=described.config):
        raise ConfigError(
            f"{path}: was trained for {len(described.classes)} classes of {described.channels} x {described.size[0]} x "
            f"{described.size[1]} images, and the data here is not that: {len(data.classes)} classes of "
            f"{data.channels} x {data.size[0]} x {data.size[1]}, or of other names or preprocessing (see --data-dir)"
        )
    return network


def read_description(path: Path) -> tuple[Description, dict[str, Any] | None]:
    """What the JSON beside a network says, and how its interventional head is attached, if it has one.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
    """
    return _description(read_json(path), path)


def is_description(path: Path) -> bool:
    """Whether a file is there that describes a network in some format of ours.

    Raises:
        CheckpointError: it is damaged.
    """
    if not path.is_file():
        return False
    content = read_json(path)
    return isinstance(content, dict) and "format" in content


def _description(content: Any, path: Path) -> tuple[Description, dict[str, Any] | None]:
    try:
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path}: has format {content['format']}, accepted: {FORMAT}")
        height, width = content["size"]
        preprocessing, feed = content["preprocessing"], content.get("feed")
        description = Description(
            model=content["model"],
            classes=tuple(content["classes"]),
            channels=content["channels"],
            size=(height, width),
            preprocessing=Preprocessing(
                preprocessing["scale"], tuple(preprocessing["mean"]), tuple(preprocessing["std"])
            ),
            feed=feed and Feed(tuple(feed["scale"]), tuple(feed["shift"]), tuple(feed["size"])),
            config=content.get("config"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is no description of a network: {error!r}") from error
    return description, content.get("intervention")


def _with_intervention(network: nn.Module, how: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The network with a head of the right sizes, folded or not, for the tensors to be loaded into."""
    layers = how["layer"] if isinstance(how["layer"], str) else tuple(how["layer"])
    if how.get("folded"):
        classes, dim = next(value for name, value in tensors.items() if name.endswith(".intervention.weight")).shape
        return with_head(network, layers, FoldedHead(dim, classes, temperature=how["temperature"]))
    context = tensors["context"]
    classes, dim = context.shape
    head = InterventionalHead(dim, classes, temperature=how["temperature"])
    return InterventionalStudent(network, layers, head, context.clone())
