"""Teachers of files: described ones of a run, and weights of others."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cid._errors import CheckpointError
from cid.train.data import Dataset, Normalize, Preprocessing, Split
from cid.train.models import InputSpec, build_model
from cid.train.models.feed import feed_of
from cid.train.networks import Description, read_network, save_network
from cid.train.teachers import read_teacher
from tests import draws

PREPROCESSING = Preprocessing(255.0, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
OTHER = Preprocessing(16.0, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
IMAGENET = Preprocessing(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLASSES = ("cat", "dog", "horse", "ship")


def dataset(
    classes: tuple[str, ...] = CLASSES, preprocessing: Preprocessing = PREPROCESSING, channels: int = 3
) -> Dataset:
    split = Split(torch.zeros(2, channels, 10, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    return Dataset(split, split, split, classes, preprocessing, {})


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module]:
    draws.seed(7)
    network = build_model("cnn-3", InputSpec(3, (10, 8), 4)).eval()
    path = tmp_path / "teacher.safetensors"
    save_network(path, network, Description("cnn-3", CLASSES, 3, (10, 8), PREPROCESSING))
    return path, network


def images() -> Tensor:
    return draws.uniform(3, 3, 10, 8)


def test_of_the_same_data_it_is_the_same(saved: tuple[Path, nn.Module]) -> None:
    path, network = saved
    start = read_teacher(path, "cnn-3", dataset())
    assert feed_of(start.network) is None
    assert start.new == ()
    x = Normalize(PREPROCESSING)(images())
    assert torch.equal(start.network.eval()(x), network(x))


@pytest.mark.parametrize("classes", [("ship", "cat"), ("dog", "Cat", "ship", "horse")])
def test_classes_are_found_by_name(saved: tuple[Path, nn.Module], classes: tuple[str, ...]) -> None:
    path, network = saved
    start = read_teacher(path, "cnn-3", dataset(classes))
    assert start.said == f"cnn-3: weights of {path}; of its 4 classes {len(classes)} are the data's, by name"
    x = Normalize(PREPROCESSING)(images())
    columns = [CLASSES.index(name.lower()) for name in classes]
    torch.testing.assert_close(start.network.eval()(x), network(x)[:, columns])


def test_it_reads_images_as_it_was_trained_on_them(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, network = saved
    start, x = read_teacher(path, "cnn-3", dataset(preprocessing=OTHER)), images()
    expected = network(Normalize(PREPROCESSING)(x))
    torch.testing.assert_close(start.network.eval()(Normalize(OTHER)(x)), expected)
    # And again, once it is the teacher of a run on these data.
    again = tmp_path / "again" / "teacher.safetensors"
    again.parent.mkdir()
    save_network(again, start.network, Description("cnn-3", CLASSES, 3, (10, 8), OTHER))
    description, loaded = read_network(again)
    torch.testing.assert_close(loaded(Normalize(OTHER)(x)), expected)
    assert description.feed == feed_of(start.network)
    back = read_teacher(again, "cnn-3", dataset()).network.eval()
    torch.testing.assert_close(back(Normalize(PREPROCESSING)(x)), expected)


def test_grey_images_for_one_of_colours(saved: tuple[Path, nn.Module]) -> None:
    path, network = saved
    grey = Preprocessing(16.0, (0.3,), (0.5,))
    start, x = read_teacher(path, "cnn-3", dataset(preprocessing=grey, channels=1)), images()[:, :1]
    expected = network(Normalize(PREPROCESSING)(x.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(start.network.eval()(Normalize(grey)(x)), expected)


def test_what_it_does_not_know_is_refused(saved: tuple[Path, nn.Module]) -> None:
    path, _ = saved
    lacks = r"--teacher-checkpoint: .* knows the classes cat, dog, horse, ship, and not bird, which the data has, too"
    with pytest.raises(CheckpointError, match=lacks):
        read_teacher(path, "cnn-3", dataset(("bird", "cat")))
    start = read_teacher(path, "cnn-3", dataset(("bird", "cat")), new_head=True)
    assert start.new == ("bird",)
    with pytest.raises(CheckpointError, match="is a cnn-3, but --teacher is cnn-4"):
        read_teacher(path, "cnn-4", dataset())
    with pytest.raises(CheckpointError, match="reads images of 3 channels, and the data's have 4"):
        read_teacher(path, "cnn-3", dataset(channels=4))


def test_weights_of_others_are_taken_for_the_datas_classes(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    _, network = saved
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in network.state_dict().items()}}, tmp_path / "x.pt"
    )
    start = read_teacher(tmp_path / "x.pt", "cnn-3", dataset())
    assert start.said.endswith("its classes are taken for the data's, in their order")
    x = Normalize(PREPROCESSING)(images())
    assert torch.equal(start.network.eval()(x), network(x))
    with pytest.raises(CheckpointError, match=r"\(4,\) for \(2,\). It tells 4 classes, and the data has 2: cid"):
        read_teacher(tmp_path / "x.pt", "cnn-3", dataset(("a", "b")))
    start = read_teacher(tmp_path / "x.pt", "cnn-3", dataset(("a", "b")), new_head=True)
    assert start.new == ("a", "b")
    assert torch.equal(start.network.state_dict()["0.weight"], network.state_dict()["0.weight"])


def test_a_librarys_model_reads_images_as_it_is_published(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    draws.seed(8)
    network = models.shufflenet_v2_x0_5(num_classes=4).eval()
    torch.save(network.state_dict(), tmp_path / "x.pth")
    x = images()
    for own, read in ((True, IMAGENET), (False, PREPROCESSING)):
        start = read_teacher(tmp_path / "x.pth", "torchvision:shufflenet_v2_x0_5", dataset(), own_inputs=own)
        assert ("normalised as torchvision:shufflenet_v2_x0_5 is published" in start.said) == own
        yields = start.network.eval()(Normalize(PREPROCESSING)(x))
        torch.testing.assert_close(yields, network(Normalize(read)(x)), rtol=1e-4, atol=1e-4)


def test_brought_to_a_size(saved: tuple[Path, nn.Module]) -> None:
    path, network = saved
    start, x = read_teacher(path, "cnn-3", dataset(), size=20), Normalize(PREPROCESSING)(images())
    larger = nn.functional.interpolate(x, (20, 20), mode="bilinear")
    torch.testing.assert_close(start.network.eval()(x), network(larger))


def test_a_json_of_another_program_is_ignored(saved: tuple[Path, nn.Module]) -> None:
    path, _ = saved
    path.with_suffix(".json").write_text('{"model_type": "resnet"}', encoding="utf-8")
    said = read_teacher(path, "cnn-3", dataset()).said
    assert said.endswith("in their order; teacher.json beside it is not cid's and is ignored")


def test_weights_that_are_not_finite_are_refused(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    _, network = saved
    state = {key: value.clone() for key, value in network.state_dict().items()}
    state["0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"--teacher-checkpoint: .*x\.pt: holds weights that are not finite"):
        read_teacher(tmp_path / "x.pt", "cnn-3", dataset())
