//! The softmax of a row, as the other formulas use it and on its own.

use std::ops::Range;

use fearless_simd::prelude::*;

use crate::exp::Exp;
use crate::rows::{self, Kept, PIECE, RowFormula, Scratch};
use crate::simd::{self, Element, Real, Sum, Vector, for_each_vector, load, splat, store};
use crate::{Error, check_shape, check_temperature};

/// The pieces that a row is gone through in, none shorter than half of [`PIECE`] unless the row is.
#[inline(always)]
pub(crate) fn pieces(len: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let count = len.div_ceil(PIECE);
    (0..count).map(move |i| (i, i * len / count..(i + 1) * len / count))
}

/// `softmax(x / T)` of a row: element `k` is `exp((x_k - max) / T) / sum`.
#[derive(Clone, Copy)]
pub(crate) struct Softmax<R> {
    pub(crate) max: R,
    pub(crate) sum: f64,
    temperature: f64,
    exp: Exp<R>,
}

impl<R: Real> Softmax<R> {
    /// Reads a row; keeps its exponentials.
    #[inline(always)]
    pub(crate) fn of<S: Simd, E: Element<Real = R>>(simd: S, row: &[E], temperature: f64, kept: &mut Kept<R>) -> Self {
        let mut softmax = Self::nothing(temperature);
        for (i, piece) in pieces(row.len()) {
            softmax.raise(simd::max(simd, &row[piece.clone()]));
            softmax.add(simd, row, i, piece, kept);
        }
        softmax.finish();
        softmax
    }

    /// Of no element yet.
    #[inline(always)]
    pub(crate) fn nothing(temperature: f64) -> Self {
        Self { max: R::default(), sum: 0.0, temperature, exp: Exp::new(1.0 / temperature) }
    }

    /// Takes the maximum of the next piece into account; returns by how much that raises the one so far.
    #[inline(always)]
    pub(crate) fn raise(&mut self, max: R) -> f64 {
        if self.sum == 0.0 {
            // As long as there is nothing but -inf it is held against 0, since -inf - -inf is no number.
            self.max = if max.to_f64() == f64::NEG_INFINITY { R::default() } else { max };
        } else if max > self.max {
            let rise = max.to_f64() - self.max.to_f64();
            self.sum *= (-rise / self.temperature).exp();
            self.max = max;
            return rise;
        }
        0.0
    }

    /// A row of nothing but -inf has no softmax.
    #[inline(always)]
    pub(crate) fn finish(&mut self) {
        if self.sum == 0.0 {
            self.sum = f64::NAN;
        }
    }

    /// Adds a piece, whose maximum has been taken into account.
    #[inline(always)]
    pub(crate) fn add<S: Simd, E: Element<Real = R>>(
        &mut self,
        simd: S,
        row: &[E],
        index: usize,
        piece: Range<usize>,
        kept: &mut Kept<R>,
    ) {
        self.sum += self.exponentials(simd, &row[piece.clone()], &mut kept.exponentials[piece]);
        // That of nothing but -inf so far is not 0, against which it was held.
        kept.maxima[index] = if self.sum == 0.0 { R::from_f64(f64::NEG_INFINITY) } else { self.max };
    }

    /// What the kept exponentials of a piece are to be multiplied by: 1 / sum, for the maximum of the whole row.
    #[inline(always)]
    pub(crate) fn per_sum(&self, index: usize, kept: &Kept<R>) -> f64 {
        let rise = self.max.to_f64() - kept.maxima[index].to_f64();
        if rise == 0.0 { 1.0 / self.sum } else { (-rise / self.temperature).exp() / self.sum }
    }

    /// Writes `exp((x_k - max) / T)` of a piece of the row, and returns their sum.
    ///
    /// A function of its own, with the CPU features of its callers, as they are many.
    fn exponentials<S: Simd, E: Element<Real = R>>(&self, simd: S, piece: &[E], out: &mut [R]) -> f64 {
        simd.vectorize(
            #[inline(always)]
            || self.exponentials_inline(simd, piece, out),
        )
    }

    #[inline(always)]
    fn exponentials_inline<S: Simd, E: Element<Real = R>>(&self, simd: S, piece: &[E], out: &mut [R]) -> f64 {
        let max = R::Native::<S>::splat(simd, self.max);
        let mut sum = Sum::<S, R>::new(simd);
        for_each_vector!(simd, Vector<S, E>, piece.len(), read [piece], write [out], sum [sum], stream [piece], |at, counted| {
            let e = self.exp.of(simd, load(simd, piece, at) - max);
            store::<S, R>(e, out, at);
            sum.add(counted.of(e));
        });
        sum.total()
    }

    /// Writes the softmax, times a factor.
    #[inline(always)]
    pub(crate) fn times<S: Simd, E: Element<Real = R>>(&self, simd: S, factor: f64, kept: &Kept<R>, out: &mut [E]) {
        for (i, piece) in pieces(out.len()) {
            let factor = splat::<S, R>(simd, factor * self.per_sum(i, kept));
            let (e, out) = (&kept.exponentials[piece.clone()], &mut out[piece]);
            for_each_vector!(simd, Vector<S, E>, out.len(), read [e], write [out], sum [], stream [out], |at, _counted| {
                store::<S, E>(load::<S, R>(simd, e, at) * factor, out, at);
            });
        }
    }

    /// `log softmax(x / T)` of element `x_k`.
    #[inline(always)]
    pub(crate) fn log<E: Element<Real = R>>(&self, x_k: E) -> f64 {
        (x_k.to_f64() - self.max.to_f64()) / self.temperature - self.sum.ln()
    }
}

/// `softmax(s_i / T)` of each row.
///
/// # Errors
///
/// Where lengths do not fit, or the temperature is out of range.
pub fn softmax<E: Element>(logits: &[E], shape: [usize; 2], temperature: f64, out: &mut [E]) -> Result<(), Error> {
    check_temperature(temperature)?;
    check_shape("logits", logits, shape)?;
    check_shape("out", out, shape)?;
    rows::run(&Forward { logits, classes: shape[1], temperature }, shape, None, Some(out))
}

struct Forward<'a, E> {
    logits: &'a [E],
    classes: usize,
    temperature: f64,
}

impl<E: Element> RowFormula<E> for Forward<'_, E> {
    const NEUTRAL: [f64; 2] = [f64::NEG_INFINITY; 2];

    #[inline(always)]
    fn operands(&self, row: usize) -> (&[E], &[E]) {
        (&self.logits[row * self.classes..][..self.classes], &[])
    }

    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        _row: usize,
        (logits, _): (&[E], &[E]),
        out: Option<&mut [E]>,
        Scratch([kept, _]): &mut Scratch<E::Real>,
    ) -> f64 {
        let softmax = Softmax::of(simd, logits, self.temperature, kept);
        if let Some(out) = out {
            softmax.times(simd, 1.0, kept, out);
        }
        0.0
    }
}

/// `P (g - sum_k P_k g_k) / T` of each row: the derivative through [`softmax`].
///
/// # Errors
///
/// Where lengths do not fit, or the temperature is out of range.
pub fn softmax_backward<E: Element>(
    grad_output: &[E],
    probabilities: &[E],
    shape: [usize; 2],
    temperature: f64,
    grad: &mut [E],
) -> Result<(), Error> {
    check_temperature(temperature)?;
    check_shape("grad_output", grad_output, shape)?;
    check_shape("probabilities", probabilities, shape)?;
    check_shape("grad", grad, shape)?;
    rows::run(&Backward { grad_output, probabilities, classes: shape[1], temperature }, shape, None, Some(grad))
}

struct Backward<'a, E> {
    grad_output: &'a [E],
    probabilities: &'a [E],
    classes: usize,
    temperature: f64,
}

impl<E: Element> RowFormula<E> for Backward<'_, E> {
    const NEUTRAL: [f64; 2] = [0.0; 2];

    #[inline(always)]
    fn operands(&self, row: usize) -> (&[E], &[E]) {
        let at = row * self.classes;
        (&self.grad_output[at..][..self.classes], &self.probabilities[at..][..self.classes])
    }

    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        _row: usize,
        (g, p): (&[E], &[E]),
        out: Option<&mut [E]>,
        _scratch: &mut Scratch<E::Real>,
    ) -> f64 {
        let mut dot = Sum::<S, E::Real>::new(simd);
        for_each_vector!(simd, Vector<S, E>, g.len(), read [p, g], write [], sum [dot], |at, counted| {
            dot.add(counted.of(load(simd, p, at) * load(simd, g, at)));
        });
        let dot = splat::<S, E::Real>(simd, dot.total());
        let per_temperature = splat::<S, E::Real>(simd, 1.0 / self.temperature);
        if let Some(out) = out {
            for_each_vector!(simd, Vector<S, E>, g.len(), read [p, g], write [out], sum [], stream [out], |at, _counted| {
                let through = load(simd, p, at) * (load(simd, g, at) - dot);
                store::<S, E>(through * per_temperature, out, at);
            });
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::on_every_level;
    use crate::half::{Bf16, F16};
    use crate::par::serial_and_parallel;
    use crate::testing::{SIZES, Tested, assert_close, assert_close_beside, random, same_bits};

    /// The softmax of a row in f64, naively.
    fn truth(row: &[f64], temperature: f64) -> Vec<f64> {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = row.iter().map(|x| ((x - max) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|e| e / sum).collect()
    }

    fn check<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for classes in SIZES {
                for (scale, temperature) in [(3.0, 4.0), (E::FACTORS[1], 1.0), (E::FACTORS[0], 0.1)] {
                    let rows = 5;
                    let x: Vec<E> = random(rows * classes, scale, 1);
                    let g: Vec<E> = random(rows * classes, 1.0, 2);
                    let [[p, grad], parallel] = serial_and_parallel(|| {
                        let (mut p, mut grad) = (vec![E::default(); x.len()], vec![E::default(); x.len()]);
                        softmax(&x, [rows, classes], temperature, &mut p).unwrap();
                        softmax_backward(&g, &p, [rows, classes], temperature, &mut grad).unwrap();
                        [p, grad]
                    });
                    same_bits(&p, &parallel[0]);
                    same_bits(&grad, &parallel[1]);
                    for i in 0..rows {
                        let row = i * classes..(i + 1) * classes;
                        let f64s = |from: &[E]| from[row.clone()].iter().map(|x| x.to_f64()).collect::<Vec<_>>();
                        assert_close(&p[row.clone()], &truth(&f64s(&x), temperature), tolerance);
                        let (p, g) = (f64s(&p), f64s(&g));
                        let dot: f64 = p.iter().zip(&g).map(|(p, g)| p * g).sum();
                        let expected: Vec<f64> = p.iter().zip(&g).map(|(p, g)| p * (g - dot) / temperature).collect();
                        let parts = p.iter().zip(&g).map(|(p, g)| p * (g.abs() + dot.abs()) / temperature);
                        let largest = parts.fold(f64::MIN_POSITIVE, f64::max);
                        assert_close_beside(&grad[row.clone()], &expected, largest, tolerance);
                    }
                }
            }
        });
    }

    #[test]
    fn agrees_with_f64() {
        // Ten roundings: of the logits, of `exp` and its sum, and of the share in it.
        check::<f32>(1.2e-6);
        check::<Bf16>(1.2e-6);
        check::<F16>(1.2e-6);
        check::<f64>(1e-14);
    }

    #[test]
    fn masked_infinite_and_missing_logits() {
        on_every_level(|| {
            for classes in [3, 9, 5000] {
                let softmax_of = |change: &dyn Fn(&mut [f32])| {
                    let mut x: Vec<f32> = random(classes, 1.0, 3);
                    change(&mut x);
                    let mut out = vec![0.0; classes];
                    softmax(&x, [1, classes], 2.0, &mut out).unwrap();
                    out
                };
                let masked = softmax_of(&|x| x[..classes - 2].fill(f32::NEG_INFINITY));
                assert!((masked[classes - 2] + masked[classes - 1] - 1.0).abs() < 1e-6);
                assert!(masked[..classes - 2].iter().all(|&p| p == 0.0));
                for value in [f32::NAN, f32::INFINITY] {
                    for k in [0, classes / 2, classes - 1] {
                        assert!(softmax_of(&|x| x[k] = value)[k].is_nan());
                    }
                }
                assert!(softmax_of(&|x| x.fill(f32::NEG_INFINITY)).iter().all(|p| p.is_nan()));
            }
        });
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut out = [0.0_f32; 6];
        assert_eq!(softmax(&[0.0; 6], [2, 3], 0.0, &mut out), Err(Error::Temperature(0.0)));
        let error = Error::Length { argument: "out", len: 6, expected: 4 };
        assert_eq!(softmax(&[0.0; 4], [2, 2], 1.0, &mut out), Err(error));
    }
}
