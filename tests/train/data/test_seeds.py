from cid.train.data import mix_seed


def test_mixed_seeds_differ() -> None:
    assert len({mix_seed(a, b) for a in range(20) for b in range(20)}) == 400
