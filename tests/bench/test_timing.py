"""How calls are timed beside each other."""

from cid.bench.timing import MIN_ROUNDS, interleaved


def test_interleaved_gives_each_contender_every_round() -> None:
    rounds: dict[str, list[int]] = {"a": [], "b": []}
    times = interleaved({"a": rounds["a"].append, "b": rounds["b"].append}, seconds=1e-9)
    assert rounds["a"] == rounds["b"] == [0, 1, *range(MIN_ROUNDS)]
    assert times["a"].rounds == MIN_ROUNDS
