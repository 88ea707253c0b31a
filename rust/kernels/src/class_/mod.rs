//! Class representation: the mean over classes of `||Gt - Gs||_F^2 / n^2`, with `G` the cosines within a class.
//!
//! Class by class: its features are normalised, `D = Gt - Gs` is computed a square at a time, below the diagonal
//! alone, and the gradient is `D F`. A class that is a small part of the work is one task from end to end, in memory
//! that stays in the cache of its thread; the rest are cut into tasks themselves, by the same code.

use std::ops::Range;

use fearless_simd::Level;
use fearless_simd::prelude::*;

use crate::dispatch::{self, dispatch};
use crate::par::{self, Chunks};
use crate::simd::{Element, MAX_LANES, Real, SumOfSquares, Vector, load, splat, store};
use crate::{Error, check_labels, check_len, check_shape};

/// The side of a square of `D`: a multiple of those of the two tiles below.
const SIDE: usize = 48;
/// Rows and columns of `D` that are accumulated at once: as many as there are registers for.
const DOT_ROWS: usize = 4;
const DOT_COLUMNS: usize = 3;
/// Rows of `D F` that are accumulated at once, each in two vectors.
const PRODUCT_ROWS: usize = 6;
/// Rows of features are filled up with zeros to a multiple of this, so that no loop over them has a tail.
const PADDING: usize = 2 * MAX_LANES;
/// Features in a dot product before it goes to `f64`: bounds the rounding of wide representations.
const RUN: usize = 512;
/// A row's norm is taken to be at least this.
const SMALLEST_NORM: f64 = 1e-12;
/// A class goes by its features where it has more than this many samples to each, student's and teacher's together:
/// on Zen 3 with AVX2 the two forms meet at 1.5 to 2 (at 2, D = 64: 0.29 ms against 0.36; D = 512: 128 against 246;
/// at 4: 0.88 against 1.4, 277 against 1318). Below it, `D` takes no more than twice the memory of the features.
const TALL: usize = 2;
/// A class is cut into tasks where it is more than one part in so many of the whole work.
const PARTS: usize = 16;

/// The mean over classes of two or more samples of `||Gt_k - Gs_k||_F^2 / n_k^2`, and its derivative in the
/// student's features; 0 if there is no such class.
///
/// # Errors
///
/// Where lengths do not fit, or a label is negative and not `ignore_index`.
pub fn class<E: Element, T: Element<Real = E::Real>>(
    student_features: &[E],
    teacher_features: &[T],
    target: &[i64],
    [students, teachers]: [usize; 2],
    ignore_index: i64,
    loss: &mut E::Real,
    grad: Option<&mut [E]>,
) -> Result<(), Error> {
    let samples = target.len();
    check_shape("student_features", student_features, [samples, students])?;
    check_shape("teacher_features", teacher_features, [samples, teachers])?;
    if let Some(grad) = &grad {
        check_len("grad", grad, student_features.len())?;
    }
    check_labels(target, None, ignore_index)?;
    let level = dispatch::level()?;

    let inputs =
        Inputs { student: student_features, teacher: teacher_features, layout: Layout::new(students, teachers) };
    let mut samples = labelled(target, ignore_index, students, grad);
    let mut classes = classes(&mut samples);
    let share = 1.0 / classes.len() as f64;
    let pairs = |class: &[Sample<E>]| class.len() * class.len();
    let elements = |class: &[Sample<E>]| class.len() * inputs.layout.stride;
    let (all_pairs, all_elements) =
        classes.iter().fold((0, 0), |sum, (class, _)| (sum.0 + pairs(class), sum.1 + elements(class)));
    let is_large = |class: &[Sample<E>]| class.len() > SIDE && pairs(class) * PARTS > all_pairs;

    let mut work = Work::default();
    for (class, loss) in classes.iter_mut().filter(|(class, _)| is_large(class)) {
        *loss = of_class(level, &inputs, class, share, &mut work, elements(class));
    }
    par::for_each(classes.len(), all_elements, Chunks::new(&mut classes, 1), Work::default, |work, _, class| {
        let (class, loss) = &mut class[0];
        if !is_large(class) {
            *loss = of_class(level, &inputs, class, share, work, 0);
        }
    });
    *loss = E::Real::from_f64(classes.iter().fold(0.0, |sum, (_, loss)| sum + loss));
    Ok(())
}

/// A sample with a label.
struct Sample<'a, E> {
    label: i64,
    index: usize,
    grad: Option<&'a mut [E]>,
}

/// The samples that have a label; the gradients of the others are set to 0.
fn labelled<'a, E: Element>(
    target: &[i64],
    ignore_index: i64,
    columns: usize,
    mut grad: Option<&'a mut [E]>,
) -> Vec<Sample<'a, E>> {
    let mut samples = Vec::with_capacity(target.len());
    for (index, &label) in target.iter().enumerate() {
        let grad = grad.as_mut().and_then(|grad| grad.split_off_mut(..columns));
        if label != ignore_index {
            samples.push(Sample { label, index, grad });
        } else if let Some(grad) = grad {
            grad.fill(E::default());
        }
    }
    samples
}

/// The samples that have another of their class, by class, each with room for its loss; the gradients of the others
/// are set to 0.
fn classes<'a, 'b, E: Element>(samples: &'b mut [Sample<'a, E>]) -> Vec<(&'b mut [Sample<'a, E>], f64)> {
    samples.sort_unstable_by_key(|sample| (sample.label, sample.index));
    let mut classes = Vec::new();
    for class in samples.chunk_by_mut(|a, b| a.label == b.label) {
        match class {
            [Sample { grad, .. }] => grad.iter_mut().for_each(|grad| grad.fill(E::default())),
            _ => classes.push((class, 0.0)),
        }
    }
    classes
}

struct Inputs<'a, E, T> {
    student: &'a [E],
    teacher: &'a [T],
    layout: Layout,
}

/// Where the features of a sample stand: the teacher's before the student's.
#[derive(Clone, Copy)]
struct Layout {
    students: usize,
    teachers: usize,
    /// Where the student's begin.
    student: usize,
    /// Where they end.
    end: usize,
    /// From sample to sample: a cache line more, as a power of two would have them compete for places in the cache.
    stride: usize,
}

impl Layout {
    fn new(students: usize, teachers: usize) -> Self {
        let student = teachers.next_multiple_of(PADDING);
        let end = student + students.next_multiple_of(PADDING);
        Self { students, teachers, student, end, stride: end + MAX_LANES }
    }

    /// The numbers of blocks of up to `SIDE` features: the teacher's, which come first, and the student's.
    fn blocks(self) -> [usize; 2] {
        [self.student.div_ceil(SIDE), (self.end - self.student).div_ceil(SIDE)]
    }

    /// Where a block of features stands.
    fn block(self, index: usize) -> Range<usize> {
        let [teachers, _] = self.blocks();
        let (start, end) = if index < teachers {
            (index * SIDE, self.student)
        } else {
            (self.student + (index - teachers) * SIDE, self.end)
        };
        start..end.min(start + SIDE)
    }
}

/// Memory for what is kept of a class: each as long as the largest class so far asked for.
#[derive(Default)]
struct Work<R> {
    /// Normalised features, sample by sample.
    features: Vec<R>,
    /// The norms that the student's had.
    norms: Vec<f64>,
    squares: Squares<R>,
}

/// What is computed of them in squares, below a diagonal alone.
#[derive(Default)]
struct Squares<R> {
    /// Those of `-D` and their mirror images, where [`image`] says.
    differences: Vec<R>,
    /// Those of `U'U`, likewise.
    products: Vec<f64>,
    /// The share of each in the loss.
    losses: Vec<f64>,
    /// Of each row of each square of `-D`, its product with the student's cosines.
    along: Vec<f64>,
}

/// So much of some memory, from a cache line's boundary.
fn at_least<T: Clone + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    const LINE: usize = 64;
    if memory.len() < len + LINE {
        *memory = vec![T::default(); len + LINE];
    }
    let start = memory.as_ptr().align_offset(LINE).min(LINE);
    &mut memory[start..start + len]
}

/// The number of squares on and below the diagonal in so many rows of them: where the next row begins.
fn triangle(rows: usize) -> usize {
    rows * (rows + 1) / 2
}

/// Where a square stands, among those on and below the diagonal and their mirror images.
fn image(row: usize, column: usize) -> usize {
    2 * (triangle(row.max(column)) + row.min(column)) + usize::from(row < column)
}

/// The row and the column of a square, of those on and below the diagonal.
fn place(square: usize) -> [usize; 2] {
    let row = (0..=square).rfind(|&row| triangle(row) <= square).unwrap_or(0);
    [row, square - triangle(row)]
}

/// The share of a class in the loss, and its gradients.
fn of_class<E: Element, T: Element<Real = E::Real>>(
    level: Level,
    inputs: &Inputs<E, T>,
    class: &mut [Sample<E>],
    share: f64,
    work: &mut Work<E::Real>,
    elements: usize,
) -> f64 {
    let layout = inputs.layout;
    let samples = class.len();
    let share = share / (samples * samples) as f64;
    let features = at_least(&mut work.features, samples * layout.stride);
    let norms = at_least(&mut work.norms, samples);
    par::for_each(
        samples.div_ceil(SIDE),
        elements,
        (Chunks::new(class, SIDE), Chunks::new(features, SIDE * layout.stride), Chunks::new(norms, SIDE)),
        || (),
        |(), _, (class, features, norms)| {
            dispatch!(level, simd => normalize(simd, inputs, class, features, norms));
        },
    );
    let is_tall = E::Real::WIDE > 1 && samples > TALL * layout.end;
    let of_features = if is_tall { by_features } else { by_samples };
    share * of_features(level, layout, features, norms, class, share, &mut work.squares, elements)
}

/// Both forms: `||D||_F^2`, and the gradients.
fn by_samples<E: Element>(
    level: Level,
    layout: Layout,
    features: &[E::Real],
    norms: &[f64],
    class: &mut [Sample<E>],
    share: f64,
    work: &mut Squares<E::Real>,
    elements: usize,
) -> f64 {
    let (samples, strips) = (class.len(), class.len().div_ceil(SIDE));
    let squares = triangle(strips);
    let losses = at_least(&mut work.losses, squares);
    let differences = at_least(&mut work.differences, squares * 2 * SIDE * SIDE);
    let along = at_least(&mut work.along, squares * 2 * SIDE);
    par::for_each(
        squares,
        elements,
        (Chunks::new(differences, 2 * SIDE * SIDE), Chunks::new(losses, 1), Chunks::new(along, 2 * SIDE)),
        || vec![E::Real::default(); if strips > 1 { 2 * SIDE * SIDE } else { 0 }],
        |cosines, square, (differences, loss, along)| {
            loss[0] = dispatch!(level, simd => {
                self::differences(simd, layout, features, samples, place(square), cosines, differences, along)
            });
        },
    );
    let loss = losses.iter().fold(0.0, |sum, loss| sum + loss);
    if class[0].grad.is_some() {
        let (differences, along) = (&*differences, &*along);
        par::for_each(
            strips,
            elements,
            Chunks::new(class, SIDE),
            || (),
            |(), strip, class| {
                dispatch!(level, simd => {
                    gradients(simd, layout, features, samples, norms, differences, along, 4.0 * share, strip, class);
                });
            },
        );
    }
    loss
}

/// The same by way of `U'U`, with the teacher's and the student's features side by side in `U`: where there are
/// many samples to a feature.
///
/// With `V` for `U` with the student's features negated, `D = U V'`, and so `||D||_F^2` is the sum of the squares
/// of `U'U`, those of a teacher's feature with a student's counted negative, and `D F` is `V (U'F)`. In both, large
/// numbers cancel where student and teacher agree: everything from `U` on is `f64`.
fn by_features<E: Element>(
    level: Level,
    layout: Layout,
    features: &[E::Real],
    norms: &[f64],
    class: &mut [Sample<E>],
    share: f64,
    work: &mut Squares<E::Real>,
    elements: usize,
) -> f64 {
    let [teachers, students] = layout.blocks();
    let squares = triangle(teachers + students);
    let losses = at_least(&mut work.losses, squares);
    let products = at_least(&mut work.products, squares * 2 * SIDE * SIDE);
    par::for_each(
        squares,
        elements,
        (Chunks::new(products, 2 * SIDE * SIDE), Chunks::new(losses, 1)),
        || vec![0.0; 2 * SIDE * SIDE],
        |panels, square, (products, loss)| {
            loss[0] = dispatch!(level, simd => {
                self::products(simd, layout, features, place(square), panels, products)
            });
        },
    );
    let loss = losses.iter().fold(0.0, |sum, loss| sum + loss);
    if class[0].grad.is_some() {
        let products = &*products;
        par::for_each(
            class.len().div_ceil(SIDE),
            elements,
            Chunks::new(class, SIDE),
            || vec![0.0; SIDE * SIDE * (1 + students)],
            |rows, strip, class| {
                let samples = strip * SIDE..strip * SIDE + class.len();
                let features = &features[samples.start * layout.stride..samples.end * layout.stride];
                dispatch!(level, simd => {
                    gradients_by_features(simd, layout, features, &norms[samples], products, -4.0 * share, rows, class);
                });
            },
        );
    }
    // Rounding must not make it negative.
    if loss < 0.0 { 0.0 } else { loss }
}

/// Copies the rows of some samples, each divided by its norm.
#[inline(always)]
fn normalize<S: Simd, E: Element, T: Element<Real = E::Real>>(
    simd: S,
    inputs: &Inputs<E, T>,
    class: &[Sample<E>],
    features: &mut [E::Real],
    norms: &mut [f64],
) {
    let layout = inputs.layout;
    // All of them before there is anything to wait for, as they come from anywhere in memory.
    for (sample, row) in class.iter().zip(features.chunks_exact_mut(layout.stride)) {
        let (teacher, student) = row[..layout.end].split_at_mut(layout.student);
        let [students, teachers] = [layout.students, layout.teachers];
        copy(simd, &inputs.teacher[sample.index * teachers..][..teachers], teacher);
        copy(simd, &inputs.student[sample.index * students..][..students], student);
    }
    for (row, norm) in features.chunks_exact_mut(layout.stride).zip(norms) {
        let (teacher, student) = row[..layout.end].split_at_mut(layout.student);
        divide_by_norm(simd, teacher);
        *norm = divide_by_norm(simd, student);
    }
}

/// Copies a row, filled up with zeros.
#[inline(always)]
fn copy<S: Simd, E: Element>(simd: S, from: &[E], to: &mut [E::Real]) {
    let lanes = Vector::<S, E>::LEN;
    let (to, rest) = to.split_at_mut(from.len());
    rest.fill(E::Real::default());
    let (mut to, mut from) = (to.chunks_exact_mut(lanes), from.chunks_exact(lanes));
    for (to, from) in to.by_ref().zip(from.by_ref()) {
        store::<S, E::Real>(load::<S, E>(simd, from, 0), to, 0);
    }
    for (to, from) in to.into_remainder().iter_mut().zip(from.remainder()) {
        *to = E::Real::from_f64(from.to_f64());
    }
}

/// Divides a row by its norm, and returns that.
#[inline(always)]
fn divide_by_norm<S: Simd, R: Real>(simd: S, row: &mut [R]) -> f64 {
    let lanes = R::Native::<S>::LEN;
    // Two sums, as one would wait for the latency of each step.
    let mut squares = [SumOfSquares::new(simd); 2];
    for pair in row.chunks_exact(2 * lanes) {
        squares[0].add::<R>(load(simd, pair, 0));
        squares[1].add::<R>(load(simd, pair, lanes));
    }
    let norm = (squares[0].total() + squares[1].total()).sqrt();
    let divisor = splat::<S, R>(simd, if norm < SMALLEST_NORM { SMALLEST_NORM } else { norm });
    for vector in row.chunks_exact_mut(lanes) {
        store::<S, R>(load::<S, R>(simd, vector, 0) / divisor, vector, 0);
    }
    norm
}

/// A square of `-D`, its mirror image, and the sums of their rows; returns their share in `||D||_F^2`.
#[inline(always)]
fn differences<S: Simd, R: Real>(
    simd: S,
    layout: Layout,
    features: &[R],
    samples: usize,
    [row, column]: [usize; 2],
    scratch: &mut [R],
    to: &mut [R],
    along: &mut [f64],
) -> f64 {
    let rows = row * SIDE..samples.min((row + 1) * SIDE);
    let columns = column * SIDE..samples.min((column + 1) * SIDE);
    // On the diagonal a square is its own mirror image, and only what is below is computed.
    let mirror = if row == column { 0 } else { SIDE * SIDE };
    let (to, cosines) = if row == column { to.split_at_mut(SIDE * SIDE) } else { (to, scratch) };
    let (to, cosines) = (&mut to[..SIDE * SIDE + mirror], &mut cosines[..SIDE * SIDE + mirror]);
    for i in rows.clone().step_by(DOT_ROWS) {
        // Rows and columns that are not there repeat the last one.
        let is: [usize; DOT_ROWS] = std::array::from_fn(|k| (i + k).min(rows.end - 1));
        for j in (columns.start..columns.end.min(is[DOT_ROWS - 1] + 1)).step_by(DOT_COLUMNS) {
            let js: [usize; DOT_COLUMNS] = std::array::from_fn(|k| (j + k).min(columns.end - 1));
            let teacher = dots(simd, features, layout.stride, 0..layout.student, is, js);
            let student = dots(simd, features, layout.stride, layout.student..layout.end, is, js);
            let (i, j) = (i - rows.start, j - columns.start);
            for k in 0..DOT_ROWS {
                for l in 0..DOT_COLUMNS {
                    let (cosine, difference) = (R::from_f64(student[k][l]), R::from_f64(student[k][l] - teacher[k][l]));
                    for at in [(i + k) * SIDE + j + l, mirror + (j + l) * SIDE + i + k] {
                        cosines[at] = cosine;
                        to[at] = difference;
                    }
                }
            }
        }
    }
    let mut squares = SumOfSquares::new(simd);
    let counts = [rows.len(), columns.len()];
    for (image, [count, width]) in [counts, [counts[1], counts[0]]].into_iter().enumerate().take(1 + mirror.min(1)) {
        let padded = width.next_multiple_of(R::Native::<S>::LEN);
        for i in 0..count {
            let at = image * SIDE * SIDE + i * SIDE;
            let (cosines, differences) = (&mut cosines[at..][..padded], &mut to[at..][..padded]);
            cosines[width..].fill(R::default());
            differences[width..].fill(R::default());
            let mut sum = splat::<S, R>(simd, 0.0);
            for (c, d) in cosines.chunks_exact(R::Native::<S>::LEN).zip(differences.chunks_exact(R::Native::<S>::LEN)) {
                let d: R::Native<S> = load(simd, d, 0);
                squares.add::<R>(d);
                sum = d.mul_add(load::<S, R>(simd, c, 0), sum);
            }
            along[image * SIDE + i] = sum.reduce_sum().to_f64();
        }
    }
    squares.total()
}

/// `f_i . f_j` for some `i` and `j` and a part of the features.
#[inline(always)]
fn dots<S: Simd, R: Real>(
    simd: S,
    features: &[R],
    stride: usize,
    part: Range<usize>,
    is: [usize; DOT_ROWS],
    js: [usize; DOT_COLUMNS],
) -> [[f64; DOT_COLUMNS]; DOT_ROWS] {
    let mut sums = [[0.0; DOT_COLUMNS]; DOT_ROWS];
    for run in part.clone().step_by(RUN) {
        let run = run..part.end.min(run + RUN);
        let a: [&[R]; DOT_ROWS] = std::array::from_fn(|k| &features[is[k] * stride..][run.clone()]);
        let b: [&[R]; DOT_COLUMNS] = std::array::from_fn(|k| &features[js[k] * stride..][run.clone()]);
        let mut dots = [[splat::<S, R>(simd, 0.0); DOT_COLUMNS]; DOT_ROWS];
        for at in (0..run.len()).step_by(R::Native::<S>::LEN) {
            let b: [R::Native<S>; DOT_COLUMNS] = [load(simd, b[0], at), load(simd, b[1], at), load(simd, b[2], at)];
            for i in 0..DOT_ROWS {
                let a: R::Native<S> = load(simd, a[i], at);
                for j in 0..DOT_COLUMNS {
                    dots[i][j] = a.mul_add(b[j], dots[i][j]);
                }
            }
        }
        for i in 0..DOT_ROWS {
            for j in 0..DOT_COLUMNS {
                sums[i][j] += dots[i][j].reduce_sum().to_f64();
            }
        }
    }
    sums
}

/// The gradients of a strip of samples: those of their normalised rows are `factor` times `-D F`.
#[inline(always)]
fn gradients<S: Simd, E: Element>(
    simd: S,
    layout: Layout,
    features: &[E::Real],
    samples: usize,
    norms: &[f64],
    differences: &[E::Real],
    along: &[f64],
    factor: f64,
    strip: usize,
    class: &mut [Sample<E>],
) {
    let lanes = Vector::<S, E>::LEN;
    let mut dots = [E::Real::default(); SIDE];
    let mut slopes = [E::Real::default(); SIDE];
    for (i, &norm) in norms[strip * SIDE..][..class.len()].iter().enumerate() {
        // A norm that was raised is a constant.
        if norm >= SMALLEST_NORM || norm.is_nan() {
            let parts = (0..samples.div_ceil(SIDE)).map(|other| along[image(strip, other) * SIDE + i]);
            dots[i] = E::Real::from_f64(-parts.fold(0.0, |sum, part| sum + part));
        }
        slopes[i] = E::Real::from_f64(factor / if norm < SMALLEST_NORM { SMALLEST_NORM } else { norm });
    }
    let own = &features[strip * SIDE * layout.stride..];
    for at in (0..layout.students).step_by(2 * lanes) {
        for first in (0..class.len()).step_by(PRODUCT_ROWS) {
            let mut sums = [[splat::<S, E::Real>(simd, 0.0); 2]; PRODUCT_ROWS];
            for (i, sums) in sums.iter_mut().enumerate() {
                // A row that is not there repeats the last one, and is dropped.
                let i_there = (first + i).min(class.len() - 1);
                let f = &own[i_there * layout.stride + layout.student + at..][..2 * lanes];
                let dot = Vector::<S, E>::splat(simd, dots[i_there]);
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum = load::<S, E::Real>(simd, f, k * lanes) * dot;
                }
            }
            for other in 0..samples.div_ceil(SIDE) {
                let d = &differences[image(other, strip) * SIDE * SIDE..][..SIDE * SIDE];
                let f = &features[other * SIDE * layout.stride..][..SIDE.min(samples - other * SIDE) * layout.stride];
                let parts = outer(simd, (d, SIDE, first), (f, layout.stride, layout.student + at));
                for i in 0..PRODUCT_ROWS {
                    for k in 0..2 {
                        sums[i][k] += parts[i][k];
                    }
                }
            }
            for (i, sums) in sums.into_iter().enumerate().take(class.len() - first) {
                let Some(grad) = class[first + i].grad.as_deref_mut() else { continue };
                let slope = Vector::<S, E>::splat(simd, slopes[first + i]);
                let rest = &mut grad[at..];
                if rest.len() >= 2 * lanes {
                    store::<S, E>(sums[0] * slope, rest, 0);
                    store::<S, E>(sums[1] * slope, rest, lanes);
                } else {
                    let mut last = [E::default(); 2 * MAX_LANES];
                    store::<S, E>(sums[0] * slope, &mut last, 0);
                    store::<S, E>(sums[1] * slope, &mut last, lanes);
                    rest.copy_from_slice(&last[..rest.len()]);
                }
            }
        }
    }
}

/// `sum_k a_ki b_kj` over the rows of two matrices, for some columns `i` and two vectors of columns `j`.
#[inline(always)]
fn outer<S: Simd, R: Real>(
    simd: S,
    (a, a_stride, i): (&[R], usize, usize),
    (b, b_stride, j): (&[R], usize, usize),
) -> [[R::Native<S>; 2]; PRODUCT_ROWS] {
    let mut sums = [[splat::<S, R>(simd, 0.0); 2]; PRODUCT_ROWS];
    for (a, b) in a.chunks_exact(a_stride).zip(b.chunks_exact(b_stride)) {
        let a = &a[i..i + PRODUCT_ROWS];
        let b: [R::Native<S>; 2] = [load(simd, b, j), load(simd, b, j + R::Native::<S>::LEN)];
        for i in 0..PRODUCT_ROWS {
            let a = R::Native::<S>::splat(simd, a[i]);
            for k in 0..2 {
                sums[i][k] = b[k].mul_add(a, sums[i][k]);
            }
        }
    }
    sums
}

/// A square of `U'U` and its mirror image; returns their share in `||D||_F^2`.
#[inline(always)]
fn products<S: Simd, R: Real>(
    simd: S,
    layout: Layout,
    features: &[R],
    [row, column]: [usize; 2],
    panels: &mut [f64],
    to: &mut [f64],
) -> f64 {
    let [rows, columns] = [layout.block(row), layout.block(column)];
    let (a, b) = panels.split_at_mut(SIDE * SIDE);
    let (to, mirror) = to.split_at_mut(SIDE * SIDE);
    to.fill(0.0);
    for samples in features.chunks(SIDE * layout.stride) {
        let count = samples.len() / layout.stride;
        for (panel, block) in [(&mut *a, &rows), (&mut *b, &columns)] {
            for (to, from) in panel.chunks_exact_mut(SIDE).zip(samples.chunks_exact(layout.stride)) {
                widen(simd, &from[block.clone()], to);
            }
        }
        add_product(simd, &a[..count * SIDE], &b[..count * SIDE], [rows.len(), columns.len()], to, SIDE);
    }
    let mut squares = SumOfSquares::new(simd);
    for (i, row) in to.chunks_exact(SIDE).enumerate().take(rows.len()) {
        for vector in row[..columns.len()].chunks_exact(S::f64s::LEN) {
            squares.add::<f64>(load(simd, vector, 0));
        }
        for (j, &x) in row.iter().enumerate() {
            mirror[j * SIDE + i] = x;
        }
    }
    let [teachers, _] = layout.blocks();
    let sign = if (row < teachers) == (column < teachers) { 1.0 } else { -1.0 };
    squares.total() * if row == column { sign } else { 2.0 * sign }
}

/// Copies a row to `f64`.
#[inline(always)]
fn widen<S: Simd, R: Real>(simd: S, from: &[R], to: &mut [f64]) {
    let lanes = R::Native::<S>::LEN;
    for (from, to) in from.chunks_exact(lanes).zip(to.chunks_exact_mut(lanes)) {
        let wide = R::widen::<S>(load(simd, from, 0));
        for (to, wide) in to.chunks_exact_mut(S::f64s::LEN).zip(wide) {
            store::<S, f64>(wide, to, 0);
        }
    }
}

/// `sum_k a_ki b_kj` over the rows of two squares to the elements `i, j` of a matrix.
#[inline(always)]
fn add_product<S: Simd>(simd: S, a: &[f64], b: &[f64], [rows, columns]: [usize; 2], to: &mut [f64], stride: usize) {
    let lanes = S::f64s::LEN;
    for at in (0..columns).step_by(2 * lanes) {
        for first in (0..rows).step_by(PRODUCT_ROWS) {
            let sums = outer::<S, f64>(simd, (a, SIDE, first), (b, SIDE, at));
            for (sums, to) in sums.into_iter().zip(to[first * stride..].chunks_mut(stride)) {
                for (k, sum) in sums.into_iter().enumerate() {
                    let at = at + k * lanes;
                    store::<S, f64>(load::<S, f64>(simd, to, at) + sum, to, at);
                }
            }
        }
    }
}

/// The gradients of some samples: those of their normalised rows are `factor` times `D F`.
#[inline(always)]
fn gradients_by_features<S: Simd, E: Element>(
    simd: S,
    layout: Layout,
    features: &[E::Real],
    norms: &[f64],
    products: &[f64],
    factor: f64,
    rows: &mut [f64],
    class: &mut [Sample<E>],
) {
    let [teachers, students] = layout.blocks();
    let (panel, rows) = rows.split_at_mut(SIDE * SIDE);
    let width = students * SIDE;
    rows.fill(0.0);
    for k in 0..teachers + students {
        let block = layout.block(k);
        let sign = if k < teachers { 1.0 } else { -1.0 };
        for (i, from) in features.chunks_exact(layout.stride).enumerate() {
            for (k, from) in from[block.clone()].iter().enumerate() {
                panel[k * SIDE + i] = sign * from.to_f64();
            }
        }
        for j in 0..students {
            let b = &products[image(k, teachers + j) * SIDE * SIDE..][..SIDE * SIDE];
            let columns = layout.block(teachers + j).len();
            add_product(simd, &panel[..block.len() * SIDE], b, [class.len(), columns], &mut rows[j * SIDE..], width);
        }
    }
    for (((sample, row), &norm), f) in
        class.iter_mut().zip(rows.chunks_exact(width)).zip(norms).zip(features.chunks_exact(layout.stride))
    {
        let Some(grad) = sample.grad.as_deref_mut() else { continue };
        let f = &f[layout.student..layout.end];
        let (dot, divisor) = if norm < SMALLEST_NORM { (0.0, SMALLEST_NORM) } else { (dot(f, row), norm) };
        let slope = factor / divisor;
        for ((grad, &g), f) in grad.iter_mut().zip(row).zip(f) {
            *grad = E::from_f64((g - dot * f.to_f64()) * slope);
        }
    }
}

/// `a . b`.
#[inline(always)]
fn dot<R: Real>(a: &[R], b: &[f64]) -> f64 {
    const SUMS: usize = 8;
    let mut sums = [0.0; SUMS];
    for (a, b) in a.chunks_exact(SUMS).zip(b.chunks_exact(SUMS)) {
        for k in 0..SUMS {
            sums[k] += a[k].to_f64() * b[k];
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::on_every_level;
    use crate::half::{Bf16, F16};
    use crate::par::serial_and_parallel;
    use crate::testing::{Tested, assert_close, random, same_bits, widen};

    const IGNORED: i64 = -100;

    /// The loss and the gradient in f64, class by class, naively.
    fn truth(s: &[f64], t: &[f64], target: &[i64], [ds, dt]: [usize; 2]) -> (f64, Vec<f64>) {
        let normalized = |x: &[f64], d: usize| -> (Vec<Vec<f64>>, Vec<f64>) {
            let rows = (0..target.len()).map(|i| &x[i * d..(i + 1) * d]);
            let norms: Vec<f64> = rows.clone().map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
            (rows.zip(&norms).map(|(row, norm)| row.iter().map(|x| x / norm.max(1e-12)).collect()).collect(), norms)
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let ((f, norms), (ft, _)) = (normalized(s, ds), normalized(t, dt));
        let others = |i: usize| -> Vec<usize> {
            (0..target.len()).filter(|&j| target[i] != IGNORED && target[j] == target[i]).collect()
        };
        let mut labels: Vec<i64> = (0..target.len()).filter(|&i| others(i).len() > 1).map(|i| target[i]).collect();
        labels.sort_unstable();
        labels.dedup();
        let (mut loss, mut grad) = (0.0, vec![0.0; s.len()]);
        for i in 0..target.len() {
            let class = others(i);
            if class.len() < 2 {
                continue;
            }
            let share = 1.0 / (class.len() * class.len() * labels.len()) as f64;
            let mut g = vec![0.0; ds];
            for j in class {
                let d = dot(&ft[i], &ft[j]) - dot(&f[i], &f[j]);
                loss += share * d * d;
                g.iter_mut().zip(&f[j]).for_each(|(g, f)| *g -= 4.0 * share * d * f);
            }
            let along = if norms[i] < 1e-12 { 0.0 } else { dot(&g, &f[i]) };
            for k in 0..ds {
                grad[i * ds + k] = (g[k] - along * f[i][k]) / norms[i].max(1e-12);
            }
        }
        (loss, grad)
    }

    fn run<E: Element>(s: &[E], t: &[E], target: &[i64], shape: [usize; 2]) -> (E::Real, Vec<E>) {
        let (mut loss, mut grad) = (E::Real::from_f64(7.0), vec![E::from_f64(7.0); s.len()]);
        class(s, t, target, shape, IGNORED, &mut loss, Some(&mut grad)).unwrap();
        (loss, grad)
    }

    fn check<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for (samples, classes, ds, dt) in [
                (1, 1, 3, 2),
                (2, 1, 1, 1),
                (64, 10, 128, 37),
                (37, 3, 17, 129),
                (150, 1, 40, 333),
                (333, 200, 9, 5000),
                (600, 2, 40, 30),
                (600, 1, 100, 70),
            ] {
                for factor in [1.0, E::FACTORS[1], E::FACTORS[0].max(1e-10)] {
                    let s: Vec<E> = random(samples * ds, factor, 1);
                    let t: Vec<E> = random(samples * dt, factor, 2);
                    let mut target: Vec<i64> =
                        (0..samples).map(|i| ((i * i + i / 3) % classes) as i64 * 1_000_003).collect();
                    if samples > 20 {
                        target[20] = IGNORED;
                    }
                    let [(loss, grad), parallel] = serial_and_parallel(|| run(&s, &t, &target, [ds, dt]));
                    same_bits(&[loss], &[parallel.0]);
                    same_bits(&grad, &parallel.1);
                    let (expected, slope) = truth(&widen(&s), &widen(&t), &target, [ds, dt]);
                    assert_close(&[loss.to_f64()], &[expected], tolerance);
                    assert_close(&grad, &slope, 5.0 * tolerance);
                    let mut alone = E::Real::default();
                    class(&s, &t, &target, [ds, dt], IGNORED, &mut alone, None).unwrap();
                    same_bits(&[alone], &[loss]);
                }
            }
        });
    }

    #[test]
    fn agrees_with_f64() {
        check::<f32>(1e-5);
        check::<Bf16>(1e-5);
        check::<F16>(1e-5);
        check::<f64>(1e-13);
    }

    /// As after a ReLU, all cosines large, and the student close to the teacher. The loss is of squares of differences
    /// of cosines that are good to `d`, the gradient of their products with the normalised rows.
    fn check_close<E: Element>(d: f64) {
        on_every_level(|| {
            for samples in [2, 49, 100, 300] {
                let t: Vec<f64> = random(samples * 20, 1.0, 1).into_iter().map(f64::abs).collect();
                let s: Vec<E> =
                    t.iter().zip(random::<f64>(t.len(), 1e-2, 2)).map(|(t, x)| E::from_f64(t + x)).collect();
                let t: Vec<E> = t.into_iter().map(E::from_f64).collect();
                let target = vec![3; samples];
                let (loss, grad) = run(&s, &t, &target, [20, 20]);
                let (expected, slope) = truth(&widen(&s), &widen(&t), &target, [20, 20]);
                let error = (loss.to_f64() - expected).abs();
                assert!(error <= 2.0 * d * expected.sqrt() + d * d, "{loss:?}, not {expected}");
                let norms =
                    widen(&s).chunks(20).map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).collect::<Vec<_>>();
                for (k, (got, expected)) in widen(&grad).iter().zip(&slope).enumerate() {
                    let bound = 8.0 * d / (samples as f64 * norms[k / 20]);
                    assert!((got - expected).abs() <= bound, "element {k}: {got}, not {expected}");
                }
                let (loss, grad) = run(&t, &t, &target, [20, 20]);
                assert!((0.0..1e-15).contains(&loss.to_f64()));
                assert!(widen(&grad).iter().all(|g| g.abs() < 1e-14));
            }
        });
    }

    #[test]
    fn agrees_with_f64_where_features_are_close() {
        check_close::<f32>(4.0 * f64::from(f32::EPSILON));
        check_close::<f64>(8.0 * f64::EPSILON); // of which the truth has half
    }

    #[test]
    fn no_pairs_and_small_norms() {
        on_every_level(|| {
            let s: Vec<f32> = random(4 * 5, 1.0, 1);
            assert_eq!(run(&s, &s, &[0, 1, 2, IGNORED], [5, 5]), (0.0, vec![0.0; 20]));
            assert_eq!(run(&s, &s, &[IGNORED; 4], [5, 5]), (0.0, vec![0.0; 20]));
            assert_eq!(run::<f32>(&[], &[], &[], [5, 5]), (0.0, vec![]));

            let mut small: Vec<f64> = random(4 * 5, 1.0, 1);
            small[..5].iter_mut().for_each(|x| *x *= 1e-13);
            small[5..10].fill(0.0);
            let t: Vec<f64> = random(4 * 5, 1.0, 2);
            let (loss, grad) = run(&small, &t, &[7; 4], [5, 5]);
            let (expected, slope) = truth(&small, &t, &[7; 4], [5, 5]);
            assert_close(&[loss], &[expected], 1e-14);
            for i in 0..4 {
                assert_close(&grad[i * 5..][..5], &slope[i * 5..][..5], 1e-13);
            }
        });
    }

    #[test]
    fn a_nan_stays_in_its_class() {
        let mut s: Vec<f32> = random(4 * 5, 1.0, 1);
        s[3] = f32::NAN;
        let t: Vec<f32> = random(4 * 5, 1.0, 2);
        let (loss, grad) = run(&s, &t, &[0, 0, 1, 1], [5, 5]);
        assert!(loss.is_nan() && grad[..10].iter().all(|x| x.is_nan()) && grad[10..].iter().all(|x| x.is_finite()));
        let (loss, grad) = run(&s, &t, &[2, 0, 1, 1], [5, 5]);
        assert!(loss.is_finite() && grad.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn a_negative_label_is_named() {
        let error = class(&[0.0_f32; 2], &[0.0_f32; 2], &[0, -3], [1, 1], IGNORED, &mut 0.0, None).unwrap_err();
        let expected = "target: label -3 at index 1 is negative (accepted: 0 and above, or ignore_index -100)";
        assert_eq!(error.to_string(), expected);
    }
}
