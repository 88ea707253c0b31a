"""How the kernels cut their matrices: all the numbers that only a measurement on a GPU can choose.

None has been measured on a GPU yet. `python -m benches.tiles --device cuda` measures a few choices of each and prints
the best as lines for this file.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """For a kernel that goes row by row.

    Attributes:
        tile: The elements of a program that has several short rows.
        per_warp: The elements of a tile, or of a longer row, that each warp has.
        whole: The longest row that a program holds in registers.
        piece: The columns at a time in which it goes through a longer one, which it reads once for each of its loops.
        piece_warps: The warps that do so.
        cluster: Programs that hold one row together, where the compiler can (Triton 3.9 on Hopper). Rows that are held
            are then as many times as long.
    """

    tile: int = 2048
    per_warp: int = 512
    whole: int = 16384
    piece: int = 4096
    piece_warps: int = 8
    cluster: int = 1


@dataclass(frozen=True)
class Class:
    """For the class term.

    Attributes:
        small: Rows and columns of a tile of cosines, of batches of up to 1024: they need the programs.
        large: Likewise, of larger batches: they need the reuse.
        columns: Columns of the gradient that a program computes.
        programs: A row of tiles is split until there are so many programs: two for each multiprocessor.
    """

    small: int = 32
    large: int = 64
    columns: int = 64
    programs: int = 256


@dataclass(frozen=True)
class Block:
    """Rows and columns that a program adds up at once."""

    rows: int
    columns: int


ROWS = {
    "kd-forward": Rows(),
    "kd-reverse": Rows(),
    "kd-js": Rows(whole=8192),  # its registers spill where a program holds 16384 elements of both rows
    "cross-entropy": Rows(),
    "soft-cross-entropy": Rows(),
    "softmax": Rows(),
    "softmax-backward": Rows(),
    "context-weights": Rows(),
    "soft-context-weights": Rows(),
    "sample": Rows(),
    "class": Rows(),
}
"""By the kernel; `class` copies and normalises the rows of the class term."""
CLASS = Class()
CONTEXT = Block(rows=32, columns=128)
COLUMN_SUMS = Block(rows=16, columns=128)
COLUMN_RUN = 256
"""The rows that a program adds up, of a matrix that has many."""
SCALE = 4096
"""The elements of a gradient that a program scales."""
