//! A class by its samples: `D`, a square at a time, then `D F`.

use std::ops::Range;

use fearless_simd::Level;
use fearless_simd::prelude::*;

use super::Sample;
use super::layout::{Layout, divisor, is_raised};
use super::products::{PRODUCT_ROWS, outer};
use super::squares::{AREA, SIDE, Square, Squares, at_least, image, triangle};
use crate::dispatch::dispatch;
use crate::par::{self, Chunks};
use crate::simd::{Element, MAX_LANES, Real, SumOfSquares, Vector, load, splat, store};

/// Rows and columns of `D` that are accumulated at once: as many as there are registers for.
const DOT_ROWS: usize = 4;
const DOT_COLUMNS: usize = 3;
/// Features in a dot product before it goes to `f64`: bounds the rounding of wide representations.
const FEATURES_A_RUN: usize = 512;

/// `||D||_F^2`, and the gradients of the samples.
pub(super) fn by_samples<E: Element>(
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
    let differences = at_least(&mut work.differences, squares * 2 * AREA);
    let radial = at_least(&mut work.radial, squares * 2 * SIDE);
    par::for_each(
        squares,
        elements,
        (Chunks::new(differences, 2 * AREA), Chunks::new(losses, 1), Chunks::new(radial, 2 * SIDE)),
        || vec![E::Real::default(); if strips > 1 { 2 * AREA } else { 0 }],
        |cosines, index, (differences, loss, radial)| {
            loss[0] = dispatch!(level, simd => {
                self::differences(simd, layout, features, samples, Square::at(index), cosines, differences, radial)
            });
        },
    );
    let loss = losses.iter().fold(0.0, |sum, loss| sum + loss);
    if class[0].grad.is_some() {
        let (differences, radial) = (&*differences, &*radial);
        par::for_each(
            strips,
            elements,
            Chunks::new(class, SIDE),
            || (),
            |(), strip, class| {
                dispatch!(level, simd => {
                    gradients(simd, layout, features, samples, norms, differences, radial, 4.0 * share, strip, class);
                });
            },
        );
    }
    loss
}

/// A square of `-D` and its mirror image, and `radial` of their rows; returns their share in `||D||_F^2`.
#[inline(always)]
fn differences<S: Simd, R: Real>(
    simd: S,
    layout: Layout,
    features: &[R],
    samples: usize,
    square: Square,
    scratch: &mut [R],
    differences: &mut [R],
    radial: &mut [f64],
) -> f64 {
    let [rows, columns] = [square.row, square.column].map(|strip| strip * SIDE..samples.min((strip + 1) * SIDE));
    let sizes = [[rows.len(), columns.len()], [columns.len(), rows.len()]];
    // On the diagonal there is no mirror image, and the cosines go to its place.
    let (differences, cosines) =
        if square.is_diagonal() { differences.split_at_mut(AREA) } else { (differences, scratch) };
    let mut images = Images::new(square, cosines, differences);
    for i in rows.clone().step_by(DOT_ROWS) {
        // Rows and columns that are not there repeat the last one.
        let tile_rows: [usize; DOT_ROWS] = std::array::from_fn(|k| (i + k).min(rows.end - 1));
        let end = columns.end.min(tile_rows[DOT_ROWS - 1] + 1);
        for j in (columns.start..end).step_by(DOT_COLUMNS) {
            let tile_columns: [usize; DOT_COLUMNS] = std::array::from_fn(|k| (j + k).min(columns.end - 1));
            let teacher = dots(simd, features, layout.stride, 0..layout.student, tile_rows, tile_columns);
            let student = dots(simd, features, layout.stride, layout.student..layout.end, tile_rows, tile_columns);
            images.set_tile(i - rows.start, j - columns.start, teacher, student);
        }
    }
    images.sum_rows(simd, sizes, radial)
}

/// The student's cosines and `-D` in a square, and in its mirror image behind it: on the diagonal, where only what is
/// below is computed, they are the same.
struct Images<'a, R> {
    /// Where the mirror image begins.
    mirror: usize,
    cosines: &'a mut [R],
    differences: &'a mut [R],
}

impl<'a, R: Real> Images<'a, R> {
    #[inline(always)]
    fn new(square: Square, cosines: &'a mut [R], differences: &'a mut [R]) -> Self {
        let mirror = if square.is_diagonal() { 0 } else { AREA };
        Self { mirror, cosines: &mut cosines[..mirror + AREA], differences: &mut differences[..mirror + AREA] }
    }

    /// Writes what the cosines of a tile say, from row `i` and column `j` on, to both images.
    #[inline(always)]
    fn set_tile(
        &mut self,
        i: usize,
        j: usize,
        teacher: [[f64; DOT_COLUMNS]; DOT_ROWS],
        student: [[f64; DOT_COLUMNS]; DOT_ROWS],
    ) {
        for k in 0..DOT_ROWS {
            for l in 0..DOT_COLUMNS {
                let (cosine, difference) = (R::from_f64(student[k][l]), R::from_f64(student[k][l] - teacher[k][l]));
                for at in [(i + k) * SIDE + j + l, self.mirror + (j + l) * SIDE + i + k] {
                    self.cosines[at] = cosine;
                    self.differences[at] = difference;
                }
            }
        }
    }

    /// Sums up the rows of each image, whose sizes are given; returns the sum of all squares of `D`.
    #[inline(always)]
    fn sum_rows<S: Simd>(self, simd: S, sizes: [[usize; 2]; 2], radial: &mut [f64]) -> f64 {
        let lanes = R::Native::<S>::LEN;
        let mut squares = SumOfSquares::new(simd);
        let (cosines, differences) = (self.cosines.chunks_exact_mut(AREA), self.differences.chunks_exact_mut(AREA));
        let images = cosines.zip(differences).zip(radial.chunks_exact_mut(SIDE)).zip(sizes);
        for (((cosines, differences), radial), [height, width]) in images {
            let padded = width.next_multiple_of(lanes);
            let rows = cosines.chunks_exact_mut(SIDE).zip(differences.chunks_exact_mut(SIDE)).zip(radial);
            for ((cosines, differences), radial) in rows.take(height) {
                let (cosines, differences) = (&mut cosines[..padded], &mut differences[..padded]);
                cosines[width..].fill(R::default());
                differences[width..].fill(R::default());
                let mut sum = splat::<S, R>(simd, 0.0);
                for (c, d) in cosines.chunks_exact(lanes).zip(differences.chunks_exact(lanes)) {
                    let d: R::Native<S> = load(simd, d, 0);
                    squares.add::<R>(d);
                    sum = d.mul_add(load::<S, R>(simd, c, 0), sum);
                }
                *radial = sum.reduce_sum().to_f64();
            }
        }
        squares.total()
    }
}

/// `f_i . f_j` for some rows `i`, some columns `j` and a part of the features.
#[inline(always)]
fn dots<S: Simd, R: Real>(
    simd: S,
    features: &[R],
    stride: usize,
    part: Range<usize>,
    rows: [usize; DOT_ROWS],
    columns: [usize; DOT_COLUMNS],
) -> [[f64; DOT_COLUMNS]; DOT_ROWS] {
    let mut sums = [[0.0; DOT_COLUMNS]; DOT_ROWS];
    for run in part.clone().step_by(FEATURES_A_RUN) {
        let run = run..part.end.min(run + FEATURES_A_RUN);
        let a: [&[R]; DOT_ROWS] = std::array::from_fn(|k| &features[rows[k] * stride..][run.clone()]);
        let b: [&[R]; DOT_COLUMNS] = std::array::from_fn(|k| &features[columns[k] * stride..][run.clone()]);
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
    radial: &[f64],
    factor: f64,
    strip: usize,
    class: &mut [Sample<E>],
) {
    let lanes = Vector::<S, E>::LEN;
    let mut dots = [E::Real::default(); SIDE];
    let mut slopes = [E::Real::default(); SIDE];
    for (i, &norm) in norms[strip * SIDE..][..class.len()].iter().enumerate() {
        if !is_raised(norm) {
            let parts = (0..samples.div_ceil(SIDE)).map(|other| radial[image(strip, other) * SIDE + i]);
            dots[i] = E::Real::from_f64(-parts.fold(0.0, |sum, part| sum + part));
        }
        slopes[i] = E::Real::from_f64(factor / divisor(norm));
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
                let d = &differences[image(other, strip) * AREA..][..AREA];
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
                store_both::<S, E>([sums[0] * slope, sums[1] * slope], &mut grad[at..]);
            }
        }
    }
}

/// Stores two vectors, or as much of them as there is room for.
#[inline(always)]
fn store_both<S: Simd, E: Element>(vectors: [Vector<S, E>; 2], to: &mut [E]) {
    let lanes = Vector::<S, E>::LEN;
    if to.len() >= 2 * lanes {
        store::<S, E>(vectors[0], to, 0);
        store::<S, E>(vectors[1], to, lanes);
    } else {
        let mut last = [E::default(); 2 * MAX_LANES];
        store::<S, E>(vectors[0], &mut last, 0);
        store::<S, E>(vectors[1], &mut last, lanes);
        to.copy_from_slice(&last[..to.len()]);
    }
}
