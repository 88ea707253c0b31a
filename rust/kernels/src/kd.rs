//! Softened logits: `T^2` times a divergence between `P = softmax(s / T)` and `Q = softmax(q / T)`.

use std::ops::Range;

use fearless_simd::prelude::*;

use crate::exp::ln_1p;
use crate::rows::{self, Kept, Loss, Reduction, RowFormula, Scratch, weight_of};
use crate::simd::{self, Element, Real, Sum, Vector, for_each_vector, load, polynomial, splat, store};
use crate::softmax::{Softmax, pieces};
use crate::{Error, check_labels, check_len, check_shape, check_temperature, check_weight};

/// How far the student's belief `P` is from the teacher's `Q`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// `KL(Q || P)`.
    Forward,
    /// `KL(P || Q)`.
    Reverse,
    /// `beta KL(Q || M) + (1 - beta) KL(P || M)` with `M = beta Q + (1 - beta) P`, for `beta` between 0 and 1.
    JensenShannon {
        /// The teacher's share.
        beta: f64,
    },
}

/// `T^2` times the divergence of each row, and its derivative in `s`; times its weight, where there are weights. A row
/// whose label is `ignore_index` counts nothing; without labels all count.
///
/// # Errors
///
/// Where lengths do not fit, the temperature, `beta` or a weight is out of range, or a label is neither a class nor
/// `ignore_index`.
pub fn kd<E: Element, T: Element<Real = E::Real>>(
    student_logits: &[E],
    teacher_logits: &[T],
    target: Option<&[i64]>,
    weight: Option<&[E::Real]>,
    shape: [usize; 2],
    temperature: f64,
    divergence: Divergence,
    ignore_index: i64,
    reduction: Reduction,
    loss: Loss<'_, E::Real>,
    grad: Option<&mut [E]>,
) -> Result<(), Error> {
    check_temperature(temperature)?;
    if let Divergence::JensenShannon { beta } = divergence
        && !(beta > 0.0 && beta < 1.0)
    {
        return Err(Error::Beta(beta));
    }
    check_shape("student_logits", student_logits, shape)?;
    check_shape("teacher_logits", teacher_logits, shape)?;
    check_weight(weight, shape[0])?;
    let mut counted = shape[0];
    if let Some(target) = target {
        check_len("target", target, shape[0])?;
        check_labels(target, Some(shape[1]), ignore_index)?;
        counted = target.iter().filter(|&&label| label != ignore_index).count();
    }
    let slope = reduction.scale(counted) * temperature;
    let classes = shape[1];
    let formula =
        Kd { student_logits, teacher_logits, target, weight, classes, temperature, divergence, ignore_index, slope };
    rows::run(&formula, shape, Some(loss), grad)
}

struct Kd<'a, E: Element, T> {
    student_logits: &'a [E],
    teacher_logits: &'a [T],
    target: Option<&'a [i64]>,
    weight: Option<&'a [E::Real]>,
    classes: usize,
    temperature: f64,
    divergence: Divergence,
    ignore_index: i64,
    /// `T` times what the reduction multiplies a row by: the factor of the derivative in `s / T`, times `T`.
    slope: f64,
}

impl<E: Element, T: Element<Real = E::Real>> RowFormula<E, T> for Kd<'_, E, T> {
    const NEUTRAL: [f64; 2] = [f64::NEG_INFINITY; 2];

    #[inline(always)]
    fn operands(&self, row: usize) -> (&[E], &[T]) {
        let at = row * self.classes;
        (&self.student_logits[at..][..self.classes], &self.teacher_logits[at..][..self.classes])
    }

    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        row: usize,
        (s, q): (&[E], &[T]),
        grad: Option<&mut [E]>,
        Scratch([s_kept, q_kept]): &mut Scratch<E::Real>,
    ) -> f64 {
        let weight = weight_of(self.weight, row);
        if weight == 0.0 || self.target.is_some_and(|target| target[row] == self.ignore_index) {
            if let Some(grad) = grad {
                grad.fill(E::default());
            }
            return 0.0;
        }
        let slope = self.slope * weight;
        let divergence = match self.divergence {
            Divergence::Forward => {
                let pair = Pair::of(simd, (q, s), self.temperature, [q_kept, s_kept]);
                if let Some(grad) = grad {
                    pair.forward_gradient(simd, slope, grad);
                }
                pair.kl(simd, (q, s))
            }
            Divergence::Reverse => {
                let pair = Pair::of(simd, (s, q), self.temperature, [s_kept, q_kept]);
                let divergence = pair.kl(simd, (s, q));
                if let Some(grad) = grad {
                    pair.reverse_gradient(simd, slope, divergence, (s, q), grad);
                }
                divergence
            }
            Divergence::JensenShannon { beta } => {
                let pair = Pair::of(simd, (s, q), self.temperature, [s_kept, q_kept]);
                pair.jensen_shannon(simd, slope, beta, s.len(), grad)
            }
        };
        slope * self.temperature * divergence
    }
}

/// The derivatives, times a factor.
impl<R: Real> Pair<'_, R> {
    /// `P - Q`, the derivative of `KL(Q || P)` in `s / T`; of teacher and student.
    #[inline(always)]
    fn forward_gradient<S: Simd, E: Element<Real = R>>(&self, simd: S, slope: f64, grad: &mut [E]) {
        let slope = splat::<S, R>(simd, slope);
        for (i, piece) in pieces(grad.len()) {
            let [per_q_sum, per_s_sum] = self.per_sums(simd, i);
            let [q_exp, s_exp] = self.exponentials(piece.clone());
            let grad = &mut grad[piece];
            for_each_vector!(simd, Vector<S, E>, grad.len(), read [s_exp, q_exp], write [grad], sum [], stream [grad], |at, _counted| {
                // Both rounded alike, so that equals cancel.
                let p_k = load::<S, R>(simd, s_exp, at) * per_s_sum;
                let q_k = load::<S, R>(simd, q_exp, at) * per_q_sum;
                store::<S, E>((p_k - q_k) * slope, grad, at);
            });
        }
    }

    /// `P_k (log P_k - log Q_k - KL)`, the derivative of `KL(P || Q)` in `s / T`; of student and teacher.
    #[inline(always)]
    fn reverse_gradient<S: Simd, E: Element<Real = R>, T: Element<Real = R>>(
        &self,
        simd: S,
        slope: f64,
        divergence: f64,
        (s, q): (&[E], &[T]),
        grad: &mut [E],
    ) {
        let logs = self.logs(simd);
        let divergence = splat::<S, R>(simd, divergence);
        let slope = splat::<S, R>(simd, slope);
        for (i, piece) in pieces(s.len()) {
            let [slope, _] = self.per_sums(simd, i).map(|per_sum| per_sum * slope);
            let [s_exp, _] = self.exponentials(piece.clone());
            let (s, q, grad) = (&s[piece.clone()], &q[piece.clone()], &mut grad[piece]);
            for_each_vector!(simd, Vector<S, E>, grad.len(), read [s, q, s_exp], write [grad], sum [], stream [grad], |at, _counted| {
                let p_k = load::<S, R>(simd, s_exp, at) * slope;
                let beyond = logs.of(load(simd, s, at), load(simd, q, at)) - divergence;
                // Where the student gives nothing, the difference of the logarithms may be anything.
                let nothing = p_k.simd_eq(R::default());
                store::<S, E>(nothing.select(p_k, p_k * beyond), grad, at);
            });
        }
    }

    /// The Jensen-Shannon divergence of a row, and its derivative `(1 - beta) P_k (l_k - sum_j P_j l_j)` in `s / T`,
    /// with `l = log(P / M)`; of student and teacher.
    #[inline(always)]
    fn jensen_shannon<S: Simd, E: Element<Real = R>>(
        &self,
        simd: S,
        slope: f64,
        beta: f64,
        len: usize,
        grad: Option<&mut [E]>,
    ) -> f64 {
        let (mut divergence, mut mean) = (Sum::<S, R>::new(simd), Sum::<S, R>::new(simd));
        for (i, piece) in pieces(len) {
            let mixture = self.mixture(simd, beta, i);
            let (len, [s_exp, q_exp]) = (piece.len(), self.exponentials(piece));
            for_each_vector!(simd, Vector<S, E>, len, read [s_exp, q_exp], write [], sum [divergence, mean], |at, counted| {
                let [p_k, q_k] = mixture.beliefs([load(simd, s_exp, at), load(simd, q_exp, at)]);
                let [p_log, q_log] = mixture.logs::<S, R>(simd, [p_k, q_k]);
                mean.add(counted.of(p_k * p_log));
                divergence.add(counted.of(mixture.sum([p_k * p_log, q_k * q_log])));
            });
        }
        let mean = splat::<S, R>(simd, mean.total());
        if let Some(grad) = grad {
            let slope = splat::<S, R>(simd, slope * (1.0 - beta));
            for (i, piece) in pieces(len) {
                let mixture = self.mixture(simd, beta, i);
                let [s_exp, q_exp] = self.exponentials(piece.clone());
                let grad = &mut grad[piece];
                for_each_vector!(simd, Vector<S, E>, grad.len(), read [s_exp, q_exp], write [grad], sum [], stream [grad], |at, _counted| {
                    let [p_k, q_k] = mixture.beliefs([load(simd, s_exp, at), load(simd, q_exp, at)]);
                    let [p_log, _] = mixture.logs::<S, R>(simd, [p_k, q_k]);
                    store::<S, E>(p_k * (p_log - mean) * slope, grad, at);
                });
            }
        }
        divergence.total()
    }
}

/// Two rows of logits `a` and `b`, of which `A` and `B` are the softmaxes.
struct Pair<'a, R> {
    a: Softmax<R>,
    b: Softmax<R>,
    /// `sum_k exp((a_k - max a) / T) ((a_k - max a) - (b_k - max b))`.
    dot: f64,
    temperature: f64,
    kept: [&'a Kept<R>; 2],
}

/// A divergence below this is computed again, without cancellation.
const CLOSE_BELOW: f64 = 1.0 / 256.0;

impl<'a, R: Real> Pair<'a, R> {
    /// Reads both rows, piece by piece; keeps their exponentials.
    #[inline(always)]
    fn of<S: Simd, A: Element<Real = R>, B: Element<Real = R>>(
        simd: S,
        (a, b): (&[A], &[B]),
        temperature: f64,
        [a_kept, b_kept]: [&'a mut Kept<R>; 2],
    ) -> Self {
        let mut softmaxes = [Softmax::nothing(temperature); 2];
        let [a_softmax, b_softmax] = &mut softmaxes;
        let mut dot = 0.0;
        for (i, piece) in pieces(a.len()) {
            let before = a_softmax.sum;
            let rise = [
                a_softmax.raise(simd::max(simd, &a[piece.clone()])),
                b_softmax.raise(simd::max(simd, &b[piece.clone()])),
            ];
            if rise != [0.0; 2] && before != 0.0 {
                dot += before * (rise[1] - rise[0]);
                let shrink = (-rise[0] / temperature).exp();
                // Nothing is left of the terms so far, be they infinite.
                dot = if shrink == 0.0 && dot.is_infinite() { 0.0 } else { dot * shrink };
            }
            // One after the other: both in one loop need more registers than there are.
            a_softmax.add(simd, a, i, piece.clone(), a_kept);
            b_softmax.add(simd, b, i, piece.clone(), b_kept);
            let maxima = [a_softmax.max, b_softmax.max].map(|max| R::Native::<S>::splat(simd, max));
            let zero = splat::<S, R>(simd, 0.0);
            let (a, b, a_exp) = (&a[piece.clone()], &b[piece.clone()], &a_kept.exponentials[piece]);
            let mut sum = Sum::<S, R>::new(simd);
            for_each_vector!(simd, Vector<S, R>, a.len(), read [a, b, a_exp], write [], sum [sum], |at, counted| {
                let a_e = load::<S, R>(simd, a_exp, at);
                let difference = (load(simd, a, at) - maxima[0]) - (load(simd, b, at) - maxima[1]);
                // Where `A` is 0 the difference may be anything.
                sum.add(counted.of(a_e * a_e.simd_eq(zero).select(zero, difference)));
            });
            dot += sum.total();
        }
        let [mut a, mut b] = softmaxes;
        a.finish();
        b.finish();
        Self { a, b, dot, temperature, kept: [a_kept, b_kept] }
    }

    /// The exponentials of a piece.
    #[inline(always)]
    fn exponentials(&self, piece: Range<usize>) -> [&'a [R]; 2] {
        let [a, b] = self.kept;
        [&a.exponentials[piece.clone()], &b.exponentials[piece]]
    }

    /// What those of a piece are to be multiplied by.
    #[inline(always)]
    fn per_sums<S: Simd>(&self, simd: S, index: usize) -> [R::Native<S>; 2] {
        let [a, b] = self.kept;
        [splat::<S, R>(simd, self.a.per_sum(index, a)), splat::<S, R>(simd, self.b.per_sum(index, b))]
    }

    /// `KL(A || B)`: `sum_k A_k (log A_k - log B_k)`, of which the sums hold all that is needed. As `A` and `B` both add
    /// up to 1, it is also `sum_k A_k (exp(d_k) - 1 - d_k)` with `d = log B - log A`, of which no term is negative:
    /// nothing cancels where they are close.
    #[inline(always)]
    fn kl<S: Simd, A: Element<Real = R>, B: Element<Real = R>>(&self, simd: S, (a, b): (&[A], &[B])) -> f64 {
        let divergence = self.dot / self.temperature / self.a.sum + (self.b.sum / self.a.sum).ln();
        if divergence >= CLOSE_BELOW || divergence.is_nan() {
            return divergence;
        }
        let logs = self.logs(simd);
        let mut sum = Sum::<S, R>::new(simd);
        for (i, piece) in pieces(a.len()) {
            let [per_a_sum, per_b_sum] = self.per_sums(simd, i);
            let [a_exp, b_exp] = self.exponentials(piece.clone());
            let (a, b) = (&a[piece.clone()], &b[piece]);
            for_each_vector!(simd, Vector<S, R>, a.len(), read [a, b, a_exp, b_exp], write [], sum [sum], |at, counted| {
                let a_k = load::<S, R>(simd, a_exp, at) * per_a_sum;
                let b_k = load::<S, R>(simd, b_exp, at) * per_b_sum;
                let d = -logs.of(load(simd, a, at), load(simd, b, at));
                let near = a_k * d * d * polynomial::<S, R>(simd, d, R::DIVERGENCE);
                let far = b_k - a_k - a_k * d;
                let term = d.abs().simd_lt(R::from_f64(0.5)).select(near, far);
                sum.add(counted.of(a_k.simd_eq(R::default()).select(b_k, term)));
            });
        }
        sum.total()
    }

    /// Makes `log A - log B` of logits.
    #[inline(always)]
    fn logs<S: Simd>(&self, simd: S) -> Logs<R::Native<S>> {
        Logs {
            a_max: R::Native::<S>::splat(simd, self.a.max),
            b_max: R::Native::<S>::splat(simd, self.b.max),
            per_temperature: splat::<S, R>(simd, 1.0 / self.temperature),
            log_of_sums: splat::<S, R>(simd, (self.a.sum / self.b.sum).ln()),
        }
    }

    /// What the Jensen-Shannon divergence of `A` and `B` needs of `M = beta B + (1 - beta) A`.
    #[inline(always)]
    fn mixture<S: Simd>(&self, simd: S, beta: f64, index: usize) -> Mixture<R::Native<S>> {
        Mixture {
            per_sums: self.per_sums(simd, index),
            shares: [splat::<S, R>(simd, 1.0 - beta), splat::<S, R>(simd, beta)],
        }
    }
}

/// `M = (1 - beta) A + beta B`.
#[derive(Clone, Copy)]
struct Mixture<V> {
    per_sums: [V; 2],
    shares: [V; 2],
}

impl<V> Mixture<V> {
    /// `A_k` and `B_k` of exponentials.
    #[inline(always)]
    fn beliefs<S: Simd>(self, exponentials: [V; 2]) -> [V; 2]
    where
        V: SimdFloat<S>,
    {
        [exponentials[0] * self.per_sums[0], exponentials[1] * self.per_sums[1]]
    }

    /// `log(A_k / M_k)` and `log(B_k / M_k)`, 0 where `A_k` or `B_k` is.
    #[inline(always)]
    fn logs<S: Simd, R: Real<Native<S> = V>>(self, simd: S, [a_k, b_k]: [V; 2]) -> [V; 2]
    where
        V: SimdFloat<S, Element = R>,
    {
        let m_k = self.sum([a_k, b_k]);
        // `A / M - 1 = beta u` and `B / M - 1 = -(1 - beta) u`: exact where `A` and `B` are close.
        let u = (a_k - b_k) / m_k;
        let zero = splat::<S, R>(simd, 0.0);
        let log_a = a_k.simd_eq(zero).select(zero, ln_1p::<S, R>(simd, u * self.shares[1]));
        let log_b = b_k.simd_eq(zero).select(zero, ln_1p::<S, R>(simd, -(u * self.shares[0])));
        [log_a, log_b]
    }

    /// `(1 - beta) x + beta y`.
    #[inline(always)]
    fn sum<S: Simd>(self, [x, y]: [V; 2]) -> V
    where
        V: SimdFloat<S>,
    {
        self.shares[0].mul_add(x, self.shares[1] * y)
    }
}

/// `log A - log B`: `((a - max a) - (b - max b)) / T - log(sum of A / sum of B)`.
#[derive(Clone, Copy)]
struct Logs<V> {
    a_max: V,
    b_max: V,
    per_temperature: V,
    log_of_sums: V,
}

impl<V> Logs<V> {
    #[inline(always)]
    fn of<S: Simd>(self, a: V, b: V) -> V
    where
        V: SimdFloat<S>,
    {
        ((a - self.a_max) - (b - self.b_max)).mul_sub(self.per_temperature, self.log_of_sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::on_every_level;
    use crate::half::{Bf16, F16};
    use crate::par::serial_and_parallel;
    use crate::testing::{SIZES, Tested, assert_close, random, same_bits, weights, widen};

    const IGNORED: i64 = -100;
    const DIVERGENCES: [Divergence; 4] = [
        Divergence::Forward,
        Divergence::Reverse,
        Divergence::JensenShannon { beta: 0.5 },
        Divergence::JensenShannon { beta: 0.1 },
    ];

    /// The loss and the gradient of a row in f64, naively.
    fn truth(s: &[f64], q: &[f64], temperature: f64, divergence: Divergence) -> (f64, Vec<f64>) {
        let log_softmax = |x: &[f64]| -> Vec<f64> {
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = x.iter().map(|x| ((x - max) / temperature).exp()).sum::<f64>().ln();
            x.iter().map(|x| (x - max) / temperature - log_sum).collect()
        };
        let (log_p, log_q) = (log_softmax(s), log_softmax(q));
        let exp = |x: &[f64]| -> Vec<f64> { x.iter().map(|x| x.exp()).collect() };
        let (p, q) = (exp(&log_p), exp(&log_q));
        // `a log(a / b)`
        let kl = |a: &[f64], log_a: &[f64], log_b: &[f64]| -> f64 {
            (0..a.len()).map(|k| if a[k] == 0.0 { 0.0 } else { a[k] * (log_a[k] - log_b[k]) }).sum()
        };
        // `P (x - P . x)`: from the derivative in `P` to that in `s / T`.
        let through = |x: Vec<f64>| -> Vec<f64> {
            let x: Vec<f64> = x.iter().zip(&p).map(|(&x, &p)| if p == 0.0 { 0.0 } else { x }).collect();
            let mean: f64 = x.iter().zip(&p).map(|(x, p)| x * p).sum();
            x.iter().zip(&p).map(|(x, p)| p * (x - mean)).collect()
        };
        let (value, slope) = match divergence {
            Divergence::Forward => (kl(&q, &log_q, &log_p), p.iter().zip(&q).map(|(p, q)| p - q).collect()),
            Divergence::Reverse => {
                (kl(&p, &log_p, &log_q), through(log_p.iter().zip(&log_q).map(|(p, q)| p - q).collect()))
            }
            Divergence::JensenShannon { beta } => {
                let log_m: Vec<f64> = p.iter().zip(&q).map(|(p, q)| (beta * q + (1.0 - beta) * p).ln()).collect();
                let value = beta * kl(&q, &log_q, &log_m) + (1.0 - beta) * kl(&p, &log_p, &log_m);
                let slope = through(log_p.iter().zip(&log_m).map(|(p, m)| p - m).collect());
                (value, slope.iter().map(|x| (1.0 - beta) * x).collect())
            }
        };
        (temperature * temperature * value, slope.iter().map(|x: &f64| temperature * x).collect())
    }

    fn run<E: Element, T: Element<Real = E::Real>>(
        s: &[E],
        q: &[T],
        classes: usize,
        temperature: f64,
        divergence: Divergence,
    ) -> (Vec<E::Real>, Vec<E>) {
        let (mut loss, mut grad) = (vec![E::Real::default(); s.len() / classes], vec![E::default(); s.len()]);
        let (each, shape) = (Loss::Each(&mut loss), [s.len() / classes, classes]);
        kd(s, q, None, None, shape, temperature, divergence, IGNORED, Reduction::Sum, each, Some(&mut grad)).unwrap();
        (loss, grad)
    }

    fn check<E: Tested>(divergence: Divergence, tolerance: f64) {
        on_every_level(|| {
            for classes in SIZES {
                for (factor, temperature) in [(3.0, 4.0), (10.0, 1.0), (E::FACTORS[1], 3.0), (E::FACTORS[0], 0.1)] {
                    let rows = 5;
                    let s: Vec<E> = random(rows * classes, factor, 1);
                    let q: Vec<E> = random(rows * classes, factor, 2);
                    let [(loss, grad), parallel] =
                        serial_and_parallel(|| run(&s, &q, classes, temperature, divergence));
                    same_bits(&loss, &parallel.0);
                    same_bits(&grad, &parallel.1);
                    for (i, loss) in loss.iter().enumerate() {
                        let row = i * classes..(i + 1) * classes;
                        let (expected, slope) =
                            truth(&widen(&s[row.clone()]), &widen(&q[row.clone()]), temperature, divergence);
                        // Near 0 the truth itself, written like this, is only good to so much.
                        let error = (loss.to_f64() - expected).abs();
                        // And where distributions are close it is a sum of squares of what is good to a part of that.
                        let squares = tolerance / 4.0 * temperature * expected.sqrt();
                        let bound = tolerance * expected + squares + 1e-15 * temperature * temperature;
                        assert!(
                            error <= bound || loss.to_f64() == expected,
                            "{divergence:?}, {classes}, {factor}: {loss} not {expected}"
                        );
                        if !expected.is_finite() {
                            continue;
                        }
                        let largest = slope.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
                        // The logarithms cancel each other but for the rounding of the divergence.
                        let rounding = tolerance * (expected / temperature).max(0.1 * temperature) + E::UNDERFLOW;
                        for (got, expected) in widen(&grad[row]).iter().zip(&slope) {
                            let error = (got - expected).abs();
                            assert!(
                                error <= (tolerance + E::ROUNDING) * largest + rounding,
                                "{divergence:?}, {classes}, {factor}: {got} not {expected} of {largest}"
                            );
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn agrees_with_f64() {
        for divergence in DIVERGENCES {
            check::<f32>(divergence, 3e-6);
            check::<Bf16>(divergence, 3e-6);
            check::<F16>(divergence, 3e-6);
            check::<f64>(divergence, 1e-13);
        }
    }

    fn check_mixture<T: Element<Real = f32>>() {
        on_every_level(|| {
            for classes in SIZES {
                let s: Vec<f32> = random(3 * classes, 3.0, 1);
                let q: Vec<T> = random(3 * classes, 3.0, 2);
                let widened: Vec<f32> = q.iter().map(|q| q.to_f64() as f32).collect();
                for divergence in DIVERGENCES {
                    let (loss, grad) = run(&s, &q, classes, 4.0, divergence);
                    let (expected, slope) = run(&s, &widened, classes, 4.0, divergence);
                    same_bits(&loss, &expected);
                    same_bits(&grad, &slope);
                }
            }
        });
    }

    #[test]
    fn a_teacher_in_half_precision_is_as_if_widened() {
        check_mixture::<Bf16>();
        check_mixture::<F16>();
    }

    #[test]
    fn reductions_and_ignored_rows() {
        on_every_level(|| {
            let (rows, classes) = (6, 37);
            let mut s: Vec<f64> = random(rows * classes, 2.0, 1);
            let q: Vec<f64> = random(rows * classes, 2.0, 2);
            let target: Vec<i64> = vec![0, IGNORED, 36, 5, IGNORED, 1];
            for divergence in DIVERGENCES {
                let (each, slope) = run(&s, &q, classes, 2.0, divergence);
                s[classes] = f64::NAN;
                for reduction in [Reduction::Sum, Reduction::Mean] {
                    let (mut loss, mut grad) = (0.0, vec![7.0; s.len()]);
                    let (total, shape) = (Loss::Total(&mut loss), [rows, classes]);
                    let target = Some(&target[..]);
                    kd(&s, &q, target, None, shape, 2.0, divergence, IGNORED, reduction, total, Some(&mut grad))
                        .unwrap();
                    let scale = if reduction == Reduction::Sum { 1.0 } else { 0.25 };
                    assert_close(&[loss], &[scale * (each[0] + each[2] + each[3] + each[5])], 1e-14);
                    for (i, grad) in grad.chunks(classes).enumerate() {
                        let scale = if i == 1 || i == 4 { 0.0 } else { scale };
                        let expected: Vec<f64> = slope[i * classes..][..classes].iter().map(|x| scale * x).collect();
                        assert_close(grad, &expected, 1e-14);
                    }
                }
                s[classes] = 0.0;
            }
        });
    }

    #[test]
    fn weights_multiply_what_a_row_adds() {
        on_every_level(|| {
            let (rows, classes) = (7, 37);
            let mut s: Vec<f64> = random(rows * classes, 2.0, 1);
            let q: Vec<f64> = random(rows * classes, 2.0, 2);
            let weights: Vec<f64> = weights(rows);
            for divergence in DIVERGENCES {
                let call = |s: &[f64], weight: Option<&[f64]>| {
                    let (mut loss, mut grad) = (vec![7.0; rows], vec![7.0; s.len()]);
                    let (each, shape) = (Loss::Each(&mut loss), [rows, classes]);
                    let (reduction, grads) = (Reduction::Mean, Some(&mut grad[..]));
                    kd(s, &q, None, weight, shape, 2.0, divergence, IGNORED, reduction, each, grads).unwrap();
                    (loss, grad)
                };
                let plain = call(&s, None);
                assert_eq!(call(&s, Some(&vec![1.0; rows])), plain);
                s[0] = f64::NAN; // of a row of weight 0
                let (loss, grad) = call(&s, Some(&weights));
                s[0] = 0.0;
                for (i, weight) in weights.iter().enumerate() {
                    let row = i * classes..(i + 1) * classes;
                    let expected: Vec<f64> = plain.1[row.clone()].iter().map(|x| weight * x).collect();
                    if *weight == 0.0 {
                        assert!(loss[i] == 0.0 && grad[row].iter().all(|&x| x == 0.0));
                    } else {
                        assert_close(&[loss[i]], &[weight * plain.0[i]], 1e-15);
                        assert_close(&grad[row], &expected, 1e-15);
                    }
                }
            }
        });
    }

    #[test]
    fn close_distributions_do_not_cancel() {
        on_every_level(|| {
            let classes = 1000;
            let q: Vec<f32> = random(classes, 2.0, 1);
            let step: Vec<f32> = random(classes, 1e-3, 2);
            let s: Vec<f32> = q.iter().zip(&step).map(|(q, step)| q + step).collect();
            for divergence in DIVERGENCES {
                let (expected, _) = truth(&widen(&s), &widen(&q), 4.0, divergence);
                let (loss, _) = run(&s, &q, classes, 4.0, divergence);
                assert!(
                    (f64::from(loss[0]) / expected - 1.0).abs() < 1e-3,
                    "{divergence:?}: {} not {expected}",
                    loss[0]
                );
                let (loss, grad) = run(&q, &q, classes, 4.0, divergence);
                assert!(loss == [0.0] && grad.iter().all(|&x| x == 0.0), "{divergence:?}");
            }
        });
    }

    #[test]
    fn masked_infinite_and_missing_logits() {
        on_every_level(|| {
            for classes in [3, 9, 37, 5000] {
                for divergence in DIVERGENCES {
                    let loss_of = |change: &dyn Fn(&mut [f32], &mut [f32])| {
                        let mut s: Vec<f32> = random(classes, 2.0, 1);
                        let mut q: Vec<f32> = random(classes, 2.0, 2);
                        change(&mut s, &mut q);
                        let (loss, grad) = run(&s, &q, classes, 4.0, divergence);
                        let (expected, slope) = truth(&widen(&s), &widen(&q), 4.0, divergence);
                        (f64::from(loss[0]), expected, widen(&grad), slope)
                    };
                    let close = |(loss, expected, grad, slope): (f64, f64, Vec<f64>, Vec<f64>)| {
                        let error = (loss - expected).abs();
                        let bound = 1e-5 * expected + 4e-6 * expected.sqrt(); // as in `check`
                        assert!(error <= bound, "{divergence:?}, {classes}: {loss} not {expected}");
                        // The gradient is of beliefs, of which none is more than e times the mean of those that are left.
                        let left = slope.iter().filter(|x| **x != 0.0).count().max(1);
                        let largest = slope.iter().fold(4.0 * 2.0 * 2.72 / left as f64, |a, x| x.abs().max(a));
                        for (got, expected) in grad.iter().zip(&slope) {
                            let error = (got - expected).abs();
                            assert!(error <= 1e-6 * largest, "{divergence:?}, {classes}: {got} not {expected}");
                        }
                    };
                    let masked = f32::NEG_INFINITY;
                    for k in [0, classes / 2, classes - 1] {
                        close(loss_of(&|s, q| (s[k], q[k]) = (masked, masked)));
                        for (s_masked, infinite) in [(false, Divergence::Reverse), (true, Divergence::Forward)] {
                            let out = loss_of(&|s, q| if s_masked { s[k] = masked } else { q[k] = masked });
                            if divergence == infinite { assert_eq!(out.0, f64::INFINITY) } else { close(out) }
                        }
                        for value in [f32::NAN, f32::INFINITY] {
                            assert!(loss_of(&|s, _| s[k] = value).0.is_nan());
                            assert!(loss_of(&|_, q| q[k] = value).0.is_nan());
                        }
                    }
                    // Whole pieces of long rows.
                    for span in [0..classes / 2, classes / 2..classes] {
                        close(loss_of(&|s, q| {
                            s[span.clone()].fill(masked);
                            q[span.clone()].fill(masked);
                        }));
                    }
                    assert!(loss_of(&|s, _| s.fill(masked)).0.is_nan());
                    assert!(loss_of(&|_, q| q.fill(masked)).0.is_nan());
                }
            }
        });
    }

    #[test]
    fn pieces_with_ever_larger_logits() {
        on_every_level(|| {
            for divergence in DIVERGENCES {
                let classes = 9000;
                let mut s: Vec<f32> = random(classes, 1.0, 1);
                let mut q: Vec<f32> = random(classes, 1.0, 2);
                for k in 0..classes {
                    s[k] += (k / 500) as f32 * 0.3;
                    q[k] += ((classes - k) / 500) as f32 * 0.2 - 100.0;
                }
                let (loss, grad) = run(&s, &q, classes, 2.0, divergence);
                let (expected, slope) = truth(&widen(&s), &widen(&q), 2.0, divergence);
                assert!((f64::from(loss[0]) / expected - 1.0).abs() < 1e-6);
                assert_close(&widen(&grad), &slope, 1e-6);
                // Nothing is left of the first pieces, which are infinitely wrong.
                s[..100].fill(f32::NEG_INFINITY);
                q[..100].fill(-1e30);
                let (loss, grad) = run(&s, &q, classes, 2.0, divergence);
                let (expected, slope) = truth(&widen(&s), &widen(&q), 2.0, divergence);
                assert!((f64::from(loss[0]) / expected - 1.0).abs() < 1e-6);
                assert_close(&widen(&grad), &slope, 1e-6);
            }
        });
    }

    #[test]
    fn nothing_is_written_where_arguments_do_not_fit() {
        let mut loss = 7.0_f32;
        let mut call = |q: &[f32], target: Option<&[i64]>, divergence, weight: Option<&[f32]>| {
            let total = Loss::Total(&mut loss);
            kd(&[0.0_f32; 6], q, target, weight, [2, 3], 1.0, divergence, IGNORED, Reduction::Sum, total, None)
                .unwrap_err()
        };
        let error = call(&[0.0; 4], None, Divergence::Forward, None);
        assert_eq!(error, Error::Length { argument: "teacher_logits", len: 4, expected: 6 });
        let error = call(&[0.0; 6], Some(&[0]), Divergence::Forward, None);
        assert_eq!(error, Error::Length { argument: "target", len: 1, expected: 2 });
        let error = call(&[0.0; 6], Some(&[0, 3]), Divergence::Forward, None);
        assert_eq!(error, Error::Label { label: 3, index: 1, classes: Some(3), ignore_index: IGNORED });
        let error = call(&[0.0; 6], Some(&[0, 1]), Divergence::Reverse, Some(&[1.0]));
        assert_eq!(error, Error::Length { argument: "weight", len: 1, expected: 2 });
        let error = call(&[0.0; 6], Some(&[0, 1]), Divergence::Reverse, Some(&[1.0, -0.5]));
        assert_eq!(error, Error::Weight { weight: -0.5, index: 1 });
        for beta in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(matches!(call(&[0.0; 6], None, Divergence::JensenShannon { beta }, None), Error::Beta(_)));
        }
        assert_eq!(loss, 7.0);
    }
}
