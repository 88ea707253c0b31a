from cid.train.results.table import Curve, curve


def test_a_curve_is_the_mean_and_the_range() -> None:
    lines = [{"method": "cid", "epoch": 1, "loss": 2.0}, {"method": "cid", "epoch": 1, "loss": 4.0}]
    lines += [{"method": "kd", "epoch": 0, "loss": 9.0}, {"method": "cid", "epoch": 0}]
    assert curve(lines, "cid", "loss") == Curve([2], [3.0], [2.0], [4.0])
