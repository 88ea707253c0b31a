"""The curves of a run, and their picture."""

from pathlib import Path

from cid.train.results.curves import Curve, curve, plot_curves


def test_curves(tmp_path: Path) -> None:
    lines = [
        {"method": method, "epoch": epoch, "val_accuracy": 0.1 * epoch, "loss": 2.0 - epoch / 10}
        for method in ("teacher", "labels", "cid")
        for epoch in range(4)
        for _ in range(2)
    ]
    plot_curves(lines, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_is_the_mean_and_the_range() -> None:
    lines = [{"method": "cid", "epoch": 1, "loss": 2.0}, {"method": "cid", "epoch": 1, "loss": 4.0}]
    lines += [{"method": "kd", "epoch": 0, "loss": 9.0}, {"method": "cid", "epoch": 0}]
    assert curve(lines, "cid", "loss") == Curve([2], [3.0], [2.0], [4.0])
