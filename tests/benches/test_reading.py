"""What is held of images that are read as they are needed; the bench that tells it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benches import reading
from tests.train import fakes

ROOT = Path(__file__).parents[2]
# Of each image the label, its place, its number in the order (8 bytes each), where it is cropped (2 of 8) and whether
# it is mirrored (1, and 4 to draw it): 45. A pixel of its own would be 768 more.
HELD = 64
# What allocators keep of batches in passing: as much as eight of them as float32.
IN_PASSING = 8 * 250 * 16 * 16 * 3 * 4


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    few, many = 20_000, 200_000
    command = [sys.executable, "-m", "benches.reading", "--made", str(few), "--made", str(many), "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    one, other = map(json.loads, done.stdout.splitlines())
    assert (one["made"], other["made"]) == (few, many)
    grown = (other["peak_mib"] - one["peak_mib"]) * 2**20
    assert grown < HELD * (many - few) + IN_PASSING, (one, other)
    if other["worker_peak_mib"] is not None:
        assert (other["worker_peak_mib"] - one["worker_peak_mib"]) * 2**20 < IN_PASSING


def test_rows_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.image_folder(tmp_path / "images", {"train": 20, "test": 2})
    networks = ["--teacher", "cnn-2", "--student", "cnn-2", "--threads", "1", "--batch-size", "8"]
    for workers in ("memory", "0"):
        reading.main([str(tmp_path / "images"), *networks, "--workers", workers, "--row"])
    kept, stored = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert (kept["kept"], kept["workers"], kept["images"]) == ("memory", None, 36)
    assert (stored["kept"], stored["workers"], stored["size"]) == ("files", 0, [10, 8])
    assert stored["read"] > 0
    assert stored["run"] > 0
