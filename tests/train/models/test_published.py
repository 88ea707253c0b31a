"""Models of libraries, by their names, with fresh weights and with published ones."""

import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cid._errors import ConfigError
from cid.train.data import Normalize, Preprocessing
from cid.train.models import InputSpec, build_model
from cid.train.models.feed import feed_of
from cid.train.models.published import Start, class_axes, rows_by_name, start_from_published
from tests import draws
from tests.train import libraries

IMAGENET = Preprocessing(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OTHER = Preprocessing(255.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def start(name: str, classes: tuple[str, ...], folder: Path | None = None, channels: int = 3) -> Start:
    draws.seed(6)
    given = OTHER if channels == 3 else Preprocessing(16.0, (0.2,), (0.3,))
    return start_from_published(name, InputSpec(channels, (32, 32), len(classes)), classes, given, folder=folder)


def test_classes_are_found_by_name() -> None:
    theirs = [("n01", "tench", "Tinca tinca"), ("n02", "crane"), ("n03", "crane"), ("n04", "Great White-Shark")]
    assert rows_by_name(theirs, ["crane", "n03", "great_white shark", "TENCH", "dog"]) == [None, 2, 3, 0, None]
    # What is written as it is goes before what is written alike; of two of ours that are alike neither is theirs.
    assert rows_by_name([("a b",), ("A_B",)], ["A_B", "a b"]) == [1, 0]
    assert rows_by_name([("a b",)], ["A_B", "a-b"]) == [None, None]


@pytest.mark.parametrize("name", ["cnn-2", "resnet8"])
def test_what_has_a_row_for_each_class(name: str) -> None:
    model = build_model(name, InputSpec(3, (8, 8), 4))
    last = [key for key in model.state_dict() if key.startswith(f"{len(model) - 1}.")]  # type: ignore[arg-type]
    before = torch.get_rng_state()
    assert class_axes(name, InputSpec(3, (8, 8), 4)) == dict.fromkeys(last, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    folder = libraries.timm_folder(tmp_path / "files")
    found = start("timm:test_resnet", ("goldfish", "my cat", "n01440764"), folder)
    assert found.new == ("my cat",)
    assert found.said == (
        "timm:test_resnet: published weights; of its 1000 classes 2 of the data's 3 are found by name (goldfish is its "
        "'n01443537', n01440764 is its 'n01440764'); new in its classifying layer: my cat"
    )
    whole = timm.create_model(
        "test_resnet", pretrained=True, pretrained_cfg_overlay={"file": str(next(folder.iterdir()))}
    )
    images = draws.uniform(2, 3, 32, 32)
    expected = whole.eval()((images - 0.5) / 0.5)  # as this one is published
    yields = found.network.eval()(Normalize(OTHER)(images))
    torch.testing.assert_close(yields[:, [0, 2]], expected[:, [1, 0]], rtol=1e-4, atol=1e-4)


def test_torchvision_of_a_file_on_grey_images(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    folder = libraries.torchvision_folder(tmp_path / "files")
    found = start("torchvision:shufflenet_v2_x0_5", ("Tench", "hen"), folder, channels=1)
    assert found.new == ()
    whole = models.shufflenet_v2_x0_5()
    whole.load_state_dict(torch.load(next(folder.iterdir()), weights_only=True))
    images = draws.uniform(2, 1, 32, 32)
    expected = whole.eval()(Normalize(IMAGENET)(images.expand(-1, 3, -1, -1)))
    yields = found.network.eval()((images - 0.2) / 0.3)
    torch.testing.assert_close(yields, expected[:, [0, 8]], rtol=1e-4, atol=1e-4)


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_is_run_of_a_file_for_torchvision(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    torch.save({"fc.weight": Code(tmp_path / "run")}, tmp_path / "resnet18-f37072fd.pth")
    with pytest.raises(ConfigError, match=r"can't be had \(.*f37072fd\.pth: holds more than tensors and plain values"):
        start("torchvision:resnet18", ("a", "b"), tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["densenet121", "googlenet"])
def test_files_of_torchvision_as_they_were_published(tmp_path: Path, name: str) -> None:
    """Some with other names of tensors, some with a second classifier."""
    models = pytest.importorskip("torchvision.models")
    more = {"init_weights": False} if name == "googlenet" else {}
    state = models.get_model(name, weights=None, **more).state_dict()
    counted = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in counted.items()}
    url = models.get_model_weights(name).DEFAULT.url
    torch.save(old, tmp_path / url.rpartition("/")[2])
    found = start(f"torchvision:{name}", ("tench", "hen"), tmp_path)
    assert found.new == ()
    key = next(iter(counted))
    assert torch.equal(found.network.state_dict()[key], state[key])


def test_transformers_of_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = libraries.hf_folder(tmp_path / "vit", {0: "cat, a pet", 1: "dog"})
    found = start(f"hf:{folder}", ("bird", "Cat"))
    assert found.new == ("bird",)
    whole = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    images = draws.uniform(2, 3, 32, 32)
    read = nn.functional.interpolate(images, (24, 24), mode="bilinear", antialias=True)
    expected = whole(Normalize(Preprocessing(1.0, libraries.MEAN, libraries.STD))(read)).logits
    yields = found.network.eval()(Normalize(OTHER)(images))
    torch.testing.assert_close(yields[:, 1], expected[:, 0], rtol=1e-4, atol=1e-4)


def test_a_body_that_was_published_alone_gets_a_classifying_layer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = libraries.hf_folder(tmp_path / "vit", {0: "cat", 1: "dog"})
    transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(folder)
    found = start(f"hf:{folder}", ("cat", "dog"))
    assert found.new == ("cat", "dog")


def test_fresh_ones_of_transformers_come_from_the_seed_and_read_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = libraries.hf_folder(tmp_path / "vit", {0: "cat", 1: "dog"})
    (folder / "model.safetensors").unlink()
    networks = []
    for _ in range(2):
        draws.seed(1)
        networks.append(build_model(f"hf:{folder}", InputSpec(3, (24, 24), 5)))
    one, other = networks
    assert feed_of(one) is None
    assert one.training
    assert one(torch.zeros(2, 3, 24, 24)).shape == (2, 5)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def unreachable(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("Name or service not known")


def unexpected(*_: Any, **__: Any) -> None:
    raise KeyError("what no one expects")


def test_where_nothing_can_be_downloaded_it_says_what_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    serves = "Where nothing can be downloaded, --pretrained-dir takes a folder .*--teacher-checkpoint a file of weights"
    with pytest.raises(ConfigError, match=rf"'torchvision:resnet18' can't be had \(.*not known.*\)\. {serves}"):
        start("torchvision:resnet18", ("a", "b"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unexpected)
    with pytest.raises(ConfigError, match=r"can't be had \('what no one expects'\)"):
        start("torchvision:resnet18", ("a", "b"))
    with pytest.raises(ConfigError, match=r"can't be had \(.* has no resnet18-f37072fd.pth\)"):
        start("torchvision:resnet18", ("a", "b"), tmp_path)


def test_timm_without_its_file(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"can't be had \(.* has none of test_resnet.r160_in1k.safetensors, "):
        start("timm:test_resnet", ("a", "b"), tmp_path)


@pytest.mark.parametrize(
    ("name", "library", "message"),
    [
        ("torchvision:resnet19", "torchvision", r"got 'torchvision:resnet19', accepted: .*close: .*resnet18"),
        ("timm:test_resnet.nothing", "timm", r"got 'timm:test_resnet.nothing': Invalid pretrained tag"),
        ("cnn-2", "torch", r"--pretrained: got 'cnn-2', accepted: a network of timm, torchvision or hf"),
    ],
)
def test_what_is_not_published(name: str, library: str, message: str) -> None:
    pytest.importorskip(library)
    with pytest.raises(ConfigError, match=message):
        start(name, ("a", "b"))


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=r"got 'hf:.*', accepted: a folder with the config.json of an image"):
        build_model(f"hf:{tmp_path}", InputSpec(3, (24, 24), 5))
