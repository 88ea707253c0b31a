//! Products of matrices, by tiles.

use fearless_simd::prelude::*;

use super::squares::SIDE;
use crate::simd::{Real, load, splat, store};

/// Rows of a product that are accumulated at once, each in two vectors: as many as there are registers for.
pub(super) const PRODUCT_ROWS: usize = 6;

/// `sum_k a_ki b_kj` over the rows of two matrices, for some columns `i` and two vectors of columns `j`.
#[inline(always)]
pub(super) fn outer<S: Simd, R: Real>(
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

/// `sum_k a_ki b_kj` over the rows of two squares to the elements `i, j` of a matrix.
#[inline(always)]
pub(super) fn add_product<S: Simd>(
    simd: S,
    a: &[f64],
    b: &[f64],
    [rows, columns]: [usize; 2],
    to: &mut [f64],
    stride: usize,
) {
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
