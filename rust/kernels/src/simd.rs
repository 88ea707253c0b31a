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
    /// Here and below `exp` is 0, as it is from where it is less than twice the smallest normal number.
    const EXP_MIN: Self;
    /// Above this `exp` is infinite.
    const EXP_MAX: Self;
    /// `1 / ln 2`.
    const LOG2_E: Self;
    /// The head of `ln 2`: its products with an exponent are exact.
    const LN_2_HIGH: Self;
    /// `ln 2` less its head.
    const LN_2_LOW: Self;
    /// Twice the coefficients of `exp(r)` for `|r| <= ln(2) / 2`, lowest power first: the relative error of
    /// `1 + r + r^2 q(r)` made least.
    const EXP: &'static [Self];
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
    const EXP_MIN: f32 = -87.3;
    const EXP_MAX: f32 = 89.0;
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -0.000_212_194_44;
    const EXP: &[f32] = &[2.0, 2.0, 0.999_999_9, 0.333_330_42, 0.083_336_78, 0.016_737_433, 0.002_762_92];
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
    const EXP_MIN: f64 = -708.4;
    const EXP_MAX: f64 = 710.0;
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const EXP: &[f64] = &[
        2.0,
        2.0,
        1.000_000_000_000_000_2,
        0.333_333_333_333_333_37,
        0.083_333_333_333_248_26,
        0.016_666_666_666_660_123,
        0.002_777_777_783_442_743_3,
        0.000_396_825_397_261_072_35,
        4.960_304_259_190_875e-5,
        5.511_453_691_999_413e-6,
        5.524_017_689_081_949e-7,
        5.020_077_099_102_064e-8,
    ];
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
pub(crate) const RUN: usize = 16;

/// Runs a body for the position of each vector of a row of `$len` elements, at least one vector long, and ends a run
/// of the sums after every [`RUN`] vectors.
///
/// Where the length is no multiple of a vector's, the last one ends with the row and overlaps the one before it:
/// the body must give the same when it meets an element again, and add to sums only `$counted.of(...)`.
macro_rules! for_each_vector {
    ($simd:ident, $vector:ty, $len:expr, [$($sum:ident),*], |$at:ident, $counted:ident| $body:block) => {{
        let (lanes, len) = (<$vector>::LEN, $len);
        let mut $at = 0;
        let $counted = $crate::simd::Counted::<<$vector as SimdBase<S>>::Mask>::all();
        while len - $at >= $crate::simd::RUN * lanes {
            // Two at a time, so that they load the constants once.
            for _ in 0..$crate::simd::RUN / 2 {
                for _ in 0..2 {
                    $body;
                    $at += lanes;
                }
            }
            $($sum.end_run();)*
        }
        while len - $at >= lanes {
            $body;
            $at += lanes;
        }
        if $at < len {
            let $counted = $crate::simd::Counted::<<$vector as SimdBase<S>>::Mask>::highest($simd, len - $at);
            $at = len - lanes;
            $body;
        }
    }};
}
pub(crate) use for_each_vector;

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
