//! Half-precision storage: bfloat16 and IEEE 754's binary16, computed in `f32`.
//!
//! A load is exact. A store rounds to nearest, ties to even; what is too large becomes infinite, and NaN stays NaN,
//! quiet.

use fearless_simd::Level;
use fearless_simd::prelude::*;

use crate::simd::{Element, MAX_LANES};

/// `torch.bfloat16`: the upper half of an `f32`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct Bf16(u16);

/// `torch.float16`: 5 bits of exponent, 10 of significand.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct F16(u16);

impl Element for Bf16 {
    type Real = f32;

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::f32s {
        (load_bits(simd, from, |x| x.0) << 16).bitcast()
    }

    #[inline(always)]
    fn store<S: Simd>(vector: S::f32s, to: &mut [Self]) {
        let bits: S::u32s = vector.bitcast();
        // Half a unit in the last place, less a bit where the last one is even: the carry rounds.
        let rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        // Of a NaN a carry could make anything.
        let nan = S::u32s::splat(vector.token(), 0x7fc0);
        store_bits::<S, _>(vector.is_nan().select(nan, rounded), to, Self);
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        Self(round::<7>(value))
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(f32::from_bits(u32::from(self.0) << 16))
    }
}

impl Element for F16 {
    type Real = f32;

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::f32s {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        match simd.level() {
            Level::Avx2(avx2) => return S::f32s::from_slice(simd, &f16c::load_avx2(avx2, lanes(from).map(|x| x.0))),
            Level::Avx512(avx512) => {
                return S::f32s::from_slice(simd, &f16c::load_avx512(avx512, lanes(from).map(|x| x.0)));
            }
            _ => {}
        }
        let bits = load_bits(simd, from, |x| x.0);
        // The fields where those of an f32 are; the product mends the exponent's bias, and is exact.
        let shifted: S::f32s = ((bits & 0x7fff) << 13).bitcast();
        let value = shifted * power_of_two(112);
        // But infinity and the NaNs need the highest exponent that there is.
        let special = value.simd_ge(65_536.0).select(S::u32s::splat(simd, 0x7f80_0000), S::u32s::splat(simd, 0));
        (value.bitcast::<S::u32s>() | special | (bits & 0x8000) << 16).bitcast()
    }

    #[inline(always)]
    fn store<S: Simd>(vector: S::f32s, to: &mut [Self]) {
        let simd = vector.token();
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        match simd.level() {
            Level::Avx2(avx2) => {
                return to[..S::f32s::LEN]
                    .copy_from_slice(&f16c::store_avx2(avx2, *lanes(vector.as_slice())).map(Self));
            }
            Level::Avx512(avx512) => {
                return to[..S::f32s::LEN]
                    .copy_from_slice(&f16c::store_avx512(avx512, *lanes(vector.as_slice())).map(Self));
            }
            _ => {}
        }
        let bits: S::u32s = vector.bitcast();
        // What is larger rounds to infinity, as this does.
        let magnitude = vector.abs().min(65_536.0);
        let fields: S::u32s = magnitude.bitcast();
        // As for bfloat16, with another bias of the exponent.
        let normal = (fields - (112 << 23) + 0xfff + (fields >> 13 & 1)) >> 13;
        // The unit of the subnormal numbers is 2^-24, as is that in the last place of 1/2: the addition rounds.
        let subnormal = (magnitude + 0.5).bitcast::<S::u32s>() - 0.5_f32.to_bits();
        let rounded = magnitude.simd_lt(power_of_two(-14)).select(subnormal, normal);
        let nan = S::u32s::splat(simd, 0x7e00);
        store_bits::<S, _>(vector.is_nan().select(nan, rounded | bits >> 16 & 0x8000), to, Self);
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        Self(round::<10>(value))
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        let (exponent, significand) = (self.0 >> 10 & 0x1f, f64::from(self.0 & 0x3ff));
        let magnitude = match exponent {
            0 => significand * f64::from(power_of_two(-24)),
            0x1f if significand == 0.0 => f64::INFINITY,
            0x1f => f64::NAN,
            _ => (significand + 1024.0) * f64::from(power_of_two(i32::from(exponent) - 25)),
        };
        if self.0 >> 15 == 0 { magnitude } else { -magnitude }
    }
}

/// The first lanes of a slice.
#[inline(always)]
fn lanes<T, const LANES: usize>(slice: &[T]) -> &[T; LANES] {
    slice.first_chunk().expect("a whole vector")
}

/// The instructions that convert binary16. The formulas above cost a kernel about twice its time.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod f16c {
    #[cfg(target_arch = "x86")]
    use std::arch::x86::{_mm256_cvtph_ps, _mm256_cvtps_ph, _mm512_cvtph_ps, _mm512_cvtps_ph};
    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64::{_mm256_cvtph_ps, _mm256_cvtps_ph, _mm512_cvtph_ps, _mm512_cvtps_ph};

    use fearless_simd::prelude::*;
    use fearless_simd::{f32x8, f32x16, kernel, u16x8, u16x16};

    /// To nearest, ties to even.
    const NEAREST: i32 = 0;

    kernel!(
        #[inline(always)]
        pub(super) fn load_avx2(avx2: Avx2, bits: [u16; 8]) -> [f32; 8] {
            let bits: u16x8<_> = bits.simd_into(avx2);
            let wide: f32x8<_> = _mm256_cvtph_ps(bits.into()).simd_into(avx2);
            wide.into()
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn store_avx2(avx2: Avx2, wide: [f32; 8]) -> [u16; 8] {
            let wide: f32x8<_> = wide.simd_into(avx2);
            let bits: u16x8<_> = _mm256_cvtps_ph::<NEAREST>(wide.into()).simd_into(avx2);
            bits.into()
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn load_avx512(avx512: Avx512, bits: [u16; 16]) -> [f32; 16] {
            let bits: u16x16<_> = bits.simd_into(avx512);
            let wide: f32x16<_> = _mm512_cvtph_ps(bits.into()).simd_into(avx512);
            wide.into()
        }
    );

    kernel!(
        #[inline(always)]
        pub(super) fn store_avx512(avx512: Avx512, wide: [f32; 16]) -> [u16; 16] {
            let wide: f32x16<_> = wide.simd_into(avx512);
            let bits: u16x16<_> = _mm512_cvtps_ph::<NEAREST>(wide.into()).simd_into(avx512);
            bits.into()
        }
    );
}

/// The bits of as many elements as a vector has lanes: the loop is compiled to one instruction.
#[inline(always)]
fn load_bits<S: Simd, E: Copy>(simd: S, from: &[E], bits: impl Fn(E) -> u16) -> S::u32s {
    let mut wide = [0; MAX_LANES];
    let wide = &mut wide[..S::u32s::LEN];
    for (wide, &x) in wide.iter_mut().zip(&from[..S::u32s::LEN]) {
        *wide = u32::from(bits(x));
    }
    S::u32s::from_slice(simd, wide)
}

/// Stores lanes that fit into 16 bits.
#[inline(always)]
fn store_bits<S: Simd, E>(bits: S::u32s, to: &mut [E], element: impl Fn(u16) -> E) {
    // Half of a vector: a loop over the lanes is not compiled to the one instruction that there is for it.
    let narrow = bits.relaxed_narrow(bits);
    for (to, &bits) in to[..S::u32s::LEN].iter_mut().zip(narrow.as_slice()) {
        *to = element(bits);
    }
}

/// `2^exponent`.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

/// The bits of `value` in the format with so many of significand, and the rest but for the sign of exponent.
///
/// Rounded once: by way of an `f32` a number could meet a tie that it was not on.
#[inline(always)]
fn round<const SIGNIFICAND_BITS: u32>(value: f64) -> u16 {
    let bias = (1 << (14 - SIGNIFICAND_BITS)) - 1;
    let infinity = 0x7fff >> SIGNIFICAND_BITS << SIGNIFICAND_BITS;
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    if value.is_nan() {
        return sign | infinity | 1 << (SIGNIFICAND_BITS - 1);
    }
    let magnitude = value.abs().min(f64::MAX);
    // The smallest normal numbers and the subnormal ones have one unit in the last place.
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - bias);
    let per_unit = f64::from_bits(((1023 + SIGNIFICAND_BITS as i32 - exponent) as u64) << 52);
    // The leading bit of a normal number adds 1 to its exponent, a carry of the rounding one more.
    let significand = (magnitude * per_unit).round_ties_even() as u32;
    let bits = (((exponent - 1 + bias) as u32) << SIGNIFICAND_BITS) + significand;
    sign | bits.min(infinity.into()) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{self, dispatch, on_every_level};
    use crate::simd::{load, store};

    /// A format as the tests see it.
    trait Half: Element<Real = f32> {
        const INFINITY: u16;
        fn new(bits: u16) -> Self;
        fn bits(self) -> u16;
    }

    impl Half for Bf16 {
        const INFINITY: u16 = 0x7f80;
        fn new(bits: u16) -> Self {
            Self(bits)
        }
        fn bits(self) -> u16 {
            self.0
        }
    }

    impl Half for F16 {
        const INFINITY: u16 = 0x7c00;
        fn new(bits: u16) -> Self {
            Self(bits)
        }
        fn bits(self) -> u16 {
            self.0
        }
    }

    fn is_nan<E: Half>(bits: u16) -> bool {
        bits & 0x7fff > E::INFINITY
    }

    /// Through vectors, on the tier in use.
    fn loaded<E: Half>(from: &[E]) -> Vec<f32> {
        #[inline(always)]
        fn all<S: Simd, E: Half>(simd: S, from: &[E], to: &mut [f32]) {
            for at in (0..from.len()).step_by(S::f32s::LEN) {
                store::<S, f32>(load(simd, from, at), to, at);
            }
        }
        let mut to = vec![0.0; from.len()];
        dispatch!(dispatch::level().unwrap(), simd => all(simd, from, &mut to));
        to
    }

    /// As [`loaded`], the other way.
    fn stored<E: Half>(from: &[f32]) -> Vec<E> {
        #[inline(always)]
        fn all<S: Simd, E: Half>(simd: S, from: &[f32], to: &mut [E]) {
            for at in (0..from.len()).step_by(S::f32s::LEN) {
                store::<S, E>(load::<S, f32>(simd, from, at), to, at);
            }
        }
        let mut to = vec![E::default(); from.len()];
        dispatch!(dispatch::level().unwrap(), simd => all(simd, from, &mut to));
        to
    }

    /// The value of some bits by the definition of the format, without a sign: infinity as the next power of two.
    fn value(bits: u16, infinity: u16) -> f64 {
        let significand_bits = infinity.trailing_zeros();
        let bias = i32::from(infinity >> significand_bits) / 2;
        let significand = f64::from(bits & ((1 << significand_bits) - 1)) / f64::from(1 << significand_bits);
        match i32::from(bits >> significand_bits) {
            0 => significand * 2_f64.powi(1 - bias),
            exponent => (1.0 + significand) * 2_f64.powi(exponent - bias),
        }
    }

    /// The numbers of a format from 0 up, with infinity as what would follow.
    fn numbers<E: Half>() -> Vec<f64> {
        (0..=E::INFINITY).map(|bits| value(bits, E::INFINITY)).collect()
    }

    fn check_round_trip<E: Half>() {
        let every: Vec<E> = (0..=u16::MAX).map(E::new).collect();
        let numbers = numbers::<E>();
        on_every_level(|| {
            let wide = loaded(&every);
            for ((bits, &wide), back) in (0..=u16::MAX).zip(&wide).zip(stored::<E>(&wide)) {
                let (scalar, sign) = (E::new(bits).to_f64(), if bits >> 15 == 0 { 1.0 } else { -1.0 });
                if is_nan::<E>(bits) {
                    assert!(wide.is_nan() && scalar.is_nan(), "{bits:#x}");
                    assert!(is_nan::<E>(back.bits()) && is_nan::<E>(E::from_f64(scalar).bits()), "{bits:#x}");
                    continue;
                }
                let magnitude = bits & 0x7fff;
                let expected =
                    sign * if magnitude == E::INFINITY { f64::INFINITY } else { numbers[usize::from(magnitude)] };
                assert_eq!(f64::from(wide).to_bits(), expected.to_bits(), "{bits:#x}");
                assert_eq!(scalar.to_bits(), expected.to_bits(), "{bits:#x}");
                assert_eq!((back.bits(), E::from_f64(scalar).bits()), (bits, bits));
            }
        });
    }

    #[test]
    fn every_value_survives_a_load_and_a_store() {
        check_round_trip::<Bf16>();
        check_round_trip::<F16>();
    }

    /// The bits that a number rounds to, by the numbers of the format below and above it.
    fn nearest(numbers: &[f64], x: f64) -> u16 {
        let magnitude = x.abs();
        let above = numbers.partition_point(|&number| number < magnitude);
        let bits = match numbers.get(above) {
            None => numbers.len() - 1,
            Some(0.0) => 0,
            Some(&next) => {
                let below = numbers[above - 1];
                // Exact: neighbours have a factor of two between them at most, or are multiples of one unit.
                match (magnitude - below).total_cmp(&(next - magnitude)) {
                    std::cmp::Ordering::Less => above - 1,
                    std::cmp::Ordering::Greater => above,
                    std::cmp::Ordering::Equal => above - above % 2,
                }
            }
        };
        bits as u16 | if x.is_sign_negative() { 0x8000 } else { 0 }
    }

    fn check_rounding<E: Half>() {
        let numbers = numbers::<E>();
        // Around each number and each tie between two, and what no number is near to.
        let mut x: Vec<f32> = vec![0.0, 1e-45, 1e-40, f32::MIN_POSITIVE, 65_519.996, 65_520.0, 1e30, f32::MAX];
        for pair in numbers.windows(2) {
            for exact in [pair[0], (pair[0] + pair[1]) / 2.0] {
                let near = exact as f32;
                assert_eq!(f64::from(near), exact);
                x.extend([near.next_down(), near, near.next_up()]);
            }
        }
        x.push(f32::INFINITY);
        x.extend(x.clone().iter().map(|x| -x));
        let nans = [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff, 0x7fc0_0000, 0x7f80_ffff].map(f32::from_bits);
        x.extend(nans);
        let count = x.len();
        x.resize(count.next_multiple_of(MAX_LANES), 0.0);
        on_every_level(|| {
            for (&x, got) in x.iter().zip(stored::<E>(&x)) {
                if x.is_nan() {
                    let quiet = 1 << (E::INFINITY.trailing_zeros() - 1);
                    assert!(is_nan::<E>(got.bits()) && got.bits() & quiet != 0);
                } else {
                    assert_eq!(got.bits(), nearest(&numbers, x.into()), "{x:e}: {:#x}", got.bits());
                }
            }
        });
        for pair in numbers.windows(2) {
            let tie = (pair[0] + pair[1]) / 2.0;
            // An f32 can't tell these from the tie.
            for x in [tie.next_down(), tie, tie.next_up(), pair[0].next_up(), pair[1].next_down()] {
                assert_eq!(E::from_f64(x).bits(), nearest(&numbers, x), "{x:e}");
                assert_eq!(E::from_f64(-x).bits(), nearest(&numbers, -x), "{x:e}");
            }
        }
        for (x, expected) in [(f64::INFINITY, E::INFINITY), (1e300, E::INFINITY), (1e-300, 0), (5e-324, 0)] {
            assert_eq!(E::from_f64(x).bits(), expected);
        }
    }

    #[test]
    fn stores_round_to_nearest_even() {
        check_rounding::<Bf16>();
        check_rounding::<F16>();
    }
}
