//! The thin layer between the formulas and `fearless_simd`: element types, loads and stores, tails, sums.
//!
//! Everything here is a macro or `#[inline(always)]`: a function or closure that is not inlined loses the target
//! features of its caller and runs an order of magnitude slower, with the right results.

use fearless_simd::prelude::*;

/// A type that tensors are stored in.
///
/// Kernels touch memory through [`load`](Element::load) and [`store`](Element::store) alone and compute in
/// [`Real`](Element::Real), so that a narrower storage type needs an implementation of this trait and nothing else.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// The type it is computed in.
    type Real: Real;

    /// Loads a whole vector.
    fn load<S: Simd>(simd: S, from: &[Self]) -> Vector<S, Self>;
    /// Stores a whole vector.
    fn store<S: Simd>(vector: Vector<S, Self>, to: &mut [Self]);
    /// Rounds to the stored type.
    fn from_f64(value: f64) -> Self;
    /// Widens, exactly.
    fn to_f64(self) -> f64;
}

/// A type that kernels compute in: what [`exp`](crate::exp) and the sums need to know of it.
pub trait Real: Element<Real = Self> + SimdFloatElement {
    /// How many vectors of `f64` hold one of this type.
    const WIDE: usize;
    /// Bits of the significand that are stored.
    const SIGNIFICAND_BITS: u32;
    /// Adding this to `n` leaves `n - 1`, with the exponent's bias, in the lowest bits.
    const EXPONENT_MAGIC: Self;
    /// Here and below `2^x` is 0: it would be less than twice the smallest normal number.
    const EXP2_MIN: f64;
    /// Twice the coefficients of `2^x` for `|x| <= 1/2`, lowest power first.
    const EXP2: &'static [Self];
    /// `1.0`, as bits.
    const ONE_BITS: Self::Bits;
    /// `1.0` less the root of 1/2, as bits.
    const ONE_LESS_SQRT_HALF_BITS: Self::Bits;
    /// The bits of a number whose lowest bits hold an integer.
    const INTEGER_BITS: Self::Bits;
    /// That number, plus the exponent's bias.
    const INTEGER_BIAS: Self;
    /// The exponent's bits, at the lowest place.
    const EXPONENT_MASK: Self::Bits;
    /// The integer 1.
    const ONE_BIT: Self::Bits;
    /// The coefficients of `(2 artanh(s) - 2 s) / s^3` in `s^2`, lowest power first.
    const ARTANH: &'static [Self];
    /// The coefficients of `(exp(d) - 1 - d) / d^2` for `|d| <= 1/2`, lowest power first.
    const DIVERGENCE: &'static [Self];

    /// The lanes as `f64`, in the first [`WIDE`](Real::WIDE) vectors.
    fn widen<S: Simd>(vector: Self::Native<S>) -> [S::f64s; 2];
}

/// The native vector that an element type is computed in.
pub type Vector<S, E> = <<E as Element>::Real as SimdFloatElement>::Native<S>;

/// The most lanes that a vector has on any tier.
pub(crate) const MAX_LANES: usize = 16;

/// `1 / 2!, 1 / 3!, ...`: the Taylor series of `(exp(d) - 1 - d) / d^2`.
macro_rules! inverse_factorials {
    ($float:ty, $terms:literal) => {{
        const SERIES: [$float; $terms] = {
            let mut series = [0.0; $terms];
            let (mut k, mut factorial) = (0, 1.0);
            while k < $terms {
                factorial *= (k + 2) as f64;
                series[k] = (1.0 / factorial) as $float;
                k += 1;
            }
            series
        };
        &SERIES
    }};
}

/// `2 / 3, 2 / 5, 2 / 7, ...`
macro_rules! artanh {
    ($float:ty, $terms:literal) => {{
        const SERIES: [$float; $terms] = {
            let mut series = [0.0; $terms];
            let mut k = 0;
            while k < $terms {
                series[k] = (2.0 / (2 * k + 3) as f64) as $float;
                k += 1;
            }
            series
        };
        &SERIES
    }};
}

macro_rules! element {
    ($float:ty) => {
        impl Element for $float {
            type Real = $float;

            #[inline(always)]
            fn load<S: Simd>(simd: S, from: &[Self]) -> Vector<S, Self> {
                Vector::<S, Self>::from_slice(simd, from)
            }

            #[inline(always)]
            fn store<S: Simd>(vector: Vector<S, Self>, to: &mut [Self]) {
                vector.store_slice(to);
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
        }
    };
}

element!(f32);
element!(f64);

impl Real for f32 {
    const WIDE: usize = 2;
    const SIGNIFICAND_BITS: u32 = 23;
    const EXPONENT_MAGIC: f32 = 12_582_912.0 + 126.0;
    const EXP2_MIN: f64 = -125.95;
    const EXP2: &[f32] =
        &[2.0, 1.386_294_4, 0.480_452_95, 0.111_007_19, 0.019_236_999, 0.002_678_194, 0.000_306_585_57];
    const ONE_BITS: u32 = 1.0_f32.to_bits();
    const ONE_LESS_SQRT_HALF_BITS: u32 = 1.0_f32.to_bits() - std::f32::consts::FRAC_1_SQRT_2.to_bits();
    const INTEGER_BITS: u32 = 8_388_608.0_f32.to_bits();
    const INTEGER_BIAS: f32 = 8_388_608.0 + 127.0;
    const EXPONENT_MASK: u32 = 0xff;
    const ONE_BIT: u32 = 1;
    const ARTANH: &[f32] = artanh!(f32, 5);
    const DIVERGENCE: &[f32] = inverse_factorials!(f32, 8);

    #[inline(always)]
    fn widen<S: Simd>(vector: S::f32s) -> [S::f64s; 2] {
        let (low, high) = vector.widen();
        [low, high]
    }
}

impl Real for f64 {
    const WIDE: usize = 1;
    const SIGNIFICAND_BITS: u32 = 52;
    const EXPONENT_MAGIC: f64 = 6_755_399_441_055_744.0 + 1022.0;
    const EXP2_MIN: f64 = -1021.95;
    const EXP2: &[f64] = &[
        2.0,
        1.386_294_361_119_890_6,
        0.480_453_013_918_202_17,
        0.111_008_217_329_643_43,
        0.019_236_258_215_203_205,
        0.002_666_711_629_309_695_5,
        0.000_308_070_608_980_781_9,
        3.050_546_726_356_011e-5,
        2.643_087_766_947_5e-6,
        2.035_632_192_763_566_3e-7,
        1.414_646_637_122_206_2e-8,
        8.877_452_167_700_394e-10,
    ];
    const ONE_BITS: u64 = 1.0_f64.to_bits();
    const ONE_LESS_SQRT_HALF_BITS: u64 = 1.0_f64.to_bits() - std::f64::consts::FRAC_1_SQRT_2.to_bits();
    const INTEGER_BITS: u64 = 4_503_599_627_370_496.0_f64.to_bits();
    const INTEGER_BIAS: f64 = 4_503_599_627_370_496.0 + 1023.0;
    const EXPONENT_MASK: u64 = 0x7ff;
    const ONE_BIT: u64 = 1;
    const ARTANH: &[f64] = artanh!(f64, 11);
    const DIVERGENCE: &[f64] = inverse_factorials!(f64, 14);

    #[inline(always)]
    fn widen<S: Simd>(vector: S::f64s) -> [S::f64s; 2] {
        [vector, vector]
    }
}

/// Loads the vector at `at`.
#[inline(always)]
pub(crate) fn load<S: Simd, E: Element>(simd: S, from: &[E], at: usize) -> Vector<S, E> {
    E::load(simd, &from[at..at + Vector::<S, E>::LEN])
}

/// Stores the vector at `at`.
#[inline(always)]
pub(crate) fn store<S: Simd, E: Element>(vector: Vector<S, E>, to: &mut [E], at: usize) {
    E::store::<S>(vector, &mut to[at..at + Vector::<S, E>::LEN]);
}

/// A vector with every lane `value`.
#[inline(always)]
pub(crate) fn splat<S: Simd, R: Real>(simd: S, value: f64) -> R::Native<S> {
    R::Native::<S>::splat(simd, R::from_f64(value))
}

/// `c[0] + c[1] x + c[2] x^2 + ...`
///
/// One step after the other: evaluating in pairs has half the latency, but vectors in flight hide that, and its one
/// more product they don't.
#[inline(always)]
pub(crate) fn polynomial<S: Simd, R: Real>(simd: S, x: R::Native<S>, coefficients: &[R]) -> R::Native<S> {
    let mut sum = splat::<S, R>(simd, 0.0);
    for (i, &coefficient) in coefficients.iter().rev().enumerate() {
        let coefficient = R::Native::<S>::splat(simd, coefficient);
        sum = if i == 0 { coefficient } else { sum.mul_add(x, coefficient) };
    }
    sum
}

/// Which lanes of a vector a sum takes, as each element of a row must count once: all of them, or those of a mask.
#[derive(Clone, Copy)]
pub(crate) struct Counted<M>(Option<M>);

impl<M> Counted<M> {
    #[inline(always)]
    pub(crate) fn all() -> Self {
        Self(None)
    }

    /// The `count` highest lanes.
    #[inline(always)]
    pub(crate) fn highest<S: Simd>(simd: S, count: usize) -> Self
    where
        M: SimdMask<S>,
    {
        Self(Some(M::from_bitmask(simd, (!0 << (M::LEN - count)) & (!0 >> (64 - M::LEN)))))
    }

    /// `vector` with 0 in the other lanes.
    #[inline(always)]
    pub(crate) fn of<S: Simd, V: SimdFloat<S, Mask = M>>(self, vector: V) -> V
    where
        M: SimdMask<S> + Select<V>,
    {
        match self.0 {
            None => vector,
            Some(mask) => mask.select(vector, V::splat(vector.token(), V::Element::default())),
        }
    }
}

/// Vectors in a run: few enough that the rounding of a run's sum is about that of its terms.
pub(crate) const VECTORS_A_RUN: usize = 16;

/// Runs a body for each vector of rows of `$len` elements, at least one vector long: `$at` is its place in the named
/// slices, which the body sees cut to a run of them. Ends a run of the sums after every [`VECTORS_A_RUN`] vectors.
///
/// Where the length is no multiple of a vector's, the last one ends with the row and overlaps the one before it:
/// the body must give the same when it meets an element again, and add to sums only `$counted.of(...)`.
///
/// What is named under `stream` is a piece of memory that another of its length follows: that is fetched meanwhile.
macro_rules! for_each_vector {
    (
        $simd:ident, $vector:ty, $len:expr, read [$($read:ident),*], write [$($write:ident),*], sum [$($sum:ident),*],
        $(stream [$($stream:ident),*],)? |$at:ident, $counted:ident| $body:block
    ) => {{
        const VECTORS_A_RUN: usize = $crate::simd::VECTORS_A_RUN;
        let (lanes, len) = (<$vector>::LEN, $len);
        let mut start = 0;
        let $counted = $crate::simd::Counted::<<$vector as SimdBase<S>>::Mask>::all();
        while len - start >= VECTORS_A_RUN * lanes {
            // Cut once a run: within it every bound is known.
            $(let $read = &$read[start..][..VECTORS_A_RUN * lanes];)*
            $(let $write = &mut $write[start..][..VECTORS_A_RUN * lanes];)*
            $($($crate::simd::prefetch(&*$stream, len);)*)?
            for i in 0..VECTORS_A_RUN {
                let $at = i * lanes;
                $body
            }
            $($sum.end_run();)*
            start += VECTORS_A_RUN * lanes;
        }
        while len - start >= lanes {
            let $at = 0;
            $(let $read = &$read[start..][..lanes];)*
            $(let $write = &mut $write[start..][..lanes];)*
            $($($crate::simd::prefetch(&*$stream, len);)*)?
            $body
            start += lanes;
        }
        if start < len {
            let $counted = $crate::simd::Counted::<<$vector as SimdBase<S>>::Mask>::highest($simd, len - start);
            let $at = 0;
            $(let $read = &$read[len - lanes..][..lanes];)*
            $(let $write = &mut $write[len - lanes..][..lanes];)*
            $body
        }
    }};
}
pub(crate) use for_each_vector;

/// Fetches into the cache what stands `ahead` elements behind a slice, be it within the same memory or not.
///
/// The hardware does so by itself, but stops at the end of a page: of 4096 bytes, about a row of 1000 elements. Worth a
/// third of the time of `kd` on rows that come from memory.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn prefetch<E>(slice: &[E], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..slice.len()).step_by(64 / size_of::<E>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which neither reads nor writes, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(slice.as_ptr().wrapping_add(line + ahead).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, ahead); // elsewhere Rust has no stable way to say so
}

/// A sum of vectors: runs in the type of the elements, the runs in `f64`.
#[derive(Clone, Copy)]
pub(crate) struct Sum<S: Simd, R: Real> {
    run: R::Native<S>,
    wide: [S::f64s; 2],
}

impl<S: Simd, R: Real> Sum<S, R> {
    #[inline(always)]
    pub(crate) fn new(simd: S) -> Self {
        Self { run: splat::<S, R>(simd, 0.0), wide: [S::f64s::splat(simd, 0.0); 2] }
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, vector: R::Native<S>) {
        self.run += vector;
    }

    #[inline(always)]
    pub(crate) fn end_run(&mut self) {
        for (sum, run) in self.wide.iter_mut().zip(R::widen::<S>(self.run)).take(R::WIDE) {
            *sum += run;
        }
        self.run = splat::<S, R>(self.run.token(), 0.0);
    }

    #[inline(always)]
    pub(crate) fn total(mut self) -> f64 {
        self.end_run();
        (self.wide[0] + self.wide[1]).reduce_sum()
    }
}

/// A sum of squares in `f64`, where those of an `f32` neither overflow nor underflow.
#[derive(Clone, Copy)]
pub(crate) struct SumOfSquares<S: Simd>([S::f64s; 2]);

impl<S: Simd> SumOfSquares<S> {
    #[inline(always)]
    pub(crate) fn new(simd: S) -> Self {
        Self([S::f64s::splat(simd, 0.0); 2])
    }

    #[inline(always)]
    pub(crate) fn add<R: Real>(&mut self, vector: R::Native<S>) {
        for (sum, x) in self.0.iter_mut().zip(R::widen::<S>(vector)).take(R::WIDE) {
            *sum = x.mul_add(x, *sum);
        }
    }

    #[inline(always)]
    pub(crate) fn total(self) -> f64 {
        (self.0[0] + self.0[1]).reduce_sum()
    }
}

/// The largest element of a row at least one vector long. What it makes of a NaN is the tier's: callers must find
/// the NaN by what they compute next.
#[inline(always)]
pub(crate) fn max<S: Simd, E: Element>(simd: S, row: &[E]) -> E::Real {
    let lanes = Vector::<S, E>::LEN;
    // Four chains, as one would wait for the latency of each step.
    let mut max = [load(simd, row, 0); 4];
    let mut at = 0;
    while at + 4 * lanes <= row.len() {
        for (i, max) in max.iter_mut().enumerate() {
            *max = max.max(load(simd, row, at + i * lanes));
        }
        at += 4 * lanes;
    }
    while at < row.len() {
        max[0] = max[0].max(load(simd, row, at.min(row.len() - lanes)));
        at += lanes;
    }
    max[0].max(max[1]).max(max[2].max(max[3])).reduce_max()
}
