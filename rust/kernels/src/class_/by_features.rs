//! A class by its features: as many of them squared, where `D` has the samples squared.

use fearless_simd::Level;
use fearless_simd::prelude::*;

use super::Sample;
use super::layout::{Layout, divisor, is_raised};
use super::products::add_product;
use super::squares::{AREA, SIDE, Square, Squares, at_least, image, triangle};
use crate::dispatch::dispatch;
use crate::par::{self, Chunks};
use crate::simd::{Element, Real, SumOfSquares, load, store};

/// `||D||_F^2`, and the gradients of the samples, by way of `U'U`, with the teacher's and the student's features side by
/// side in `U`: where there are many samples to a feature.
///
/// With `V` for `U` with the student's features negated, `D = U V'`, and so `||D||_F^2` is the sum of the squares
/// of `U'U`, those of a teacher's feature with a student's counted negative, and `D F` is `V (U'F)`. In both, large
/// numbers cancel where student and teacher agree: everything from `U` on is `f64`.
pub(super) fn by_features<E: Element>(
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
    let grams = at_least(&mut work.grams, squares * 2 * AREA);
    par::for_each(
        squares,
        elements,
        (Chunks::new(grams, 2 * AREA), Chunks::new(losses, 1)),
        || vec![0.0; 2 * AREA],
        |panels, index, (grams, loss)| {
            loss[0] = dispatch!(level, simd => {
                gram(simd, layout, features, Square::at(index), panels, grams)
            });
        },
    );
    let loss = losses.iter().fold(0.0, |sum, loss| sum + loss);
    if class[0].grad.is_some() {
        let grams = &*grams;
        par::for_each(
            class.len().div_ceil(SIDE),
            elements,
            Chunks::new(class, SIDE),
            || vec![0.0; AREA * (1 + students)],
            |rows, strip, class| {
                let samples = strip * SIDE..strip * SIDE + class.len();
                let features = &features[samples.start * layout.stride..samples.end * layout.stride];
                dispatch!(level, simd => {
                    gradients(simd, layout, features, &norms[samples], grams, -4.0 * share, rows, class);
                });
            },
        );
    }
    // Rounding must not make it negative.
    if loss < 0.0 { 0.0 } else { loss }
}

/// A square of `U'U` and its mirror image; returns their share in `||D||_F^2`.
#[inline(always)]
fn gram<S: Simd, R: Real>(
    simd: S,
    layout: Layout,
    features: &[R],
    square: Square,
    panels: &mut [f64],
    images: &mut [f64],
) -> f64 {
    let [rows, columns] = [layout.block(square.row), layout.block(square.column)];
    let (a, b) = panels.split_at_mut(AREA);
    let (gram, mirror) = images.split_at_mut(AREA);
    gram.fill(0.0);
    for samples in features.chunks(SIDE * layout.stride) {
        let count = samples.len() / layout.stride;
        for (panel, block) in [(&mut *a, &rows), (&mut *b, &columns)] {
            for (to, from) in panel.chunks_exact_mut(SIDE).zip(samples.chunks_exact(layout.stride)) {
                widen(simd, &from[block.clone()], to);
            }
        }
        add_product(simd, &a[..count * SIDE], &b[..count * SIDE], [rows.len(), columns.len()], gram, SIDE);
    }
    let mut squares = SumOfSquares::new(simd);
    for (i, row) in gram.chunks_exact(SIDE).enumerate().take(rows.len()) {
        for vector in row[..columns.len()].chunks_exact(S::f64s::LEN) {
            squares.add::<f64>(load(simd, vector, 0));
        }
        for (j, &x) in row.iter().enumerate() {
            mirror[j * SIDE + i] = x;
        }
    }
    let [teachers, _] = layout.blocks();
    let sign = if (square.row < teachers) == (square.column < teachers) { 1.0 } else { -1.0 };
    squares.total() * if square.is_diagonal() { sign } else { 2.0 * sign }
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

/// The gradients of some samples: those of their normalised rows are `factor` times `D F`.
#[inline(always)]
fn gradients<S: Simd, E: Element>(
    simd: S,
    layout: Layout,
    features: &[E::Real],
    norms: &[f64],
    grams: &[f64],
    factor: f64,
    rows: &mut [f64],
    class: &mut [Sample<E>],
) {
    let [teachers, students] = layout.blocks();
    let (panel, rows) = rows.split_at_mut(AREA);
    let width = students * SIDE;
    if width == 0 {
        return; // without features there is no gradient, and nothing to go through in steps of a row
    }
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
            let b = &grams[image(k, teachers + j) * AREA..][..AREA];
            let columns = layout.block(teachers + j).len();
            add_product(simd, &panel[..block.len() * SIDE], b, [class.len(), columns], &mut rows[j * SIDE..], width);
        }
    }
    for (((sample, row), &norm), f) in
        class.iter_mut().zip(rows.chunks_exact(width)).zip(norms).zip(features.chunks_exact(layout.stride))
    {
        let Some(grad) = sample.grad.as_deref_mut() else { continue };
        let f = &f[layout.student..layout.end];
        let dot = if is_raised(norm) { 0.0 } else { dot(f, row) };
        let slope = factor / divisor(norm);
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
