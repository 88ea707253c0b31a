//! Sample representation: `||s - t||^2 / ||t||^2`.

use fearless_simd::prelude::*;

use crate::rows::{self, Loss, Reduction, RowFormula, Scratch, weight_of};
use crate::simd::{Element, SumOfSquares, Vector, for_each_vector, load, splat, store};
use crate::{Error, check_shape, check_weight};

/// `||s_i - t_i||^2 / ||t_i||^2` of each row, 0 where `t_i` is 0, and its derivative in `s`; times its weight, where
/// there are weights.
///
/// A teacher's row of norm 0 leaves the ratio undefined; such a row neither costs nor teaches anything.
///
/// # Errors
///
/// Where lengths do not fit, or a weight is out of range.
pub fn sample<E: Element, T: Element<Real = E::Real>>(
    student_features: &[E],
    teacher_features: &[T],
    weight: Option<&[E::Real]>,
    shape: [usize; 2],
    reduction: Reduction,
    loss: Loss<'_, E::Real>,
    grad: Option<&mut [E]>,
) -> Result<(), Error> {
    check_shape("student_features", student_features, shape)?;
    check_shape("teacher_features", teacher_features, shape)?;
    check_weight(weight, shape[0])?;
    let scale = reduction.scale(shape[0]);
    let formula = Sample { student_features, teacher_features, weight, features: shape[1], scale };
    rows::run(&formula, shape, Some(loss), grad)
}

struct Sample<'a, E: Element, T> {
    student_features: &'a [E],
    teacher_features: &'a [T],
    weight: Option<&'a [E::Real]>,
    features: usize,
    scale: f64,
}

impl<E: Element, T: Element<Real = E::Real>> RowFormula<E, T> for Sample<'_, E, T> {
    const NEUTRAL: [f64; 2] = [0.0; 2];

    #[inline(always)]
    fn operands(&self, row: usize) -> (&[E], &[T]) {
        let at = row * self.features;
        (&self.student_features[at..][..self.features], &self.teacher_features[at..][..self.features])
    }

    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        row: usize,
        (s, t): (&[E], &[T]),
        grad: Option<&mut [E]>,
        _scratch: &mut Scratch<E::Real>,
    ) -> f64 {
        let (mut distance, mut norm) = (SumOfSquares::new(simd), SumOfSquares::new(simd));
        for_each_vector!(simd, Vector<S, E>, s.len(), read [s, t], write [], sum [], |at, counted| {
            let t = load(simd, t, at);
            distance.add::<E::Real>(counted.of(load(simd, s, at) - t));
            norm.add::<E::Real>(counted.of(t));
        });
        let (distance, norm) = (distance.total(), norm.total());
        let weight = weight_of(self.weight, row);
        if norm == 0.0 || weight == 0.0 {
            if let Some(grad) = grad {
                grad.fill(E::default());
            }
            return 0.0;
        }
        let scale = self.scale * weight;
        if let Some(grad) = grad {
            // The factor may lie outside the range of an f32 where the result does not: a power of two, exact in
            // the product, takes its magnitude.
            let power = (-norm.log2() / 2.0).round().exp2();
            let slope = splat::<S, E::Real>(simd, 2.0 * scale / norm / power);
            let power = splat::<S, E::Real>(simd, power);
            for_each_vector!(simd, Vector<S, E>, s.len(), read [s, t], write [grad], sum [], stream [grad], |at, _counted| {
                let difference = load(simd, s, at) - load(simd, t, at);
                store::<S, E>(difference * power * slope, grad, at);
            });
        }
        scale * distance / norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::on_every_level;
    use crate::half::{Bf16, F16};
    use crate::par::serial_and_parallel;
    use crate::testing::{SIZES, Tested, assert_close, random, same_bits, weights, widen};

    fn run<E: Element, T: Element<Real = E::Real>>(
        s: &[E],
        t: &[T],
        features: usize,
        reduction: Reduction,
    ) -> (Vec<E::Real>, Vec<E>) {
        let rows = s.len() / features;
        let mut loss = vec![E::Real::default(); rows];
        let mut grad = vec![E::from_f64(7.0); s.len()];
        sample(s, t, None, [rows, features], reduction, Loss::Each(&mut loss), Some(&mut grad)).unwrap();
        (loss, grad)
    }

    fn check<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for features in SIZES {
                for factor in [1.0, E::FACTORS[1], E::FACTORS[0]] {
                    let rows = 5;
                    let s: Vec<E> = random(rows * features, factor, 1);
                    let t: Vec<E> = random(rows * features, factor, 2);
                    let [(loss, grad), parallel] = serial_and_parallel(|| run(&s, &t, features, Reduction::Mean));
                    same_bits(&loss, &parallel.0);
                    same_bits(&grad, &parallel.1);
                    for (i, loss) in loss.iter().enumerate() {
                        let row = i * features..(i + 1) * features;
                        let (s, t) = (widen(&s[row.clone()]), widen(&t[row.clone()]));
                        let norm: f64 = t.iter().map(|t| t * t).sum();
                        let difference: Vec<f64> = s.iter().zip(&t).map(|(s, t)| s - t).collect();
                        let distance: f64 = difference.iter().map(|d| d * d).sum();
                        assert_close(&[loss.to_f64()], &[0.2 * distance / norm], tolerance);
                        let slope: Vec<f64> = difference.iter().map(|d| 0.4 * d / norm).collect();
                        assert_close(&grad[row], &slope, tolerance);
                    }
                }
            }
        });
    }

    #[test]
    fn agrees_with_f64() {
        // Six roundings one after another; nothing cancels.
        check::<f32>(8e-7);
        check::<Bf16>(8e-7);
        check::<F16>(8e-7);
        check::<f64>(1e-14);
    }

    fn check_mixture<T: Element<Real = f32>>() {
        on_every_level(|| {
            for features in SIZES {
                let s: Vec<f32> = random(3 * features, 1.0, 1);
                let t: Vec<T> = random(3 * features, 1.0, 2);
                let widened: Vec<f32> = t.iter().map(|t| t.to_f64() as f32).collect();
                let (loss, grad) = run(&s, &t, features, Reduction::Mean);
                let (expected, slope) = run(&s, &widened, features, Reduction::Mean);
                same_bits(&loss, &expected);
                same_bits(&grad, &slope);
            }
        });
    }

    #[test]
    fn a_teacher_in_half_precision_is_as_if_widened() {
        check_mixture::<Bf16>();
        check_mixture::<F16>();
    }

    #[test]
    fn weights_multiply_what_a_row_adds() {
        on_every_level(|| {
            let (rows, features) = (7, 37);
            let mut s: Vec<f64> = random(rows * features, 1.0, 1);
            let t: Vec<f64> = random(rows * features, 1.0, 2);
            let call = |s: &[f64], weight: Option<&[f64]>| {
                let (mut loss, mut grad) = (vec![7.0; rows], vec![7.0; s.len()]);
                let each = Loss::Each(&mut loss);
                sample(s, &t, weight, [rows, features], Reduction::Mean, each, Some(&mut grad)).unwrap();
                (loss, grad)
            };
            let plain = call(&s, None);
            assert_eq!(call(&s, Some(&vec![1.0; rows])), plain);
            s[0] = f64::NAN; // of a row of weight 0
            let weights: Vec<f64> = weights(rows);
            let (loss, grad) = call(&s, Some(&weights));
            for (i, weight) in weights.iter().enumerate() {
                assert_close(&[loss[i]], &[weight * plain.0[i]], 1e-15);
                let row = i * features..(i + 1) * features;
                let expected: Vec<f64> = plain.1[row.clone()].iter().map(|x| weight * x).collect();
                assert_close(&grad[row], &expected, 1e-15);
            }
        });
    }

    #[test]
    fn a_teacher_of_zeros_costs_nothing() {
        on_every_level(|| {
            for features in [2, 37] {
                let s: Vec<f32> = random(2 * features, 1.0, 1);
                let mut t = vec![0.0; 2 * features];
                t[2 * features - 1] = 1e-30;
                let (loss, grad) = run(&s, &t, features, Reduction::Sum);
                assert_eq!(loss[0], 0.0);
                assert!(grad[..features].iter().all(|&g| g == 0.0));
                assert_eq!(loss[1], f32::INFINITY); // about 1e60
                t[2 * features - 1] = f32::NAN;
                assert!(run(&s, &t, features, Reduction::Sum).0[1].is_nan());
            }
        });
    }
}
