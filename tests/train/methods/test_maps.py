"""Which maps of two networks are compared, and the hint of method fitnet."""

import pytest
import torch
from torch import Tensor, nn

from cid._errors import ConfigError
from cid.train.data import Batch
from cid.train.methods import Ingredients, Training
from cid.train.methods._maps import Maps, map_shapes
from cid.train.methods.fitnet import FitNet
from cid.train.models import InputSpec, build_model
from tests import draws

SPEC = InputSpec(3, (16, 16), 4)


def pair(student: str = "cnn-4", teacher: str = "resnet8") -> Ingredients:
    draws.seed(0)
    return Ingredients(build_model(student, SPEC), build_model(teacher, SPEC), SPEC, torch.arange(4))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("cnn-4", {"2": (8, 8), "8": (4, 4)}),
        ("resnet8", {"3": (16, 16), "4": (8, 8), "5": (4, 4)}),
        ("wrn-10-1", {"1": (16, 16), "2": (8, 8), "5": (4, 4)}),
    ],
)
def test_the_last_of_each_size_is_taken(name: str, last: dict[str, tuple[int, int]]) -> None:
    model = build_model(name, SPEC)
    model[0].eval()  # type: ignore[index]  # modes stay as they are
    modes = [module.training for module in model.modules()]
    maps = Maps(Ingredients(model, model, SPEC, torch.arange(4)), (), ())
    assert maps.student_layers == maps.teacher_layers == [*last]
    shapes = map_shapes(model, SPEC)
    assert {layer: tuple(shapes[layer][2:]) for layer in last} == last
    assert [module.training for module in model.modules()] == modes


def test_of_networks_with_more_and_with_fewer_the_last_are_compared_at_the_smaller_size() -> None:
    given = pair()
    maps = Maps(given, (), ())
    assert (maps.student_layers, maps.teacher_layers) == (["2", "8"], ["4", "5"])
    assert maps.channels == [(4, 32), (8, 64)]
    images = draws.normal(2, 3, 16, 16)
    logits, _, pairs = maps(given.student, given.teacher, images)
    assert torch.equal(logits, given.student(images))
    assert [(*one.student.shape, *one.teacher.shape) for one in pairs] == [
        (2, 4, 8, 8, 2, 32, 8, 8),
        (2, 8, 4, 4, 2, 64, 4, 4),
    ]
    assert all(one.student.requires_grad and not one.teacher.requires_grad for one in pairs)
    _, _, (small,) = Maps(given, ("2",), ("3",))(given.student, given.teacher, images)
    assert small.student.shape[2:] == small.teacher.shape[2:] == (8, 8)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((("layer1",), ()), r"^--student-layers: got 'layer1', accepted: layers that yield maps: 0, 1, 2, 3, "),
        ((("2",), ("3", "4")), r"^--teacher-layers: got 2, accepted: as many as --student-layers, 1$"),
        (((), ("9",)), r"^--teacher-layers: got '9', accepted: layers that yield maps: "),
    ],
)
def test_layers_that_are_not_there(layers: tuple[tuple[str, ...], tuple[str, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Maps(pair(), *layers)


def test_networks_without_maps_or_without_a_teacher() -> None:
    given = pair()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    with pytest.raises(ConfigError, match=r"^--student-layers: found no layer that yields maps"):
        Maps(Ingredients(flat, given.teacher, SPEC, torch.arange(4)), (), ())
    with pytest.raises(ConfigError, match=r"^--teacher-cache: got one, accepted: none"):
        Maps(Ingredients(given.student, None, SPEC, torch.arange(4)), (), ())


def test_the_hint_is_the_error_of_the_middle_maps_foretold() -> None:
    given = pair("resnet8", "wrn-10-1")
    training = Training(FitNet(fitnet_beta=3.0), given).double().eval()
    images, target = draws.normal(5, 3, 16, 16, dtype=torch.float64), torch.arange(5) % 4
    output = training(Batch(images, target, torch.arange(5)))
    ours, theirs = images, images
    for layer in given.student[:5]:  # type: ignore[index]
        ours = layer(ours)
    for layer in given.teacher[:3]:  # type: ignore[index]
        theirs = layer(theirs)
    convolution, norm = training.regressor
    # In eval mode, as never trained: means of 0 and variances of 1.
    foretold = torch.einsum("oc,bchw->bohw", convolution.weight[:, :, 0, 0], ours) / (1 + norm.eps) ** 0.5
    hint: Tensor = ((foretold - theirs) ** 2).mean()
    torch.testing.assert_close(output.terms["hint"], hint.detach(), rtol=1e-10, atol=0)
    ce = nn.functional.cross_entropy(given.student(images), target)
    torch.testing.assert_close(output.loss, ce + 3 * hint, rtol=1e-10, atol=0)
