"""Which terms and sizes are measured."""

from cid.bench import plan


def test_sizes_that_may_be_left_out() -> None:
    assert plan.parse("B64-Ds128-Dt256-C100") == plan.parse("64x128x256x100") == (64, 128, 256, 100)
    assert plan.chosen(["class"], [(6, 5)], None) == plan.chosen(["class"], [(6, 5, 5)], None)
    assert plan.chosen(["marginal"], [(6, 5)], None) == [("marginal", (6, 5, 128))]
    for preset in plan.PRESET_NAMES:
        for name, size in plan.chosen((), (), preset):
            assert len(size) == plan.KINDS[name].ranks[-1]
