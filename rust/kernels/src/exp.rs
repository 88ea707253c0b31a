//! The exponential function, within 2 units in the last place.

use fearless_simd::prelude::*;

use crate::simd::{Real, polynomial};

/// `exp(x)` of each lane; 0 below [`Real::EXP_MIN`], infinite where it overflows, NaN where `x` is.
///
/// `x = n ln 2 + r` with `|r| <= ln(2) / 2`, and `exp(x) = 2^(n-1) * 2 exp(r)`: the factor 2 brings the largest
/// results' power of two into range. At the lowest `n` the bits of the power are those of 0.
#[inline(always)]
pub(crate) fn exp<S: Simd, R: Real>(simd: S, x: R::Native<S>) -> R::Native<S> {
    // Of the ways to bound a vector this is the one that keeps a NaN on every tier.
    let x = x.clamp(R::EXP_MIN, R::EXP_MAX);
    // Adding the magic number rounds to an integer, which is then also there as bits.
    let shifted = x.mul_add(R::LOG2_E, R::EXPONENT_MAGIC);
    let n = shifted - R::EXPONENT_MAGIC;
    let power = R::Native::<S>::from_bits(shifted.to_bits() << R::SIGNIFICAND_BITS);
    let r = n.mul_add(-R::LN_2_LOW, n.mul_add(-R::LN_2_HIGH, x));
    polynomial::<S, R>(simd, r, R::EXP) * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{self, dispatch};
    use crate::simd::{Element, load, store};

    fn apply<R: Real>(level: fearless_simd::Level, x: &[R]) -> Vec<R> {
        #[inline(always)]
        fn block<S: Simd, R: Real>(simd: S, x: &[R], out: &mut [R]) {
            for at in (0..x.len()).step_by(R::Native::<S>::LEN) {
                store::<S, R>(exp::<S, R>(simd, load(simd, x, at)), out, at);
            }
        }
        let mut padded = x.to_vec();
        padded.resize(x.len().next_multiple_of(crate::simd::MAX_LANES), R::default());
        let mut out = vec![R::default(); padded.len()];
        dispatch!(level, simd => block(simd, &padded, &mut out));
        out.truncate(x.len());
        out
    }

    #[test]
    fn f32_is_within_two_ulp() {
        let x: Vec<f32> = (0..400_000).map(|i| -86.9 + i as f32 * (175.6 / 400_000.0)).collect();
        for level in dispatch::levels() {
            for (x, y) in x.iter().zip(apply(level, &x)) {
                let truth = f64::from(*x).exp();
                let ulp = f64::from((truth as f32).next_up()) - f64::from(truth as f32);
                assert!((f64::from(y) - truth).abs() <= 2.0 * ulp, "{level:?}: exp({x}) = {y}, not {truth}");
            }
        }
    }

    #[test]
    fn f64_is_within_two_ulp() {
        let x: Vec<f64> = (0..400_000).map(|i| -707.9 + f64::from(i) * (1417.6 / 400_000.0)).collect();
        for level in dispatch::levels() {
            for (x, y) in x.iter().zip(apply(level, &x)) {
                let truth = x.exp();
                // The standard library's own error is below one.
                assert!((y - truth).abs() <= 2.0 * (truth.next_up() - truth), "{level:?}: exp({x}) = {y}, not {truth}");
            }
        }
    }

    fn edges<R: Real>(smallest_normal: f64) {
        let x = [f64::NAN, -f64::NAN, f64::NEG_INFINITY, f64::INFINITY, 0.0, -0.0, -1e30, 1e30, R::EXP_MAX.to_f64()];
        let x = x.map(R::from_f64);
        for level in dispatch::levels() {
            let y: Vec<f64> = apply(level, &x).into_iter().map(Element::to_f64).collect();
            assert!(y[0].is_nan() && y[1].is_nan(), "{level:?}: {y:?}");
            let inf = f64::INFINITY;
            assert_eq!(y[2..], [0.0, inf, 1.0, 1.0, 0.0, inf, inf], "{level:?}");

            let tiny: Vec<R> = (0..4000).map(|i| R::from_f64(R::EXP_MIN.to_f64() - f64::from(i) * 0.01)).collect();
            for (x, y) in tiny.iter().zip(apply(level, &tiny)) {
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
}
