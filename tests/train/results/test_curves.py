"""The curves of a run, and their picture."""

from pathlib import Path

from cid.train.results.curves import plot_curves


def test_curves(tmp_path: Path) -> None:
    lines = [
        {"method": method, "epoch": epoch, "val_accuracy": 0.1 * epoch, "loss": 2.0 - epoch / 10}
        for method in ("teacher", "labels", "cid")
        for epoch in range(4)
        for _ in range(2)
    ]
    plot_curves(lines, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
