"""A teacher's outputs on disk: what is written is what is read, and nothing else is."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cid.cache import CacheError, CacheLayout, TeacherCache, digest, write_cache
from tests import draws
from tests.disk import fill_up

N, V, D, C = 37, 3, 7, 9
MADE_FROM = {"teacher": "abc", "flip": True, "mean": (0.1, 0.2)}


class Teacher:
    """Outputs by sample and view, in uneven batches; counts the shards that it was asked for."""

    def __init__(self, *, classes: int = C, samples: int = N) -> None:
        generator = torch.Generator().manual_seed(draws.shifted(1))
        self.features = torch.randn(V, samples, D, generator=generator)
        self.logits = 4 * torch.randn(V, samples, classes, generator=generator)
        self.asked: list[tuple[range, int]] = []

    def __call__(self, samples: range, view: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append((samples, view))
        for start in range(samples.start, samples.stop, 4):
            part = slice(start, min(start + 4, samples.stop))
            yield self.features[view, part], self.logits[view, part]


def layout(**options: Any) -> CacheLayout:
    return CacheLayout(
        **{
            "samples": N,
            "views": V,
            "feature_dim": D,
            "num_classes": C,
            "dtype": "float32",
            "shard_size": 10,
            **options,
        }
    )


def write(path: Path, teacher: Teacher | None = None, **options: Any) -> TeacherCache:
    made_from = options.pop("fingerprint", MADE_FROM)
    return write_cache(path, teacher or Teacher(), layout=layout(**options), fingerprint=made_from)


def shards(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.npy"))}


# --- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [1, 10, 37, 1000])
def test_reads_what_was_written(tmp_path: Path, shard_size: int) -> None:
    teacher = Teacher()
    cache = write(tmp_path / "new" / "cache", teacher, shard_size=shard_size)
    assert len(cache) == N
    index = torch.tensor([36, 0, 9, 10, 9, 20, 35])
    for view in range(V):
        for key in (index, index.tolist()):
            features, logits = cache[key, view]
            assert torch.equal(features, teacher.features[view, index])
            assert torch.equal(logits, teacher.logits[view, index])
            assert features.is_contiguous()
            assert logits.is_contiguous()
    features, logits = cache[torch.zeros(0, dtype=torch.int64), 0]
    assert features.shape == (0, D)
    assert logits.shape == (0, C)


def test_half_precision_is_rounding(tmp_path: Path) -> None:
    teacher = Teacher()
    cache = write(tmp_path, teacher, dtype="float16")
    features, logits = cache[range(N), 1]
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(features, teacher.features[1].half().float())
    assert torch.equal(logits, teacher.logits[1].half().float())


def test_files_are_numpys_and_hold_no_objects(tmp_path: Path) -> None:
    cache = write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json",
        *(f"view{view:03}-{number:05}.npy" for view in range(V) for number in range(4)),
    }
    last = np.load(tmp_path / "view002-00003.npy", allow_pickle=False)
    assert last.shape == (7,)
    assert last.dtype.itemsize == cache.layout.sample_bytes == 4 * (D + C)


DESCRIPTORS = Path("/proc/self/fd")


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="no /proc/self/fd to count open files in")
def test_any_number_of_shards_keeps_no_file_open(tmp_path: Path) -> None:
    before = len(list(DESCRIPTORS.iterdir()))
    cache = write(tmp_path, shard_size=2)
    assert len(shards(tmp_path)) == 57
    assert len(list(DESCRIPTORS.iterdir())) == before
    assert cache[[36], 2][0].shape == (1, D)


def test_another_process_maps_the_files_itself(tmp_path: Path) -> None:
    cache = write(tmp_path)
    sent = pickle.dumps(cache)
    assert len(sent) < 400
    assert torch.equal(pickle.loads(sent)[[3], 1][0], cache[[3], 1][0])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (([37], 0), r"^samples: got 37 to 37, accepted: 0 to 36"),
        (([3, -1], 0), r"^samples: got -1 to 3, accepted: 0 to 36"),
        (([0.5], 0), r"^samples: got float64 of shape \(1,\), accepted: whole numbers"),
        ((5, 0), r"^samples: got int64 of shape \(\), accepted: whole numbers"),
        (([0], 3), r"^view: got 3, accepted: 0 to 2"),
        (([0], -1), r"^view: got -1"),
    ],
)
def test_only_what_is_there(tmp_path: Path, key: Any, message: str) -> None:
    cache = write(tmp_path)
    with pytest.raises(IndexError, match=message):
        cache[key]


# --- some of the logits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 3, C - 1])
def test_top_k_keeps_the_softened_belief_in_the_kept_classes(tmp_path: Path, top_k: int) -> None:
    teacher, temperature = Teacher(), 2.5
    cache = write(tmp_path, teacher, top_k=top_k, temperature=temperature)
    _, logits = cache[range(N), 0]
    original = teacher.logits[0]
    kept = original.topk(top_k).indices
    assert torch.equal(logits.gather(1, kept), original.gather(1, kept))
    belief, truth = (logits / temperature).softmax(1), (original / temperature).softmax(1)
    torch.testing.assert_close(belief.gather(1, kept), truth.gather(1, kept))
    others = torch.ones(N, C, dtype=torch.bool).scatter(1, kept, False)
    rest = logits[others].view(N, -1)
    assert torch.equal(rest, rest[:, :1].expand_as(rest))
    # At another temperature the others have too much of it, or too little.
    for other, sign in ((10.0, 1), (0.7, -1)):
        error = (logits / other).softmax(1)[others].view(N, -1).sum(1) - (original / other).softmax(1)[others].view(
            N, -1
        ).sum(1)
        assert bool((sign * error >= -1e-6).all())
        if top_k < C - 1:
            assert bool((sign * error).max() > 1e-3)


def test_top_k_of_very_many_classes(tmp_path: Path) -> None:
    classes = 2**16 + 5
    teacher = Teacher(classes=classes, samples=2)
    teacher.logits[0, 0, -1] = 90.0
    cache = write(tmp_path, teacher, samples=2, views=1, num_classes=classes, top_k=2)
    _, logits = cache[[0], 0]
    assert int(logits.argmax()) == classes - 1
    assert cache.layout.sample_bytes == 4 * D + 2 * 4 + 2 * 4 + 4


# --- going on ------------------------------------------------------------------------------------------------------


def test_an_interrupted_cache_goes_on_where_it_was(tmp_path: Path) -> None:
    class Interrupted(Teacher):
        def __call__(self, samples: range, view: int) -> Iterator[tuple[Tensor, Tensor]]:
            yield from super().__call__(samples, view)
            if len(self.asked) == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", Interrupted())
    done = shards(tmp_path / "cache")
    assert len(done) == 5
    with pytest.raises(CacheError, match="is not finished, 7 shards are missing"):
        TeacherCache(tmp_path / "cache")

    told: list[tuple[int, int]] = []
    teacher = Teacher()
    write_cache(tmp_path / "cache", teacher, layout=layout(), fingerprint=MADE_FROM, progress=lambda *n: told.append(n))
    assert teacher.asked == [
        (range(10 * number, min(10 * number + 10, N)), view)
        for view in range(V)
        for number in range(4)
        if 4 * view + number >= 5
    ]
    assert told == [(number, 12) for number in range(6, 13)]
    write(tmp_path / "whole")
    assert shards(tmp_path / "cache") == shards(tmp_path / "whole")
    assert (tmp_path / "cache/manifest.json").read_bytes() == (tmp_path / "whole/manifest.json").read_bytes()
    teacher = Teacher()
    write(tmp_path / "cache", teacher)
    assert not teacher.asked


def test_a_full_disk_leaves_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fill_up(patch, files=8)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path)
    assert not list(tmp_path.glob(".*"))
    teacher = Teacher()
    write(tmp_path, teacher)
    assert 0 < len(teacher.asked) < 12


# --- what is refused -----------------------------------------------------------------------------------------------


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [damage_byte, damage_end, Path.unlink])
def test_a_damaged_shard_is_refused_and_mended(tmp_path: Path, damage: Any) -> None:
    write(tmp_path)
    whole = shards(tmp_path)
    damage(tmp_path / "view001-00002.npy")
    with pytest.raises(CacheError, match=r"view001-00002\.npy: is damaged"):
        TeacherCache(tmp_path)
    teacher = Teacher()
    write(tmp_path, teacher)
    assert teacher.asked == [(range(20, 30), 1)]
    assert shards(tmp_path) == whole


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"teacher": "abd"}, "teacher: the cache has abc, here abd"),
        ({"flip": False}, "flip: the cache has True, here False"),
        ({"mean": (0.1, 0.3)}, "mean: the cache has [0.1, 0.2], here [0.1, 0.3]"),
        ({"more": 1}, "more: the cache has nothing, here 1"),
        (
            {"teacher": "x" * 64, "flip": 0.5},
            f"teacher: the cache has abc, here {'x' * 12}...; flip: the cache has True",
        ),
    ],
)
def test_another_fingerprint_is_refused_by_name(tmp_path: Path, now: dict[str, Any], message: str) -> None:
    write(tmp_path)
    TeacherCache(tmp_path, expect=MADE_FROM)
    before = shards(tmp_path)
    for attempt in (
        lambda: TeacherCache(tmp_path, expect={**MADE_FROM, **now}),
        lambda: write(tmp_path, fingerprint={**MADE_FROM, **now}),
    ):
        with pytest.raises(CacheError) as error:
            attempt()
        assert f"{tmp_path}: was made from something else: {message}" in str(error.value)
        assert str(error.value).count("the cache has") == len(now)
    assert shards(tmp_path) == before


@pytest.mark.parametrize(
    "other", [{"dtype": "float16"}, {"views": 2}, {"top_k": 2}, {"samples": 36}, {"shard_size": 9}]
)
def test_another_layout_is_refused_by_name(tmp_path: Path, other: dict[str, Any]) -> None:
    write(tmp_path)
    ((name, value),) = other.items()
    with pytest.raises(CacheError, match=f"something else: {name}: the cache has .*, here {value}$"):
        write(tmp_path, **other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "no JSON", "is no manifest of a teacher cache"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2, accepted: 1"),
        (lambda text: text.replace('"samples"', '"simples"'), "is no manifest of a teacher cache"),
        (lambda text: text.replace(f'"feature_dim": {D}', '"feature_dim": 8'), r"has \(10,\) records of"),
        (lambda text: json.dumps({**json.loads(text), "shards": {}}), "12 shards are missing"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(CacheError, match=message):
        TeacherCache(tmp_path)


def test_a_whole_cache_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes of a study come to it at the same time."""
    write(tmp_path)
    monkeypatch.setattr("cid.cache.write_atomically", lambda *_: pytest.fail("written"))
    write(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"is no teacher cache, it has no manifest\.json"):
        TeacherCache(tmp_path)
    (tmp_path / ".manifest.json.tmp").touch()  # left by a kill
    write(tmp_path)
    (tmp_path / "manifest.json").unlink()
    for path in (tmp_path, tmp_path / "view000-00000.npy"):
        with pytest.raises(CacheError, match="exists and is no cache"):
            write(path)


def test_outputs_must_fit(tmp_path: Path) -> None:
    teacher = Teacher()
    teacher.features[1, 23, 4] = 1e5
    write(tmp_path / "float32", teacher)
    with pytest.raises(ValueError, match=r"^outputs: the features of sample 23 in view 1 are not finite, .*float16"):
        write(tmp_path / "float16", teacher, dtype="float16")
    teacher.logits[0, 11, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^outputs: the logits of sample 11 in view 0 are not finite"):
        write(tmp_path / "nan", teacher)
    with pytest.raises(ValueError, match=r"^features: got shape \(4, 7\), accepted: \(B, 8\)"):
        write(tmp_path / "dim", feature_dim=8)
    with pytest.raises(ValueError, match=r"^logits: got shape \(4, 9\), accepted: \(4, 10\)"):
        write(tmp_path / "classes", num_classes=10)
    for count in (9, 11):
        outputs = [(torch.zeros(count, D), torch.zeros(count, C))]
        with pytest.raises(ValueError, match=r"^outputs: view 0 has another number of samples than the 10 asked for"):
            _write_same(tmp_path / str(count), outputs)


def _write_same(path: Path, outputs: list[tuple[Tensor, Tensor]]) -> None:
    write_cache(path, lambda samples, view: outputs, layout=layout(), fingerprint={})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, r"^samples: got 0, accepted: 1 and up"),
        ({"views": 0}, r"^views: got 0"),
        ({"dtype": "bfloat16"}, r"^dtype: got 'bfloat16', accepted: 'float16', 'float32'"),
        ({"top_k": C}, r"^top_k: got 9, accepted: less than the 9 classes"),
        ({"top_k": 0}, r"^top_k: got 0, accepted: 1 and up"),
        ({"temperature": 0.0}, r"^temperature: got 0.0"),
    ],
)
def test_layouts_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout(**options)


def test_a_digest_is_of_names_types_shapes_and_values() -> None:
    value = torch.arange(6.0).view(2, 3)
    one = digest({"a": value, "b": torch.tensor(3)})
    assert one == digest({"b": torch.tensor(3), "a": value.t().contiguous().t()})
    others = [
        {"a": value, "c": torch.tensor(3)},
        {"a": value.view(3, 2), "b": torch.tensor(3)},
        {"a": value.bfloat16(), "b": torch.tensor(3)},
        {"a": value, "b": torch.tensor(4)},
        {"a": value, "b": torch.zeros(0)},
        {"a": value},
    ]
    assert len({one, *map(digest, others)}) == 1 + len(others)
