//! Softened logits: `T^2 KL(softmax(q / T) || softmax(s / T))`.

use fearless_simd::prelude::*;

use crate::rows::{self, Loss, RowFormula, Scratch};
use crate::simd::{Element, Real, Sum, Vector, for_each_vector, load, polynomial, splat, store};
use crate::softmax::{Softmax, pieces};
use crate::{Error, check_shape, check_temperature};

/// `scale T^2 KL(softmax(q_i / T) || softmax(s_i / T))` of each row, and its derivative in `s`.
///
/// # Errors
///
/// Where lengths do not fit, or the temperature is not positive and finite.
pub fn kd<E: Element>(
    student_logits: &[E],
    teacher_logits: &[E],
    shape: [usize; 2],
    temperature: f64,
    scale: f64,
    loss: Loss<'_, E::Real>,
    grad: Option<&mut [E]>,
) -> Result<(), Error> {
    check_temperature(temperature)?;
    check_shape("student_logits", student_logits, shape)?;
    check_shape("teacher_logits", teacher_logits, shape)?;
    let formula = Kd { student_logits, teacher_logits, classes: shape[1], temperature, scale };
    rows::run(&formula, shape, Some(loss), grad)
}

struct Kd<'a, E> {
    student_logits: &'a [E],
    teacher_logits: &'a [E],
    classes: usize,
    temperature: f64,
    scale: f64,
}

impl<E: Element> RowFormula<E> for Kd<'_, E> {
    const NEUTRAL: f64 = f64::NEG_INFINITY;

    #[inline(always)]
    fn operands(&self, row: usize) -> [&[E]; 2] {
        [self.student_logits, self.teacher_logits].map(|logits| &logits[row * self.classes..][..self.classes])
    }

    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        _row: usize,
        [s, q]: [&[E]; 2],
        grad: Option<&mut [E]>,
        Scratch([s_exp, q_exp]): &mut Scratch<E::Real>,
    ) -> f64 {
        let softmaxes = [Softmax::of(simd, s, self.temperature, s_exp), Softmax::of(simd, q, self.temperature, q_exp)];
        let kept = [&mut s_exp[..], &mut q_exp[..]];
        let mut divergence = self.divergence::<S, false>(simd, [s, q], &softmaxes, kept, grad);
        if divergence < CLOSE_BELOW {
            let kept = [&mut s_exp[..], &mut q_exp[..]];
            divergence = self.divergence::<S, true>(simd, [s, q], &softmaxes, kept, None);
        }
        self.scale * self.temperature * self.temperature * divergence
    }
}

/// A divergence below this is computed again, without cancellation.
const CLOSE_BELOW: f64 = 1.0 / 256.0;

impl<E: Element> Kd<'_, E> {
    /// `KL(Q || P)` of a row, and its gradient.
    ///
    /// With `d = log P - log Q` it is `sum_k -Q_k d_k`, which costs little. As `P` and `Q` both add up to 1, it is
    /// also `sum_k Q_k (exp(d_k) - 1 - d_k)`, of which no term is negative: nothing cancels where they are `CLOSE`.
    #[inline(always)]
    fn divergence<S: Simd, const CLOSE: bool>(
        &self,
        simd: S,
        [s, q]: [&[E]; 2],
        [student, teacher]: &[Softmax<E::Real>; 2],
        [s_exp, q_exp]: [&mut [E::Real]; 2],
        mut grad: Option<&mut [E]>,
    ) -> f64 {
        let (s_max, q_max) = (Vector::<S, E>::splat(simd, student.max), Vector::<S, E>::splat(simd, teacher.max));
        let per_temperature = splat::<S, E::Real>(simd, 1.0 / self.temperature);
        let log_of_sums = splat::<S, E::Real>(simd, (student.sum / teacher.sum).ln());
        let per_s_sum = splat::<S, E::Real>(simd, 1.0 / student.sum);
        let per_q_sum = splat::<S, E::Real>(simd, 1.0 / teacher.sum);
        let slope = splat::<S, E::Real>(simd, self.scale * self.temperature);
        let mut sum = Sum::<S, E::Real>::new(simd);
        let pieces = pieces(s.len());
        let recompute = pieces.len() > 1;
        for piece in pieces {
            let (s, q) = (&s[piece.clone()], &q[piece.clone()]);
            if recompute {
                student.exponentials(simd, s, s_exp);
                teacher.exponentials(simd, q, q_exp);
            }
            let mut grad = grad.as_deref_mut().map(|grad| &mut grad[piece]);
            for_each_vector!(simd, Vector<S, E>, s.len(), [sum], |at, counted| {
                let difference = (load(simd, s, at) - s_max) - (load(simd, q, at) - q_max);
                let d = difference * per_temperature - log_of_sums;
                let p_k = load::<S, E::Real>(simd, s_exp, at) * per_s_sum;
                let q_k = load::<S, E::Real>(simd, q_exp, at) * per_q_sum;
                // Where the teacher gives nothing, `d` may be anything.
                let nothing = q_k.simd_eq(E::Real::default());
                let term = if CLOSE {
                    let near = q_k * d * d * polynomial::<S, E::Real>(simd, d, E::Real::DIVERGENCE);
                    let far = p_k - q_k - q_k * d;
                    let term = d.abs().simd_lt(E::Real::from_f64(0.5)).select(near, far);
                    nothing.select(p_k, term)
                } else {
                    nothing.select(q_k, -(q_k * d))
                };
                sum.add(counted.of(term));
                if let Some(grad) = &mut grad {
                    store::<S, E>((p_k - q_k) * slope, grad, at);
                }
            });
        }
        sum.total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::on_every_level;
    use crate::half::{Bf16, F16};
    use crate::par::serial_and_parallel;
    use crate::testing::{SIZES, Tested, assert_close, random, same_bits, widen};

    /// The loss and the gradient of a row in f64, naively.
    fn truth(s: &[f64], q: &[f64], temperature: f64) -> (f64, Vec<f64>) {
        let log_softmax = |x: &[f64]| -> Vec<f64> {
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = x.iter().map(|x| ((x - max) / temperature).exp()).sum::<f64>().ln();
            x.iter().map(|x| (x - max) / temperature - log_sum).collect()
        };
        let (p, q) = (log_softmax(s), log_softmax(q));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| if q.exp() == 0.0 { 0.0 } else { q.exp() * (q - p) }).sum();
        let grad = p.iter().zip(&q).map(|(p, q)| temperature * (p.exp() - q.exp())).collect();
        (temperature * temperature * kl, grad)
    }

    fn run<E: Element>(s: &[E], q: &[E], classes: usize, temperature: f64, scale: f64) -> (Vec<E::Real>, Vec<E>) {
        let mut loss = vec![E::Real::default(); s.len() / classes];
        let mut grad = vec![E::default(); s.len()];
        kd(s, q, [s.len() / classes, classes], temperature, scale, Loss::Each(&mut loss), Some(&mut grad)).unwrap();
        (loss, grad)
    }

    fn check<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for classes in SIZES {
                for (factor, temperature) in [(3.0, 4.0), (10.0, 1.0), (E::FACTORS[1], 3.0), (E::FACTORS[0], 0.1)] {
                    let (rows, scale) = (5, 0.25);
                    let s: Vec<E> = random(rows * classes, factor, 1);
                    let q: Vec<E> = random(rows * classes, factor, 2);
                    let [(loss, grad), parallel] = serial_and_parallel(|| run(&s, &q, classes, temperature, scale));
                    same_bits(&loss, &parallel.0);
                    same_bits(&grad, &parallel.1);
                    let mut total = E::Real::default();
                    kd(&s, &q, [rows, classes], temperature, scale, Loss::Total(&mut total), None).unwrap();
                    let mut sum = 0.0;
                    for (i, loss) in loss.iter().enumerate() {
                        let row = i * classes..(i + 1) * classes;
                        let (expected, slope) = truth(&widen(&s[row.clone()]), &widen(&q[row.clone()]), temperature);
                        sum += expected * scale;
                        // Near 0 the truth itself, written like this, is only good to so much.
                        let error = (loss.to_f64() - expected * scale).abs();
                        let bound = tolerance * expected * scale + 1e-15 * temperature * temperature;
                        assert!(error <= bound, "{classes}: {} not {}", loss, expected * scale);
                        let slope: Vec<f64> = slope.iter().map(|x| x * scale).collect();
                        assert_close(&grad[row], &slope, tolerance);
                    }
                    assert!((total.to_f64() - sum).abs() <= tolerance * sum + 1e-14 * temperature * temperature);
                }
            }
        });
    }

    #[test]
    fn agrees_with_f64() {
        check::<f32>(2e-6);
        check::<Bf16>(2e-6);
        check::<F16>(2e-6);
        check::<f64>(1e-13);
    }

    #[test]
    fn close_distributions_do_not_cancel() {
        on_every_level(|| {
            let classes = 1000;
            let q: Vec<f32> = random(classes, 2.0, 1);
            let step: Vec<f32> = random(classes, 1e-3, 2);
            let s: Vec<f32> = q.iter().zip(&step).map(|(q, step)| q + step).collect();
            let (expected, _) = truth(&widen(&s), &widen(&q), 4.0);
            let (loss, _) = run(&s, &q, classes, 4.0, 1.0);
            assert!((f64::from(loss[0]) / expected - 1.0).abs() < 1e-3, "{} not {expected}", loss[0]);
            assert_eq!(run(&q, &q, classes, 4.0, 1.0).0, [0.0]);
        });
    }

    #[test]
    fn masked_infinite_and_missing_logits() {
        on_every_level(|| {
            for classes in [3, 9, 37, 5000] {
                let loss_of = |change: &dyn Fn(&mut [f32], &mut [f32])| {
                    let mut s: Vec<f32> = random(classes, 2.0, 1);
                    let mut q: Vec<f32> = random(classes, 2.0, 2);
                    change(&mut s, &mut q);
                    let (loss, grad) = run(&s, &q, classes, 4.0, 1.0);
                    let (expected, slope) = truth(&widen(&s), &widen(&q), 4.0);
                    (f64::from(loss[0]), expected, widen(&grad), slope)
                };
                for k in [0, classes / 2, classes - 1] {
                    let masked = f32::NEG_INFINITY;
                    let in_both: &dyn Fn(&mut [f32], &mut [f32]) = &|s, q| (s[k], q[k]) = (masked, masked);
                    for change in [in_both, &|_, q| q[k] = masked] {
                        let (loss, expected, grad, slope) = loss_of(change);
                        assert!((loss / expected - 1.0).abs() < 1e-5, "{classes}, {k}: {loss} not {expected}");
                        assert_close(&grad, &slope, 1e-6);
                    }
                    assert_eq!(loss_of(&|s, _| s[k] = masked).0, f64::INFINITY);
                    for value in [f32::NAN, f32::INFINITY] {
                        assert!(loss_of(&|s, _| s[k] = value).0.is_nan());
                        assert!(loss_of(&|_, q| q[k] = value).0.is_nan());
                    }
                }
                assert!(loss_of(&|s, _| s.fill(f32::NEG_INFINITY)).0.is_nan());
                assert!(loss_of(&|_, q| q.fill(f32::NEG_INFINITY)).0.is_nan());
            }
        });
    }

    #[test]
    fn nothing_is_written_where_lengths_do_not_fit() {
        let mut loss = 7.0_f32;
        let error = kd(&[0.0_f32; 6], &[0.0; 4], [2, 3], 1.0, 1.0, Loss::Total(&mut loss), None);
        assert_eq!(error, Err(Error::Length { argument: "teacher_logits", len: 4, expected: 6 }));
        assert_eq!(loss, 7.0);
    }
}
