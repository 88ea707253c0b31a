"""The rows as an aligned table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cid.bench.measure import Row


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its head.
        width: in characters; a longer value pushes the rest of its line to the right.
        cell: from a row; None is shown as "-".
        left: whether values stand at the left.
    """

    title: str
    width: int
    cell: Callable[[Row], str | None]
    left: bool = False


def _time(name: str) -> Callable[[Row], str | None]:
    return lambda row: f"{row['times'][name]['median'] * 1e6:,.1f}" if name in row["times"] else None


def _bandwidth(name: str) -> Callable[[Row], str | None]:
    return lambda row: f"{row['bandwidth'][name] / 1e9:,.0f}"


def _memory(name: str, way: str = "counted") -> Callable[[Row], str | None]:
    def cell(row: Row) -> str | None:
        count = (row["memory"] or {}).get(name, {}).get(way)
        return None if count is None else human_bytes(count)

    return cell


def _error(of: str, part: str) -> Callable[[Row], str | None]:
    def cell(row: Row) -> str | None:
        error = row.get(of, {}).get(part)
        return error if error is None or isinstance(error, str) else f"{error:.1e}"

    return cell


_CASE = (
    Column("term", 15, lambda row: row["term"], left=True),
    Column("size", 17, lambda row: row["size"], left=True),
    Column("type", 8, lambda row: row["dtype"], left=True),
    Column("thr", 3, lambda row: str(row["threads"])),
    # PyTorch's own kernels, behind the reference, know nothing of the tier.
    Column("tier", 8, lambda row: row["simd"] if row.get("backend") != "reference" else "reference"),
)

_BESIDE = (
    Column("floor", 10, lambda row: f"{row['floor']['median'] * 1e6:,.1f}"),
    Column("x floor", 7, lambda row: f"{row['x_floor']['median']:.2f}"),
    Column("speed-up", 8, lambda row: f"{row['speed_up']:.2f}x" if row["speed_up"] else None),
)

TIMES = (
    *_CASE,
    *(Column(name, 11, _time(name)) for name in ("cid", "eager", "compile")),
    *_BESIDE,
    Column("cid mem", 9, _memory("cid")),
    Column("resident", 9, _memory("cid", "resident")),
    Column("eager", 9, _memory("eager")),
    Column("compile", 9, _memory("compile")),
)
"""Medians in microseconds, and peak memory."""

GPU_TIMES = (
    *_CASE[:3],
    Column("backend", 9, lambda row: row["backend"]),
    *(Column(name, 11, _time(name)) for name in ("cid", "eager", "compile", "liger")),
    Column("cid host", 9, lambda row: f"{row['host']['cid'] * 1e6:,.1f}"),
    *_BESIDE,
    Column("GB/s", 7, _bandwidth("cid")),
    Column("copy", 7, _bandwidth("copy")),
    Column("of copy", 7, lambda row: f"{row['bandwidth']['cid'] / row['bandwidth']['copy']:.0%}"),
    Column("cid mem", 9, _memory("cid")),
    *(Column(name, 9, _memory(name)) for name in ("eager", "compile", "liger")),
)
"""Medians on a GPU, beside them the bandwidth, and peak memory."""

ERRORS = (
    *_CASE,
    Column("factor", 7, lambda row: f"{row['factor']:.0e}" if row["factor"] != 1 else "1"),
    Column("cid loss", 9, _error("cid", "loss")),
    Column("eager loss", 10, _error("eager", "loss")),
    Column("cid grad", 9, _error("cid", "gradient")),
    Column("eager grad", 10, _error("eager", "gradient")),
    Column("", 0, lambda row: f"skipped: {row['skipped'].partition(';')[0]}" if "skipped" in row else "", left=True),
)
"""Errors relative to the largest true value."""


def head(columns: Sequence[Column]) -> str:
    """The line above the rows."""
    return _line(columns, [column.title for column in columns])


def line(columns: Sequence[Column], row: Row) -> str:
    """A row as a line."""
    return _line(columns, ["-" if (cell := column.cell(row)) is None else cell for column in columns])


def _line(columns: Sequence[Column], cells: Iterable[str]) -> str:
    aligned = (
        cell.ljust(column.width) if column.left else cell.rjust(column.width)
        for column, cell in zip(columns, cells, strict=True)
    )
    return "  ".join(aligned).rstrip()


def human_bytes(count: int) -> str:
    """A number of bytes, such as "1.5 MiB"."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"


def write_json(path: Path, hardware: dict[str, object], rows: Sequence[Row]) -> None:
    """Writes all that is known, for people to read too."""
    path.write_text(json.dumps({"hardware": hardware, "rows": rows}, indent=1) + "\n", encoding="utf-8")
