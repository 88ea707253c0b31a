"""Class representation: the mean over classes of `||Gt_k - Gs_k||_F^2 / n_k^2`, with `G` the cosines within a class.

The rows are copied in the order of their classes, so that a class is a square on the diagonal of `D = Gt - Gs`, and
only the tiles of `D` that a class touches are computed. Where those are is known to the device alone: it reads the
bounds of its loops. The gradient of the normalised rows F is `-4/n_k^2 D F`, then through the normalisation.

A row is not copied divided by its norm but by the power of two below that: half-precision rows stay as exact as they
were, and go through the matrix units as they are. What is left of the norm, 1 to 2, is divided by after the product.

With a gradient the tiles of D are written out, B x B elements at the most, and a second kernel multiplies them by F,
some of its columns a program. An element of D costs `2 (Ds + Dt)` flops, which computing it anew for each 64 columns
would multiply by Ds / 64; reading it again is 4 bytes for 128 flops.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cid.backends.reference import NORM_FLOOR
from cid.backends.triton import tiles
from cid.backends.triton.grouping import Groups, count_classes, group
from cid.backends.triton.rows import cut, launch

_SCRATCH = 2**26  # elements of D that are kept at once: larger batches go in slabs of rows


def class_(
    student_features: Tensor,
    teacher_features: Tensor,
    target: Tensor,
    ignore_index: int,
    loss: Tensor,
    grad: Tensor | None,
    groups: Groups | None = None,
) -> None:
    """The mean over the classes with two samples or more, and its derivative in the student's features.

    Args:
        student_features: (B, Ds).
        teacher_features: (B, Dt).
        target: Labels, (B,); those that are negative or `ignore_index` are in no class.
        ignore_index: Label of the samples that have none.
        loss: Shape (), written.
        grad: (B, Ds), written; skipped where it is None.
        groups: What `group` makes of `target` and `ignore_index`, where it is known already.
    """
    samples = len(target)
    if samples == 0:
        loss.zero_()
        return
    groups = groups or group(target, ignore_index)
    choice = tiles.CLASS
    side = choice.small if samples <= 1024 else choice.large
    bands = triton.cdiv(samples, side)
    padded = (bands + 1) * side  # a tile of columns begins anywhere
    splits = min(bands, triton.cdiv(choice.programs, bands))

    student, teacher = (_padded_rows(x, padded, choice.columns) for x in (student_features, teacher_features))
    ratios = loss.new_empty(2, padded)
    norms = loss.new_empty(2, padded)
    cuts = [cut(tiles.ROWS["class"], x.shape[1], x.device) for x in (student, teacher)]
    _, rows_a_program, options = max(cuts, key=lambda found: found[0])
    launch(
        _rows_kernel,
        (padded // rows_a_program, 2),
        student_features,
        teacher_features,
        groups.order,
        groups.start,
        groups.end,
        student,
        teacher,
        ratios,
        norms,
        samples,
        padded,
        FLOOR=NORM_FLOOR,
        ROWS=rows_a_program,
        STUDENTS=student_features.shape[1],
        TEACHERS=teacher_features.shape[1],
        STUDENT_STRIDE=student.shape[1],
        TEACHER_STRIDE=teacher.shape[1],
        STUDENT_BLOCK=cuts[0][0],
        TEACHER_BLOCK=cuts[1][0],
        **options,
    )

    losses = loss.new_empty(splits, samples)
    slab, along, differences = bands, None, None
    if grad is not None:
        slab = min(bands, max(_SCRATCH // (padded * side), 1))
        along, differences = torch.empty_like(losses), loss.new_empty(slab * side, padded)
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    for first in range(0, bands, slab):
        count = min(slab, bands - first)
        launch(
            _differences_kernel,
            (count, splits),
            student,
            teacher,
            ratios,
            groups.start,
            groups.end,
            groups.pairs,
            losses,
            along,
            differences,
            first * side,
            samples,
            student.shape[1],
            teacher.shape[1],
            padded,
            len(groups.pairs),
            SIDE=side,
            STEP=128 // student.element_size(),
            PRECISION=precision,
            num_warps=side // 8,
        )
        if grad is None:
            continue
        launch(
            _gradient_kernel,
            (count, student.shape[1] // choice.columns),
            student,
            ratios,
            norms,
            groups.order,
            groups.start,
            groups.end,
            groups.pairs,
            along,
            differences,
            grad,
            first * side,
            samples,
            student.shape[1],
            grad.shape[1],
            padded,
            len(groups.pairs),
            splits,
            FLOOR=NORM_FLOOR,
            SIDE=side,
            COLUMNS=choice.columns,
            PRECISION=precision,
            num_warps=side // 8,
        )
    torch.sum(losses.view(-1), 0, out=loss)


def _padded_rows(features: Tensor, rows: int, columns: int) -> Tensor:
    """Room for rows of features, padded to a multiple of `columns`, in the type that they are multiplied in."""
    # Triton's interpreter would multiply the bits of bfloat16 as integers.
    wide = triton.knobs.runtime.interpret and features.dtype == torch.bfloat16
    width = max(triton.cdiv(features.shape[1], columns), 1) * columns
    return features.new_empty(rows, width, dtype=torch.float32 if wide else features.dtype)


@triton.jit
def _class_of(start_ptr, end_ptr, place, samples):
    """Where the class of each place begins and ends; the same where there is no other sample in it."""
    inside = place < samples
    start = tl.load(start_ptr + place, mask=inside, other=0)
    end = tl.load(end_ptr + place, mask=inside, other=0)
    return start, tl.where(end - start > 1, end, start)


@triton.jit
def _columns_of(start, end, samples):
    """The range of columns in which these rows of D are not 0, from where 16 bytes of a row can be read at once."""
    some = end > start
    first = tl.min(tl.where(some, start, samples), 0)
    return first // 4 * 4, tl.max(tl.where(some, end, 0), 0)


@triton.jit
def _share_of(start, end, pairs_ptr, pair_tiles):
    """What an element of D counts in the loss: 1 over `n_k^2` and the number of classes."""
    count = (end - start).to(tl.float32)
    classes = count_classes(pairs_ptr, pair_tiles, BLOCK=128).to(tl.float32)
    return tl.where(end > start, 1 / (tl.maximum(count * count, 1.0) * classes), 0.0)


@triton.jit
def _power_of_two(x):
    """The power of two at or below `x`, from 2^-126 to 2^126, and its inverse."""
    exponent = x.to(tl.int32, bitcast=True) & 0x7F800000
    exponent = tl.minimum(tl.maximum(exponent, 1 << 23), 253 << 23)
    return exponent.to(tl.float32, bitcast=True), ((254 << 23) - exponent).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["samples"])
def _rows_kernel(
    student_ptr,
    teacher_ptr,
    order_ptr,
    start_ptr,
    end_ptr,
    student_out_ptr,
    teacher_out_ptr,
    ratio_ptr,
    norm_ptr,
    samples,
    padded,
    FLOOR: tl.constexpr,
    ROWS: tl.constexpr,
    STUDENTS: tl.constexpr,
    TEACHERS: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    STUDENT_BLOCK: tl.constexpr,
    TEACHER_BLOCK: tl.constexpr,
):
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start, end = _class_of(start_ptr, end_ptr, place, samples)
    paired = end > start
    sample = tl.load(order_ptr + place, mask=paired, other=0)
    if tl.program_id(1) == 0:
        ratio, norm = _copy_rows(
            student_ptr, student_out_ptr, sample, place, paired, FLOOR, STUDENTS, STUDENT_STRIDE, STUDENT_BLOCK
        )
    else:
        ratio, norm = _copy_rows(
            teacher_ptr, teacher_out_ptr, sample, place, paired, FLOOR, TEACHERS, TEACHER_STRIDE, TEACHER_BLOCK
        )
    at = tl.program_id(1) * padded + place
    tl.store(ratio_ptr + at, ratio)
    tl.store(norm_ptr + at, norm)


@triton.jit
def _copy_rows(
    x_ptr,
    out_ptr,
    sample,
    place,
    paired,
    FLOOR: tl.constexpr,
    COLUMNS: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copies rows to their places, scaled; returns what makes them the normalised ones, and their norms.

    A row without another of its class is not read, and copied as zeros. Where a row fits in a block, the loops have one
    turn, which the compiler unrolls: it reads the row once.
    """
    x_ptr += sample[:, None] * COLUMNS
    out_ptr += place.to(tl.int64)[:, None] * STRIDE
    largest = tl.zeros_like(place).to(tl.float32)
    for first in range(0, COLUMNS, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        x = tl.load(x_ptr + column, mask=paired[:, None] & (column < COLUMNS), other=0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
    # Scaled before squaring, as the square of a number that float32 holds may be one that it does not.
    power, inverse = _power_of_two(largest)
    squares = tl.zeros_like(largest)
    for first in range(0, COLUMNS, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        x = tl.load(x_ptr + column, mask=paired[:, None] & (column < COLUMNS), other=0).to(tl.float32)
        x *= inverse[:, None]
        squares += tl.sum(x * x, 1)
    length = tl.sqrt_rn(squares)
    length_power, length_inverse = _power_of_two(length)
    # A row that is not finite leaves its NaN in the ratio alone, where it can't reach another class.
    finite = length < float("inf")
    for first in range(0, STRIDE, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        x = tl.load(x_ptr + column, mask=paired[:, None] & (column < COLUMNS), other=0).to(tl.float32)
        x = tl.where(finite[:, None], x * inverse[:, None] * length_inverse[:, None], 0.0)
        tl.store(out_ptr + column, x.to(out_ptr.dtype.element_ty), mask=column < STRIDE)
    norm = length * power
    ratio = tl.where(norm < FLOOR, power * length_power / FLOOR, length_power / length)
    return tl.where(finite, ratio, float("nan")), norm


@triton.jit
def _cosines(x_ptr, ratio_ptr, row, column, width, STEP: tl.constexpr, PRECISION: tl.constexpr):
    """The products of some normalised rows with some others."""
    step = tl.arange(0, STEP)
    rows = x_ptr + row.to(tl.int64)[:, None] * width + step[None, :]
    columns = x_ptr + column.to(tl.int64)[None, :] * width + step[:, None]
    total = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for at in range(0, width, STEP):
        total = tl.dot(tl.load(rows + at), tl.load(columns + at), total, input_precision=PRECISION)
    return total * tl.load(ratio_ptr + row)[:, None] * tl.load(ratio_ptr + column)[None, :]


@triton.jit(do_not_specialize=["samples", "pair_tiles"])
def _differences_kernel(
    student_ptr,
    teacher_ptr,
    ratio_ptr,
    start_ptr,
    end_ptr,
    pairs_ptr,
    losses_ptr,
    along_ptr,
    differences_ptr,
    first_row,
    samples,
    students,
    teachers,
    padded,
    pair_tiles,
    SIDE: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of rows of D: their losses, their products with the student's cosines, and themselves."""
    split = tl.program_id(1)
    row_in_slab = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    row = first_row + row_in_slab
    start, end = _class_of(start_ptr, end_ptr, row, samples)
    first, last = _columns_of(start, end, samples)
    squares = tl.zeros((SIDE,), tl.float32)
    along = tl.zeros((SIDE,), tl.float32)
    for at in range(first + split * SIDE, last, tl.num_programs(1) * SIDE):
        column = at + tl.arange(0, SIDE)
        same = (column[None, :] >= start[:, None]) & (column[None, :] < end[:, None])
        cosines = tl.where(same, _cosines(student_ptr, ratio_ptr, row, column, students, STEP, PRECISION), 0.0)
        teacher = _cosines(teacher_ptr, ratio_ptr + padded, row, column, teachers, STEP, PRECISION)
        difference = tl.where(same, teacher - cosines, 0.0)
        squares += tl.sum(difference * difference, 1)
        if differences_ptr is not None:
            along += tl.sum(difference * cosines, 1)
            # They meet the rows as copied, so that these need no second factor.
            kept = tl.where(same, difference * tl.load(ratio_ptr + column)[None, :], 0.0)
            tl.store(differences_ptr + row_in_slab.to(tl.int64)[:, None] * padded + column[None, :], kept)
    at = split * samples + row
    tl.store(losses_ptr + at, squares * _share_of(start, end, pairs_ptr, pair_tiles), mask=row < samples)
    if differences_ptr is not None:
        tl.store(along_ptr + at, along, mask=row < samples)


@triton.jit
def _add_product(total, a, b, PRECISION: tl.constexpr):
    """`total + a b`, for `a` in float32: rounded to the type of `b` in two parts, as one would lose most of it."""
    if b.dtype == tl.float32:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    else:
        high = a.to(b.dtype)
        low = (a - high.to(tl.float32)).to(b.dtype)
        total = tl.dot(high, b, total)
        total = tl.dot(low, b, total)
    return total


@triton.jit(do_not_specialize=["samples", "pair_tiles", "splits"])
def _gradient_kernel(
    student_ptr,
    ratio_ptr,
    norm_ptr,
    order_ptr,
    start_ptr,
    end_ptr,
    pairs_ptr,
    along_ptr,
    differences_ptr,
    grad_ptr,
    first_row,
    samples,
    students,
    grad_columns,
    padded,
    pair_tiles,
    splits,
    FLOOR: tl.constexpr,
    SIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some columns of the gradients of a tile of rows."""
    row_in_slab = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    row = first_row + row_in_slab
    inside = row < samples
    start, end = _class_of(start_ptr, end_ptr, row, samples)
    first, last = _columns_of(start, end, samples)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((SIDE, COLUMNS), tl.float32)
    for at in range(first, last, SIDE):
        other = at + tl.arange(0, SIDE)
        differences = tl.load(differences_ptr + row_in_slab.to(tl.int64)[:, None] * padded + other[None, :])
        features = tl.load(student_ptr + other.to(tl.int64)[:, None] * students + column[None, :])
        total = _add_product(total, differences, features, PRECISION)

    along = tl.zeros((SIDE,), tl.float32)
    for split in range(splits):
        along += tl.load(along_ptr + split * samples + row, mask=inside, other=0)
    norm = tl.load(norm_ptr + row)
    raised = norm < FLOOR  # and so a constant
    own = tl.load(student_ptr + row.to(tl.int64)[:, None] * students + column[None, :]).to(tl.float32)
    total -= tl.where(raised, 0.0, along * tl.load(ratio_ptr + row))[:, None] * own
    slope = -4 * _share_of(start, end, pairs_ptr, pair_tiles) / tl.where(raised, FLOOR, norm)
    gradient = total * slope[:, None]
    sample = tl.load(order_ptr + row, mask=inside, other=0)
    there = inside[:, None] & (column < grad_columns)[None, :]
    tl.store(grad_ptr + sample[:, None] * grad_columns + column[None, :], gradient, mask=there)
