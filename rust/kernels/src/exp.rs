//! The exponential function and the logarithm, within 2 units in the last place.

use fearless_simd::prelude::*;

use crate::simd::{Real, polynomial, splat};

/// `exp(factor x)` for `x <= 0`, as softmaxes need it.
///
/// It is `2^(c x)` with `c = factor / ln 2`, and `c x = n + r` with `|r| <= 1/2`. Rounding `c` once changes `factor` by
/// half a unit in the last place, nothing else is rounded before the polynomial. That gives `2 * 2^r`, times `2^(n-1)`:
/// at the lowest `n` the bits of that power are those of 0.
#[derive(Clone, Copy)]
pub(crate) struct Exp<R> {
    c: R,
    min: R,
}

impl<R: Real> Exp<R> {
    #[inline(always)]
    pub(crate) fn new(factor: f64) -> Self {
        let c = factor * std::f64::consts::LOG2_E;
        Self { c: R::from_f64(c), min: R::from_f64(R::EXP2_MIN / c) }
    }

    /// 0 where the result would be less than twice the smallest normal number, NaN where `x` is.
    #[inline(always)]
    pub(crate) fn of<S: Simd>(self, simd: S, x: R::Native<S>) -> R::Native<S> {
        let min = R::Native::<S>::splat(simd, self.min);
        // On x86 and ARM this order of the operands keeps a NaN; the scalar tier knows no order that does.
        let x = if simd.level().is_fallback() { x.simd_lt(min).select(min, x) } else { min.max(x) };
        // Adding the magic number rounds to an integer, which is then also there as bits.
        let shifted = x.mul_add(self.c, R::EXPONENT_MAGIC);
        let r = x.mul_sub(self.c, shifted - R::EXPONENT_MAGIC);
        let power = R::Native::<S>::from_bits(shifted.to_bits() << R::SIGNIFICAND_BITS);
        polynomial::<S, R>(simd, r, R::EXP2) * power
    }
}

/// `ln(1 + x)` for `x > -1`.
///
/// `1 + x = 2^k (1 + r)` with `1 + r` between the roots of 1/2 and 2, and `ln(1 + r) = 2 artanh(r / (2 + r))`.
#[inline(always)]
pub(crate) fn ln_1p<S: Simd, R: Real>(simd: S, x: R::Native<S>) -> R::Native<S> {
    let one = splat::<S, R>(simd, 1.0);
    let y = x + one;
    let bits = y.to_bits();
    // `k` with the exponent's bias, as an integer and as a number.
    let biased = (bits + R::ONE_LESS_SQRT_HALF_BITS) >> R::SIGNIFICAND_BITS;
    let k = R::Native::<S>::from_bits(biased | R::INTEGER_BITS) - R::INTEGER_BIAS;
    let significand = R::Native::<S>::from_bits(bits - (biased << R::SIGNIFICAND_BITS) + R::ONE_BITS);
    // What rounding `1 + x` has lost, in the scale of the significand.
    let lost = x - (y - one);
    let per_power = R::Native::<S>::from_bits(((biased ^ R::EXPONENT_MASK) - R::ONE_BIT) << R::SIGNIFICAND_BITS);
    let r = lost.mul_add(per_power, significand - one);
    let s = r / (r + splat::<S, R>(simd, 2.0));
    let square = s * s;
    let series = polynomial::<S, R>(simd, square, R::ARTANH) * square;
    let ln = s.mul_add(series, s + s);
    k.mul_add(splat::<S, R>(simd, std::f64::consts::LN_2), ln)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{self, dispatch};
    use crate::simd::{Element, load, store};

    #[derive(Clone, Copy)]
    enum Function {
        Exp { factor: f64 },
        Ln1p,
    }

    fn apply<R: Real>(level: fearless_simd::Level, function: Function, x: &[R]) -> Vec<R> {
        #[inline(always)]
        fn block<S: Simd, R: Real>(simd: S, function: Function, x: &[R], out: &mut [R]) {
            for at in (0..x.len()).step_by(R::Native::<S>::LEN) {
                let x = load(simd, x, at);
                let y = match function {
                    Function::Exp { factor } => Exp::<R>::new(factor).of(simd, x),
                    Function::Ln1p => ln_1p::<S, R>(simd, x),
                };
                store::<S, R>(y, out, at);
            }
        }
        let mut padded = x.to_vec();
        padded.resize(x.len().next_multiple_of(crate::simd::MAX_LANES), R::default());
        let mut out = vec![R::default(); padded.len()];
        dispatch!(level, simd => block(simd, function, &padded, &mut out));
        out.truncate(x.len());
        out
    }

    /// The distance to the next number of the type.
    fn ulp<R: Real>(x: f64) -> f64 {
        (x.abs().log2().floor() - f64::from(R::SIGNIFICAND_BITS)).exp2()
    }

    fn exp_is_within_two_ulp<R: Real>(lowest: f64) {
        const POINTS: i32 = 400_000;
        let x: Vec<R> = (0..=POINTS).map(|i| R::from_f64(lowest * f64::from(i) / f64::from(POINTS))).collect();
        for factor in [1.0, 0.25, 1.0 / 3.0, 10.0] {
            let x: Vec<R> = x.iter().map(|x| R::from_f64(x.to_f64() / factor)).collect();
            for level in dispatch::levels() {
                // `c` is rounded, and without fused multiply-add its product.
                let fused = dispatch!(level, simd => fused::<_, R>(simd));
                for (x, y) in x.iter().zip(apply(level, Function::Exp { factor }, &x)) {
                    let truth = (x.to_f64() * factor).exp();
                    let error = (y.to_f64() - truth).abs();
                    // So is the argument of the truth, where that is as narrow.
                    let rounding = if fused { 1.0 } else { 1.5 } * ulp::<R>(1.0) * (x.to_f64() * factor).abs();
                    let bound = 2.0 * ulp::<R>(truth) + truth * rounding;
                    assert!(error <= bound, "{level:?}: exp({factor} * {x}) = {y}, not {truth}");
                }
            }
        }
    }

    /// Whether `mul_add` rounds once.
    #[inline(always)]
    fn fused<S: Simd, R: Real>(simd: S) -> bool {
        let x = splat::<S, R>(simd, 1.0 + ulp::<R>(1.0));
        x.mul_sub(x, x * x).as_slice()[0].to_f64() != 0.0
    }

    #[test]
    fn exp_is_accurate() {
        exp_is_within_two_ulp::<f32>(-86.9);
        exp_is_within_two_ulp::<f64>(-707.9);
    }

    fn edges<R: Real>(smallest_normal: f64) {
        let x = [f64::NAN, -f64::NAN, f64::NEG_INFINITY, 0.0, -0.0, -1e30].map(R::from_f64);
        for level in dispatch::levels() {
            for factor in [1.0, 1e-30, 1e30] {
                let y: Vec<f64> = apply(level, Function::Exp { factor }, &x).into_iter().map(Element::to_f64).collect();
                assert!(y[0].is_nan() && y[1].is_nan(), "{level:?}: {y:?}");
                assert_eq!(y[2..5], [0.0, 1.0, 1.0], "{level:?}");
            }
            let function = Function::Exp { factor: 1.0 };
            let lowest = R::EXP2_MIN * std::f64::consts::LN_2;
            let tiny: Vec<R> = (0..4000).map(|i| R::from_f64(lowest - f64::from(i) * 0.01)).collect();
            for (x, y) in tiny.iter().zip(apply(level, function, &tiny)) {
                let error = (y.to_f64() - x.to_f64().exp()).abs();
                assert!(error <= 2.0 * smallest_normal, "{level:?}: exp({x}) = {y}");
            }
        }
    }

    #[test]
    fn edges_are_right() {
        edges::<f32>(f64::from(f32::MIN_POSITIVE));
        edges::<f64>(f64::MIN_POSITIVE);
    }

    fn ln_1p_is_within_two_ulp<R: Real>() {
        let near = (-60..0).flat_map(|k| [1.0, 1.3, 1.7].map(|m| m * f64::from(k).exp2()));
        let near = near.flat_map(|x| [x, -x / 2.0]);
        let far = (0..200_000).map(|i| f64::from(i) * 5e-4 - 0.999);
        let x: Vec<R> = near.chain(far).chain([0.0, -0.0, 1e6, 1e12]).map(R::from_f64).collect();
        for level in dispatch::levels() {
            for (x, y) in x.iter().zip(apply(level, Function::Ln1p, &x)) {
                let truth = x.to_f64().ln_1p();
                let error = (y.to_f64() - truth).abs();
                assert!(
                    error <= 2.0 * ulp::<R>(truth) || x.to_f64() == 0.0 && error == 0.0,
                    "{level:?}: ln(1 + {x}) = {y}, not {truth}"
                );
            }
        }
    }

    #[test]
    fn ln_1p_is_accurate() {
        ln_1p_is_within_two_ulp::<f32>();
        ln_1p_is_within_two_ulp::<f64>();
    }
}
