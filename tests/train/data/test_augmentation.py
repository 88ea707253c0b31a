import torch

from cid.train.data.augmentation import shift_and_flip


def test_shift_and_flip_against_a_loop() -> None:
    images = torch.randint(256, (9, 2, 6, 5), dtype=torch.uint8)
    rows, columns = torch.randint(5, (2, 9))
    flips = torch.rand(9) < 0.5
    moved = shift_and_flip(images, 2, rows, columns, flips)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for i in range(9):
        crop = padded[i, :, rows[i] : rows[i] + 6, columns[i] : columns[i] + 5]
        assert torch.equal(moved[i], crop.flip(2) if flips[i] else crop)
