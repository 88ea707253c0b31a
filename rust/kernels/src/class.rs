//! Class representation: the mean over classes of `||Gt - Gs||_F^2 / n^2`, with `G` the cosines within a class.
//!
//! No matrix of cosines is kept: a task takes a tile of samples, computes their differences `D = Gt - Gs` with one
//! block of their class after another, and adds each block's share of the gradient while it is at hand.

use std::ops::Range;

use fearless_simd::prelude::*;

use crate::dispatch::{self, dispatch};
use crate::par::{self, Chunks};
use crate::simd::{Element, MAX_LANES, Real, Sum, SumOfSquares, Vector, for_each_vector, load, splat, store};
use crate::{Error, check_labels, check_len, check_shape};

/// Samples in a task.
const TILE: usize = 16;
/// Samples of the class that a tile is held against at a time: their features fit the second cache.
const BLOCK: usize = 64;
/// Rows and columns of `D` whose dot products are accumulated at once: as many as there are registers for.
const ROWS: usize = 4;
const COLUMNS: usize = 2;
/// Rows of features are filled up with zeros to a multiple of this, so that no loop over them has a tail.
const PADDING: usize = 2 * MAX_LANES;
/// Features in a dot product before it goes to `f64`: bounds the rounding of wide representations.
const RUN: usize = 512;
/// A row's norm is taken to be at least this.
const SMALLEST_NORM: f64 = 1e-12;

/// The mean over classes of two or more samples of `||Gt_k - Gs_k||_F^2 / n_k^2`, and its derivative in the
/// student's features; 0 if there is no such class.
///
/// # Errors
///
/// Where lengths do not fit, or a label is negative and not `ignore_index`.
pub fn class<E: Element>(
    student_features: &[E],
    teacher_features: &[E],
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

    let groups = Groups::new(target, ignore_index);
    let mut grads = grad.map(|grad| groups.rows(grad, students, samples));
    let members = groups.members.len();
    let tiles = members.div_ceil(TILE);
    let elements = members * (students + teachers);
    let mut student = Features::new(members, students);
    let mut teacher = Features::new(members, teachers);
    par::for_each(
        tiles,
        elements,
        (student.tiles(), teacher.tiles()),
        || (),
        |(), tile, (student, teacher)| {
            let members = &groups.members[tile * TILE..members.min((tile + 1) * TILE)];
            dispatch!(level, simd => {
                normalize(simd, student_features, students, members, student);
                normalize(simd, teacher_features, teachers, members, teacher);
            });
        },
    );

    let mut losses = vec![0.0; tiles];
    par::for_each(
        tiles,
        elements,
        (Chunks::new(&mut losses, 1), grads.as_mut().map(|grads| Chunks::new(grads, TILE))),
        || Work::new(student.stride),
        |work, tile, (loss, grads)| {
            let tile = tile * TILE..members.min((tile + 1) * TILE);
            loss[0] = dispatch!(level, simd => {
                self::tile(simd, &groups, [student.view(), teacher.view()], tile, work, grads)
            });
        },
    );
    *loss = E::Real::from_f64(losses.iter().fold(0.0, |sum, loss| sum + loss));
    Ok(())
}

/// The samples that have another of their class, by class.
struct Groups {
    /// Samples, in their own order within a class.
    members: Vec<usize>,
    /// Where the class of each member stands among them.
    classes: Vec<Range<usize>>,
    /// The number of classes.
    count: usize,
}

impl Groups {
    fn new(target: &[i64], ignore_index: i64) -> Self {
        let labelled = target.iter().enumerate().filter(|&(_, &label)| label != ignore_index);
        let mut sorted: Vec<(i64, usize)> = labelled.map(|(sample, &label)| (label, sample)).collect();
        sorted.sort_unstable();
        let (mut members, mut classes, mut count) = (Vec::new(), Vec::new(), 0);
        for class in sorted.chunk_by(|a, b| a.0 == b.0).filter(|class| class.len() > 1) {
            let span = members.len()..members.len() + class.len();
            members.extend(class.iter().map(|&(_, sample)| sample));
            classes.resize(members.len(), span);
            count += 1;
        }
        Self { members, classes, count }
    }

    /// The rows of the members, in their order; those of all other samples are set to 0.
    fn rows<'a, E: Element>(&self, matrix: &'a mut [E], columns: usize, samples: usize) -> Vec<&'a mut [E]> {
        let mut rows: Vec<Option<&mut [E]>> = if columns == 0 {
            (0..samples).map(|_| Some(&mut [][..])).collect()
        } else {
            matrix.chunks_exact_mut(columns).map(Some).collect()
        };
        let of_members = self.members.iter().map(|&sample| rows[sample].take().expect("a sample has one class"));
        let of_members = of_members.collect();
        rows.into_iter().flatten().for_each(|row| row.fill(E::default()));
        of_members
    }
}

/// Normalised features of the members, and the norms they had.
struct Features<R> {
    padded: Vec<R>,
    norms: Vec<f64>,
    stride: usize,
    /// The first element on a cache line's boundary.
    start: usize,
}

impl<R: Real> Features<R> {
    fn new(members: usize, columns: usize) -> Self {
        const LINE: usize = 64;
        let stride = columns.next_multiple_of(PADDING);
        let padded = vec![R::default(); members * stride + LINE];
        let start = padded.as_ptr().align_offset(LINE).min(LINE);
        Self { padded, norms: vec![0.0; members], stride, start }
    }

    fn tiles(&mut self) -> (Chunks<'_, R>, Chunks<'_, f64>) {
        let padded = &mut self.padded[self.start..][..self.norms.len() * self.stride];
        (Chunks::new(padded, TILE * self.stride), Chunks::new(&mut self.norms, TILE))
    }

    fn view(&self) -> View<'_, R> {
        View { padded: &self.padded[self.start..], norms: &self.norms, stride: self.stride }
    }
}

#[derive(Clone, Copy)]
struct View<'a, R> {
    padded: &'a [R],
    norms: &'a [f64],
    stride: usize,
}

impl<'a, R> View<'a, R> {
    #[inline(always)]
    fn row(self, member: usize) -> &'a [R] {
        &self.padded[member * self.stride..][..self.stride]
    }
}

/// Copies the rows of some members, each divided by its norm.
#[inline(always)]
fn normalize<S: Simd, E: Element>(
    simd: S,
    features: &[E],
    columns: usize,
    members: &[usize],
    (padded, norms): (&mut [E::Real], &mut [f64]),
) {
    let stride = columns.next_multiple_of(PADDING);
    for (i, &member) in members.iter().enumerate() {
        let row = &mut padded[i * stride..][..stride];
        for (to, from) in row.iter_mut().zip(&features[member * columns..][..columns]) {
            *to = E::Real::from_f64(from.to_f64());
        }
        let mut squares = SumOfSquares::new(simd);
        for at in (0..stride).step_by(Vector::<S, E>::LEN) {
            squares.add::<E::Real>(load(simd, row, at));
        }
        let norm = squares.total().sqrt();
        norms[i] = norm;
        let divisor = splat::<S, E::Real>(simd, if norm < SMALLEST_NORM { SMALLEST_NORM } else { norm });
        for at in (0..stride).step_by(Vector::<S, E>::LEN) {
            store::<S, E::Real>(load::<S, E::Real>(simd, row, at) / divisor, row, at);
        }
    }
}

/// What a thread computes in.
struct Work<R> {
    /// `D` of some members of the tile and a block of their class.
    differences: [[R; BLOCK]; ROWS],
    /// `D F` of each member of the tile.
    products: Vec<R>,
}

impl<R: Real> Work<R> {
    fn new(stride: usize) -> Self {
        Self { differences: [[R::default(); BLOCK]; ROWS], products: vec![R::default(); TILE * stride] }
    }
}

/// The share of a tile of members in the loss, and the gradients of its rows.
#[inline(always)]
fn tile<S: Simd, E: Element>(
    simd: S,
    groups: &Groups,
    features: [View<E::Real>; 2],
    tile: Range<usize>,
    work: &mut Work<E::Real>,
    mut grads: Option<&mut [&mut [E]]>,
) -> f64 {
    let mut loss = 0.0;
    let mut first = tile.start;
    while first < tile.end {
        let class = groups.classes[first].clone();
        let last = class.end.min(tile.end);
        let share = 1.0 / ((class.len() * class.len()) as f64 * groups.count as f64);
        let rows = first..last;
        loss += share * against_class(simd, features, rows.clone(), class, work, grads.is_some());
        if let Some(grads) = grads.as_deref_mut() {
            let student = features[0];
            for (i, member) in rows.enumerate() {
                let product = &work.products[i * student.stride..][..student.stride];
                let grad = &mut *grads[member - tile.start];
                gradient(simd, student.row(member), student.norms[member], product, -4.0 * share, grad);
            }
        }
        first = last;
    }
    loss
}

/// `||D||_F^2` of some members of a class with all of it; leaves `D F` in `work.products` if it is asked for.
#[inline(always)]
fn against_class<S: Simd, R: Real>(
    simd: S,
    [student, teacher]: [View<R>; 2],
    rows: Range<usize>,
    class: Range<usize>,
    work: &mut Work<R>,
    products: bool,
) -> f64 {
    work.products.fill(R::default());
    let mut squares = 0.0;
    for block in class.clone().step_by(BLOCK) {
        let block = block..class.end.min(block + BLOCK);
        for first in rows.clone().step_by(ROWS) {
            let count = ROWS.min(rows.end - first);
            // Rows and columns that are not there repeat the last one, and are dropped.
            let is: [usize; ROWS] = std::array::from_fn(|i| first + i.min(count - 1));
            for column in block.clone().step_by(COLUMNS) {
                let js: [usize; COLUMNS] = std::array::from_fn(|j| (column + j).min(block.end - 1));
                let d = differences(simd, student, teacher, is, js);
                for (i, d) in d.iter().enumerate().take(count) {
                    for (&j, &d) in js.iter().zip(d).take(block.end - column) {
                        work.differences[i][j - block.start] = R::from_f64(d);
                        squares += d * d;
                    }
                }
            }
            if products {
                let to = &mut work.products[(first - rows.start) * student.stride..];
                add_products(simd, student, &work.differences, block.clone(), count, to);
            }
        }
    }
    squares
}

/// `t_i . t_j - s_i . s_j` for some `i` and `j`.
#[inline(always)]
fn differences<S: Simd, R: Real>(
    simd: S,
    student: View<R>,
    teacher: View<R>,
    is: [usize; ROWS],
    js: [usize; COLUMNS],
) -> [[f64; COLUMNS]; ROWS] {
    let mut sums = [[0.0; COLUMNS]; ROWS];
    add_dots(simd, teacher, is, js, R::from_f64(1.0), &mut sums);
    add_dots(simd, student, is, js, R::from_f64(-1.0), &mut sums);
    sums
}

/// Adds `sign f_i . f_j` to each sum.
#[inline(always)]
fn add_dots<S: Simd, R: Real>(
    simd: S,
    features: View<R>,
    is: [usize; ROWS],
    js: [usize; COLUMNS],
    sign: R,
    sums: &mut [[f64; COLUMNS]; ROWS],
) {
    let sign = sign.to_f64();
    for run in (0..features.stride).step_by(RUN) {
        let run = run..features.stride.min(run + RUN);
        let a: [&[R]; ROWS] = std::array::from_fn(|i| &features.row(is[i])[run.clone()]);
        let b: [&[R]; COLUMNS] = std::array::from_fn(|j| &features.row(js[j])[run.clone()]);
        let mut dots = [[splat::<S, R>(simd, 0.0); COLUMNS]; ROWS];
        let mut at = 0;
        while at + R::Native::<S>::LEN <= run.len() {
            let b: [R::Native<S>; COLUMNS] = [load(simd, b[0], at), load(simd, b[1], at)];
            for i in 0..ROWS {
                let a: R::Native<S> = load(simd, a[i], at);
                for j in 0..COLUMNS {
                    dots[i][j] = a.mul_add(b[j], dots[i][j]);
                }
            }
            at += R::Native::<S>::LEN;
        }
        for i in 0..ROWS {
            for j in 0..COLUMNS {
                sums[i][j] += sign * dots[i][j].reduce_sum().to_f64();
            }
        }
    }
}

/// Adds `sum_j D_ij f_j` over a block of the class to each of `count` rows.
#[inline(always)]
fn add_products<S: Simd, R: Real>(
    simd: S,
    student: View<R>,
    differences: &[[R; BLOCK]; ROWS],
    block: Range<usize>,
    count: usize,
    to: &mut [R],
) {
    let (stride, lanes) = (student.stride, R::Native::<S>::LEN);
    for at in (0..stride).step_by(2 * lanes) {
        let mut sums = [[splat::<S, R>(simd, 0.0); 2]; ROWS];
        for (j, member) in block.clone().enumerate() {
            let row = student.row(member);
            let f: [R::Native<S>; 2] = [load(simd, row, at), load(simd, row, at + lanes)];
            for i in 0..ROWS {
                let d = R::Native::<S>::splat(simd, differences[i][j]);
                for k in 0..2 {
                    sums[i][k] = f[k].mul_add(d, sums[i][k]);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate().take(count) {
            for (k, sum) in sums.into_iter().enumerate() {
                let at = i * stride + at + k * lanes;
                store::<S, R>(load::<S, R>(simd, to, at) + sum, to, at);
            }
        }
    }
}

/// The gradient of a row of features from that of its normalised row `f`, which is `factor` times `g`.
#[inline(always)]
fn gradient<S: Simd, E: Element>(simd: S, f: &[E::Real], norm: f64, g: &[E::Real], factor: f64, out: &mut [E]) {
    let lanes = Vector::<S, E>::LEN;
    let mut dot = 0.0;
    // A norm that was raised is a constant.
    if norm >= SMALLEST_NORM || norm.is_nan() {
        let mut sum = Sum::<S, E::Real>::new(simd);
        for_each_vector!(simd, Vector<S, E>, f.len(), read [f, g], write [], sum [sum], |at, _counted| {
            sum.add(load::<S, E::Real>(simd, f, at) * load::<S, E::Real>(simd, g, at));
        });
        dot = sum.total();
    }
    let dot = splat::<S, E::Real>(simd, dot);
    let slope = splat::<S, E::Real>(simd, factor / if norm < SMALLEST_NORM { SMALLEST_NORM } else { norm });
    for at in (0..out.len()).step_by(lanes) {
        let row = (load::<S, E::Real>(simd, g, at) - dot * load::<S, E::Real>(simd, f, at)) * slope;
        if at + lanes <= out.len() {
            store::<S, E>(row, out, at);
        } else {
            let mut last = [E::default(); MAX_LANES];
            store::<S, E>(row, &mut last, 0);
            let rest = &mut out[at..];
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
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
        let error = class(&[0.0_f32; 2], &[0.0; 2], &[0, -3], [1, 1], IGNORED, &mut 0.0, None).unwrap_err();
        let expected = "target: label -3 at index 1 is negative (accepted: 0 and above, or ignore_index -100)";
        assert_eq!(error.to_string(), expected);
    }
}
