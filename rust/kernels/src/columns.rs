//! Sums over the rows of a matrix: the gradient of a bias from that of a linear layer's output.

use fearless_simd::prelude::*;

use crate::dispatch::{self, dispatch};
use crate::par::{self, Chunks};
use crate::simd::{Element, Vector, load, store};
use crate::{Error, check_len, check_shape};

/// Columns in a task: their sums stay in the cache next to the CPU.
const COLUMNS: usize = 256;
/// Rows that are added up in the type that the elements are computed in, before the sum goes to `f64`.
const ROWS_A_RUN: usize = 16;

/// `factor sum_i x_ij` of each column `j`.
///
/// # Errors
///
/// Where lengths do not fit.
pub fn column_sums<E: Element>(matrix: &[E], shape: [usize; 2], factor: f64, out: &mut [E]) -> Result<(), Error> {
    check_shape("matrix", matrix, shape)?;
    check_len("out", out, shape[1])?;
    let level = dispatch::level()?;
    par::for_each(
        shape[1].div_ceil(COLUMNS),
        matrix.len(),
        Chunks::new(out, COLUMNS),
        || (),
        |(), block, out| dispatch!(level, simd => add_up(simd, matrix, shape[1], block * COLUMNS, factor, out)),
    );
    Ok(())
}

/// The sums of the columns from `first`.
#[inline(always)]
fn add_up<S: Simd, E: Element>(simd: S, matrix: &[E], columns: usize, first: usize, factor: f64, out: &mut [E]) {
    let (len, lanes) = (out.len(), Vector::<S, E>::LEN);
    let mut sums = [0.0; COLUMNS];
    for rows in matrix.chunks(ROWS_A_RUN * columns) {
        let mut run = [E::Real::default(); COLUMNS];
        for row in rows.chunks_exact(columns) {
            let row = &row[first..first + len];
            let mut at = 0;
            while at + lanes <= len {
                store::<S, E::Real>(load(simd, row, at) + load::<S, E::Real>(simd, &run, at), &mut run, at);
                at += lanes;
            }
            for (sum, x) in run[at..len].iter_mut().zip(&row[at..]) {
                *sum += E::Real::from_f64(x.to_f64());
            }
        }
        for (sum, run) in sums.iter_mut().zip(run) {
            *sum += run.to_f64();
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = E::from_f64(factor * sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::on_every_level;
    use crate::half::{Bf16, F16};
    use crate::par::serial_and_parallel;
    use crate::testing::{SIZES, Tested, assert_close, random, same_bits, widen};

    fn check<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for columns in SIZES {
                for rows in [0, 1, 16, 37] {
                    let matrix: Vec<E> = random(rows * columns, 1.0, 1);
                    let [sums, parallel] = serial_and_parallel(|| {
                        let mut out = vec![E::from_f64(7.0); columns];
                        column_sums(&matrix, [rows, columns], -0.5, &mut out).unwrap();
                        out
                    });
                    same_bits(&sums, &parallel);
                    let mut expected = vec![0.0; columns];
                    for row in widen(&matrix).chunks(columns) {
                        expected.iter_mut().zip(row).for_each(|(sum, x)| *sum -= 0.5 * x);
                    }
                    assert_close(&sums, &expected, tolerance);
                }
            }
        });
    }

    #[test]
    fn agrees_with_f64() {
        check::<f32>(1e-5);
        check::<f64>(1e-14);
        check::<Bf16>(1e-5);
        check::<F16>(1e-5);
    }
}
