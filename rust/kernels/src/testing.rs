//! What the tests of the kernels share.

use crate::half::{Bf16, F16};
use crate::simd::{Element, Real};

/// Row lengths around the vectors' and the pieces'.
pub(crate) const SIZES: [usize; 16] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 37, 129, 333, 1000, 2048, 2049, 5000];

/// What the tests must know of a type.
pub(crate) trait Tested: Element {
    /// A factor near the lower end of the type's range, and one near the upper.
    const FACTORS: [f64; 2] = [1e-30, 1e30];
    /// The relative error of a store, where it rounds what has been computed.
    const ROUNDING: f64 = 0.0;
    /// The absolute error of a store near 0.
    const UNDERFLOW: f64 = 0.0;
    /// What is greater is infinite.
    const LARGEST: f64 = f32::MAX as f64;
}

impl Tested for f32 {}

impl Tested for f64 {
    const LARGEST: f64 = f64::MAX;
}

impl Tested for Bf16 {
    const ROUNDING: f64 = 1.0 / 256.0;
}

impl Tested for F16 {
    const FACTORS: [f64; 2] = [1e-3, 1e4];
    const ROUNDING: f64 = 1.0 / 2048.0;
    const UNDERFLOW: f64 = 1.0 / 33_554_432.0; // half of 2^-24
    const LARGEST: f64 = 65504.0;
}

/// Numbers spread evenly from `-factor` to `factor`; others for another `CID_TEST_SEED`.
pub(crate) fn random<E: Element>(len: usize, factor: f64, seed: u64) -> Vec<E> {
    let shift: u64 = std::env::var("CID_TEST_SEED").map_or(0, |value| value.parse().expect("CID_TEST_SEED"));
    let mut state = (seed ^ shift << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        // The finaliser of SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64 * 2.0 - 1.0
    };
    (0..len).map(|_| E::from_f64(next() * factor)).collect()
}

/// Weights of rows: 0 of every third one.
pub(crate) fn weights<R: Real>(rows: usize) -> Vec<R> {
    (0..rows).map(|i| R::from_f64((i % 3) as f64 * 0.75)).collect()
}

pub(crate) fn widen<E: Element>(slice: &[E]) -> Vec<f64> {
    slice.iter().map(|x| x.to_f64()).collect()
}

/// Equal to `tolerance`, relative to the largest of what is expected, and to the rounding of the type.
#[track_caller]
pub(crate) fn assert_close<E: Tested>(got: &[E], expected: &[f64], tolerance: f64) {
    let largest = expected.iter().fold(f64::MIN_POSITIVE, |largest, x| x.abs().max(largest)).min(E::LARGEST);
    assert_close_beside(got, expected, largest, tolerance);
}

/// Equal to `tolerance`, relative to the `largest` number that meets others in the formula: what is expected may be what
/// is left where they cancel.
#[track_caller]
pub(crate) fn assert_close_beside<E: Tested>(got: &[E], expected: &[f64], largest: f64, tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let bound = (tolerance + E::ROUNDING) * largest + E::UNDERFLOW;
    for (k, (got, expected)) in got.iter().zip(expected).enumerate() {
        let got = got.to_f64();
        let error = (got - expected).abs();
        let infinite = expected.abs() > E::LARGEST && got == f64::INFINITY.copysign(*expected);
        assert!(error <= bound || infinite, "element {k}: {got}, not {expected} (of {largest})");
    }
}

#[track_caller]
pub(crate) fn same_bits<E: Element>(a: &[E], b: &[E]) {
    let bits = |x: &[E]| x.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(a), bits(b));
}
