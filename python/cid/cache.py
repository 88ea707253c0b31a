"""A teacher's outputs on disk: it runs once, and any number of students learn from what it said.

A cache is a folder of shards and a manifest. A shard is a `.npy` file of records, one a sample, which is mapped into
memory: the rows of a random batch are read by one index, and a sample's features and logits lie side by side, on one
page. (From a safetensors file rows come one slice at a time: 6.7 ms for 64 of them, where this takes 0.1.)

The manifest, JSON, has the layout, the SHA-256 of each finished shard, and the fingerprint: what the outputs were made
from. Each file is written whole or not at all, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import cid._checks as check
from cid._files import write_atomically

__all__ = ["CacheError", "CacheLayout", "TeacherCache", "digest", "write_cache"]

FORMAT = 1
MANIFEST = "manifest.json"
DTYPES = {"float16": torch.float16, "float32": torch.float32}

Outputs = Callable[[range, int], Iterable[tuple[Tensor, Tensor]]]


class CacheError(ValueError):
    """A cache that is damaged, not finished, or made from something else; the message says what differs."""


@dataclass(frozen=True, kw_only=True)
class CacheLayout:
    r"""What a cache holds of each sample.

    With `top_k` = K only the K greatest logits are stored, and one number that stands for each of the C - K others:

    .. math:: r = T \log \frac{1}{C - K} \sum_{j \notin \mathrm{top}} e^{q_j / T}

    so that `softmax(q/T)` of the logits as read is exact on the K classes (up to `dtype`), and spreads what they leave
    evenly over the others. It is exact at this T alone: read at a temperature T' > T, the others have too much of the
    belief, as the mean of `exp(q_j/T)` to the power T/T' is at least the mean of `exp(q_j/T')`; at T' < T too little.

    Args:
        samples: N, the number of samples.
        views: V, how many augmented views there are of each sample.
        feature_dim: Dt.
        num_classes: C.
        dtype: `"float16"` or `"float32"`, of features and logits.
        top_k: K, from 1 to C - 1; None stores all logits.
        temperature: T at which the logits read are exact; matters with `top_k` alone.
        shard_size: Samples in a shard; what is lost by a kill is at most one shard.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> CacheLayout(samples=50_000, views=4, feature_dim=128, num_classes=100).sample_bytes
        456
    """

    samples: int
    views: int
    feature_dim: int
    num_classes: int
    dtype: str = "float16"
    top_k: int | None = None
    temperature: float = 4.0
    shard_size: int = 16_384

    def __post_init__(self) -> None:
        for name in ("samples", "views", "feature_dim", "num_classes", "shard_size"):
            check.size(name, getattr(self, name))
        check.choice("dtype", self.dtype, tuple(DTYPES))
        check.temperature(self.temperature)
        if self.top_k is not None:
            check.size("top_k", self.top_k)
            if self.top_k >= self.num_classes:
                raise ValueError(
                    f"top_k: got {self.top_k}, accepted: less than the {self.num_classes} classes (None for all)"
                )

    @property
    def sample_bytes(self) -> int:
        """Bytes on disk of one view of one sample."""
        return self._record.itemsize

    @property
    def _record(self) -> np.dtype[np.void]:
        number = np.dtype(self.dtype).newbyteorder("<")
        features = ("features", number, (self.feature_dim,))
        if self.top_k is None:
            return np.dtype([features, ("logits", number, (self.num_classes,))])
        classes = "<u2" if self.num_classes <= 2**16 else "<u4"
        return np.dtype(
            [features, ("logits", number, (self.top_k,)), ("classes", classes, (self.top_k,)), ("rest", "<f4")]
        )

    def _shards(self) -> Iterator[tuple[str, int, range]]:
        """Each shard's file, view and samples."""
        for view in range(self.views):
            for number, start in enumerate(range(0, self.samples, self.shard_size)):
                part = range(start, min(start + self.shard_size, self.samples))
                yield f"view{view:03}-{number:05}.npy", view, part


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, types, shapes and values, whatever their order in the mapping and their device.

    Example:
        >>> one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> digest(one.state_dict()) == digest(other.state_dict())
        False
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


class TeacherCache:
    """A finished cache, to be read: `cache[samples, view]` yields the teacher's features and logits.

    Every shard is read once and compared with the manifest, so a damaged cache is refused here.

    Args:
        path: The folder that `write_cache` or `cid cache` wrote.
        expect: What it must have been made from: the `fingerprint` that a cache written now would be given.

    Attributes:
        path: The folder.
        layout: What it holds, a `CacheLayout`.
        fingerprint: What it was made from.

    Raises:
        CacheError: The cache is damaged, not finished, or was made from something else than expected.
        OSError: A file can't be read.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> import cid
        >>> images, teacher = torch.randn(50, 20), nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
        >>> def outputs(samples, view):
        ...     for part in images[samples.start : samples.stop].split(16):
        ...         yield cid.teacher_outputs(teacher, part, num_classes=5)
        >>> made_from = {"teacher": digest(teacher.state_dict()), "data": digest({"images": images})}
        >>> layout = CacheLayout(samples=50, views=1, feature_dim=64, num_classes=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_cache(folder, outputs, layout=layout, fingerprint=made_from)
        ...     features, logits = TeacherCache(folder, expect=made_from)[[3, 1, 4], 0]
        >>> features.shape, logits.shape
        (torch.Size([3, 64]), torch.Size([3, 5]))
    """

    def __init__(self, path: str | Path, *, expect: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        manifest = _read_manifest(self.path)
        self.layout = manifest.layout
        self.fingerprint = manifest.fingerprint
        if expect is not None:
            _refuse_other(self.path, self.fingerprint, _plain(expect))
        missing = sum(name not in manifest.shards for name, _, _ in self.layout._shards())
        if missing:
            raise CacheError(
                f"{self.path}: is not finished, {missing} shards are missing; write it again, it goes on where it was"
            )
        self._views: list[list[NDArray[np.void]]] = [[] for _ in range(self.layout.views)]
        for name, view, part in self.layout._shards():
            if not _is_whole(self.path / name, manifest.shards[name]):
                raise CacheError(
                    f"{self.path / name}: is damaged, its SHA-256 is not the manifest's; write the cache again, what "
                    "is whole is kept"
                )
            self._views[view].append(_map(self.path / name, self.layout._record, len(part)))

    def __len__(self) -> int:
        """The number of samples."""
        return self.layout.samples

    def __reduce__(self) -> tuple[type[TeacherCache], tuple[Path]]:
        # A worker of a DataLoader maps the files itself; it is not sent what is in them.
        return TeacherCache, (self.path,)

    def __getitem__(self, key: tuple[Tensor | Sequence[int], int]) -> tuple[Tensor, Tensor]:
        """The teacher's features (B, Dt) and logits (B, C), float32 on the CPU, of B samples in one view.

        Args:
            key: The samples' numbers, a tensor on the CPU or a sequence, and the view's number.

        Raises:
            IndexError: A sample or the view is out of range.
        """
        samples, view = key
        index = np.asarray(samples)
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise IndexError(f"samples: got {index.dtype} of shape {index.shape}, accepted: whole numbers, shape (B,)")
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"samples: got {index.min()} to {index.max()}, accepted: 0 to {len(self) - 1}")
        if not 0 <= view < self.layout.views:
            raise IndexError(f"view: got {view}, accepted: 0 to {self.layout.views - 1}")
        records = np.empty(index.size, self.layout._record)
        numbers, rows = np.divmod(index, self.layout.shard_size)
        for number in set(numbers.tolist()):
            here = numbers == number
            records[here] = self._views[view][number][rows[here]]
        return _float(records["features"]), self._logits(records)

    def _logits(self, records: NDArray[np.void]) -> Tensor:
        logits = _float(records["logits"])
        if self.layout.top_k is None:
            return logits
        rest = _float(records["rest"])[:, None].repeat(1, self.layout.num_classes)
        return rest.scatter_(1, torch.from_numpy(records["classes"].astype(np.int64)), logits)


def write_cache(
    path: str | Path,
    outputs: Outputs,
    *,
    layout: CacheLayout,
    fingerprint: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> TeacherCache:
    """Write a cache, or what is missing of one: after a kill or a full disk, call it again.

    Args:
        path: The folder: a new or an empty one, or that of a cache with this layout and fingerprint.
        outputs: `outputs(samples, view)` yields the teacher's features (B, Dt) and logits (B, C) of batch after batch
            of this range of samples, in order, in this view; see `cid.teacher_outputs`.
        layout: What to store.
        fingerprint: What the outputs depend on, by name, as JSON takes it: `digest`s of the teacher's weights and of
            the data, the settings and the seed of the transform. A cache is read only where all of them are the same.
        progress: Told, after each new shard, how many there are, and how many there will be.

    Returns:
        The cache.

    Raises:
        CacheError: The folder holds something else.
        ValueError: The outputs don't fit the layout, are not finite, or are too large for its type.
        OSError: A file can't be written; the shards that were finished stay.
    """
    path = Path(path)
    made_from = _plain(fingerprint)
    if (path / MANIFEST).is_file():
        found = _read_manifest(path)
        _refuse_other(path, {**found.fingerprint, **asdict(found.layout)}, {**made_from, **asdict(layout)})
        written = found.shards
        shards = {name: sha for name, sha in written.items() if _is_whole(path / name, sha)}
    else:
        # Hidden: what a kill while the manifest was written leaves.
        if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
            raise CacheError(f"{path}: exists and is no cache, accepted: a new folder")
        path.mkdir(parents=True, exist_ok=True)
        written, shards = None, {}
    manifest = _Manifest(made_from, layout, shards)
    if shards != written:  # a whole cache is left as it is: other processes may come to it at the same time
        manifest.write(path)
    every = list(layout._shards())
    for name, view, part in every:
        if name in shards:
            continue
        file = io.BytesIO()
        np.lib.format.write_array(file, _records(outputs(part, view), part, view, layout), allow_pickle=False)
        write_atomically(path / name, file.getbuffer())
        shards[name] = hashlib.sha256(file.getbuffer()).hexdigest()
        manifest.write(path)
        if progress is not None:
            progress(len(shards), len(every))
    return TeacherCache(path)


def _records(batches: Iterable[tuple[Tensor, Tensor]], part: range, view: int, layout: CacheLayout) -> NDArray[np.void]:
    """One shard in memory."""
    records = np.empty(len(part), layout._record)
    done = 0
    for features, logits in batches:
        check.shape("features", check.tensor("features", features), ("B", layout.feature_dim))
        check.shape("logits", check.tensor("logits", logits), (len(features), layout.num_classes))
        here = slice(done, done + len(features))
        if here.stop > len(part):
            break
        for name, value in {"features": features, **_stored_logits(logits.detach().float(), layout)}.items():
            stored = value.detach().to("cpu", DTYPES[layout.dtype] if name in ("features", "logits") else None)
            bad = ~torch.isfinite(stored).reshape(len(stored), -1).all(1)
            if bad.any():
                raise ValueError(
                    f"outputs: the {name} of sample {part[done + int(bad.nonzero()[0])]} in view {view} are not "
                    f"finite, accepted: numbers that {layout.dtype} can hold"
                )
            records[name][here] = stored.numpy()
        done = here.stop
    else:
        if done == len(part):
            return records
    raise ValueError(f"outputs: view {view} has another number of samples than the {len(part)} asked for, {part}")


def _stored_logits(logits: Tensor, layout: CacheLayout) -> dict[str, Tensor]:
    """The fields of a record that stand for the logits; see `CacheLayout`."""
    if layout.top_k is None:
        return {"logits": logits}
    top, classes = logits.topk(layout.top_k)
    others = logits.scatter(1, classes, -math.inf)
    mean = (others / layout.temperature).logsumexp(1) - math.log(layout.num_classes - layout.top_k)
    return {"logits": top, "classes": classes, "rest": layout.temperature * mean}


def _float(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.copy()).float()  # copied out of the records: dense and aligned


def _map(path: Path, record: np.dtype[np.void], count: int) -> NDArray[np.void]:
    """A shard, mapped into memory. Not by `numpy.load`, whose maps keep a descriptor open for each file."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
    except ValueError as error:
        raise CacheError(f"{path}: is no readable .npy file: {error}") from error
    size = start + count * record.itemsize
    if dtype != record or shape != (count,) or path.stat().st_size != size:
        raise CacheError(f"{path}: has {shape} records of {dtype}, expected ({count},) of {record}")
    return torch.from_file(str(path), size=size, dtype=torch.uint8).numpy()[start:].view(record)


def _is_whole(path: Path, sha: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha
    except FileNotFoundError:
        return False


# --- the manifest --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Manifest:
    fingerprint: dict[str, Any]
    layout: CacheLayout
    shards: dict[str, str]

    def write(self, path: Path) -> None:
        content = {"format": FORMAT, **asdict(self)}
        write_atomically(path / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def _read_manifest(path: Path) -> _Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise CacheError(f"{path}: is no teacher cache, it has no {MANIFEST}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] == FORMAT:
            return _Manifest(dict(content["fingerprint"]), CacheLayout(**content["layout"]), dict(content["shards"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{file}: is no manifest of a teacher cache: {error!r}") from error
    raise CacheError(f"{file}: has format {content['format']}, accepted: {FORMAT}")


def _plain(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint as a manifest gives it back: lists for tuples, texts for keys."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(fingerprint)))
    return plain


def _refuse_other(path: Path, cached: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise a `CacheError` that names each entry that differs."""
    differ = [
        f"{name}: the cache has {_short(cached.get(name))}, here {_short(expected.get(name))}"
        for name in dict.fromkeys((*expected, *cached))
        if cached.get(name) != expected.get(name)
    ]
    if differ:
        raise CacheError(f"{path}: was made from something else: {'; '.join(differ)}")


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
