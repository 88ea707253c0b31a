"""Linear classifiers of representations, on other data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from cid import cli
from cid.train.data import Dataset, Preprocessing, Split
from cid.train.models import InputSpec, build_model
from cid.train.networks import Description
from cid.train.transfer import STRENGTHS, Probe, as_trained, probe
from tests import draws

SPEC = InputSpec(3, (12, 12), 4)
PREPROCESSING = Preprocessing(255.0, (0.4,) * 3, (0.2,) * 3)
DESCRIPTION = Description("cnn-3", tuple("abcd"), 3, (12, 12), PREPROCESSING)


def split(count: int, classes: int = 3) -> Split:
    """Grey images of 9 x 7, in bytes up to 16, brighter with the class."""
    labels = torch.arange(count) % classes
    images = (draws.uniform(count, 1, 9, 7) * 6 + 4 * labels[:, None, None, None]).byte()
    return Split(images, labels)


def data() -> Dataset:
    draws.seed(0)
    return Dataset(
        split(60), split(30), split(45), tuple("xyz"), Preprocessing(16.0, (0.1,), (0.9,)), {}, {"more": split(15)}
    )


def test_images_are_brought_to_what_the_network_was_trained_for() -> None:
    grey = draws.uniform(2, 1, 12, 12)
    assert torch.equal(as_trained(grey, DESCRIPTION), grey.expand(2, 3, 12, 12))
    colours = draws.uniform(2, 3, 24, 6)
    assert as_trained(colours, DESCRIPTION).shape == (2, 3, 12, 12)
    assert torch.equal(as_trained(torch.ones(1, 3, 5, 5), DESCRIPTION), torch.ones(1, 3, 12, 12))
    one = Description("cnn-3", tuple("abcd"), 1, (24, 6), PREPROCESSING)
    torch.testing.assert_close(as_trained(colours, one), colours.mean(1, keepdim=True))


def test_it_is_the_regression_of_what_the_last_layer_reads() -> None:
    other = data()
    draws.seed(1)
    network = build_model("cnn-3", SPEC).eval()
    assert isinstance(network, nn.Sequential)
    result = probe("kd-seed2", "kd", 2, DESCRIPTION, network, other)

    def features(part: Split) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        wide = nn.functional.interpolate(part.images.float() / 16, (12, 12), mode="bilinear", antialias=True)
        with torch.no_grad():
            read = network[:-1]((wide.expand(-1, 3, -1, -1) - 0.4) / 0.2)
        return read.double().numpy()

    train = features(other.train)
    mean, deviation = train.mean(0), train.std(0)
    scores = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000).fit((train - mean) / deviation, other.train.labels)
        of_parts = [
            model.score((features(part) - mean) / deviation, part.labels)
            for part in (other.validation, other.test, other.tests["more"])
        ]
        scores.append(of_parts)
    best = max(scores, key=lambda each: each[0])  # the first of equals, which is the most regular
    # Float32 features of two programs: a sample on the border may change sides.
    assert result.validation_accuracy == pytest.approx(best[0], abs=1.5 / 30)
    assert result.test_accuracy == pytest.approx(best[1], abs=1.5 / 45)
    assert result.tests["more"] == pytest.approx(best[2], abs=1.5 / 15)
    assert (result.name, result.method, result.seed) == ("kd-seed2", "kd", 2)
    assert result.parameters == 3 * (train.shape[1] + 1)


def test_classes_that_are_not_in_every_part() -> None:
    draws.seed(0)
    features = draws.normal(40, 2, dtype=torch.float64).numpy()
    labels = np.where(features[:, 0] > 0, 3, 1)
    fitted = Probe(features, labels, features, labels)
    accuracy, loss = fitted.scores(features, labels)
    assert accuracy > 0.9
    assert 0 < loss < 1
    assert fitted.parameters == 6
    accuracy, loss = fitted.scores(features[:4], np.array([0, 2, 4, 5]))
    assert (accuracy, loss) == (0.0, np.inf)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    tiny = "--limit 120 --limit-test 60 --teacher cnn-3 --student cnn-2 --epochs 2 --seeds 0 1 --methods kd cid"
    assert cli.main(["distill", *tiny.split(), "--device", "cpu", "--out", str(run)]) == 0
    capsys.readouterr()
    assert cli.main(["transfer", str(run), "--to", "coloured-digits", "--rho", "0", "--limit", "200"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Images: 180 to fit to, 20 to choose by, ")
    for name in ("teacher", "kd-seed0", "kd-seed1", "cid-seed0", "cid-seed1"):
        assert f"\n{name}: accuracy " in said
    assert "\ncid - kd: " in said
    assert "which are not trained" in said
    few = "--to digits --classes 3 8 --limit 100 --method kd --seed 0"
    assert cli.main(["transfer", str(run), *few.split()]) == 0
    assert capsys.readouterr().out.startswith("Images: 80 to fit to, ")
    assert cli.main(["transfer", str(run), "--to", "digits", "--method", "labels"]) == 1
    assert "has no saved student of this method" in capsys.readouterr().err
    assert cli.main(["transfer", str(run), "--to", "nothing"]) == 2
    assert "--data: got 'nothing'" in capsys.readouterr().err
