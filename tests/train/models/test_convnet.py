import pytest
import torch

from cid.train.models import InputSpec, build_model, count_parameters


@pytest.mark.parametrize(("width", "channels", "classes"), [(3, 3, 10), (16, 1, 7)])
def test_parameters_by_hand(width: int, channels: int, classes: int) -> None:
    model = build_model(f"convnet-{width}", InputSpec(channels, (12, 12), classes))
    convolutions = 9 * (channels * width + width * 2 * width + 2 * width * 4 * width)
    scales_and_shifts = 2 * (width + 2 * width + 4 * width)
    assert count_parameters(model) == convolutions + scales_and_shifts + (4 * width + 1) * classes


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 13), (32, 32)])
def test_it_looks_at_the_whole_image_before_it_halves_it(size: tuple[int, int]) -> None:
    model = build_model("convnet-2", InputSpec(3, size, 5)).eval()
    sizes: list[tuple[int, ...]] = []
    for layer in model.children():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    assert model(torch.zeros(2, 3, *size)).shape == (2, 5)
    halved = [tuple(-(-side // part) for side in size) for part in (1, 2, 4)]  # rounded up
    assert sizes == halved
