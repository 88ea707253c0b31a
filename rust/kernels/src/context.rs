//! The context bank: the weight of each sample, and the weighted sums over the samples of each class.
//!
//! Of shares, each sample has a weight for each class, and the sums are matrix products, which PyTorch computes.

use fearless_simd::prelude::*;

use crate::dispatch::{self, dispatch};
use crate::par::{self, Chunks};
use crate::rows::{self, Loss, RowFormula, Scratch};
use crate::simd::{Element, Real, Vector, for_each_vector, load, splat, store};
use crate::softmax::{Softmax, pieces};
use crate::{Error, check_labels, check_len, check_shape, check_temperature};

/// `softmax(q_i / T)[y_i]` of each row, 0 for an ignored one.
///
/// # Errors
///
/// Where lengths do not fit, the temperature is out of range, or a label is neither a class nor
/// `ignore_index`.
pub fn context_weights<E: Element>(
    teacher_logits: &[E],
    target: &[i64],
    shape: [usize; 2],
    temperature: f64,
    ignore_index: i64,
    out: &mut [E::Real],
) -> Result<(), Error> {
    check_temperature(temperature)?;
    check_shape("teacher_logits", teacher_logits, shape)?;
    check_len("target", target, shape[0])?;
    check_len("out", out, shape[0])?;
    check_labels(target, Some(shape[1]), ignore_index)?;
    let formula = Weights { teacher_logits, target, classes: shape[1], temperature, ignore_index };
    rows::run(&formula, shape, Some(Loss::Each(out)), None)
}

struct Weights<'a, E> {
    teacher_logits: &'a [E],
    target: &'a [i64],
    classes: usize,
    temperature: f64,
    ignore_index: i64,
}

impl<E: Element> RowFormula<E> for Weights<'_, E> {
    const NEUTRAL: [f64; 2] = [f64::NEG_INFINITY; 2];

    #[inline(always)]
    fn operands(&self, row: usize) -> (&[E], &[E]) {
        (&self.teacher_logits[row * self.classes..][..self.classes], &[])
    }

    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        row: usize,
        (q, _): (&[E], &[E]),
        _out: Option<&mut [E]>,
        Scratch([kept, _]): &mut Scratch<E::Real>,
    ) -> f64 {
        match self.target[row] {
            label if label == self.ignore_index => 0.0,
            label => Softmax::of(simd, q, self.temperature, kept).log(q[label as usize]).exp(),
        }
    }
}

/// `y_ik softmax(q_i / T)_k` of each row; 0 where `y_ik` is, whatever the row holds.
///
/// # Errors
///
/// Where lengths do not fit, or the temperature is out of range.
pub fn soft_context_weights<T: Element>(
    teacher_logits: &[T],
    shares: &[T::Real],
    shape: [usize; 2],
    temperature: f64,
    out: &mut [T::Real],
) -> Result<(), Error> {
    check_temperature(temperature)?;
    check_shape("teacher_logits", teacher_logits, shape)?;
    check_shape("target", shares, shape)?;
    check_shape("out", out, shape)?;
    rows::run(&SoftWeights { teacher_logits, shares, classes: shape[1], temperature }, shape, None, Some(out))
}

struct SoftWeights<'a, T: Element> {
    teacher_logits: &'a [T],
    shares: &'a [T::Real],
    classes: usize,
    temperature: f64,
}

impl<R: Real, T: Element<Real = R>> RowFormula<R, T> for SoftWeights<'_, T> {
    const NEUTRAL: [f64; 2] = [0.0, f64::NEG_INFINITY];

    #[inline(always)]
    fn operands(&self, row: usize) -> (&[R], &[T]) {
        let at = row * self.classes;
        (&self.shares[at..][..self.classes], &self.teacher_logits[at..][..self.classes])
    }

    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        _row: usize,
        (y, q): (&[R], &[T]),
        out: Option<&mut [R]>,
        Scratch([kept, _]): &mut Scratch<R>,
    ) -> f64 {
        let softmax = Softmax::of(simd, q, self.temperature, kept);
        let Some(out) = out else { return 0.0 };
        let zero = splat::<S, R>(simd, 0.0);
        for (i, piece) in pieces(y.len()) {
            let per_sum = splat::<S, R>(simd, softmax.per_sum(i, kept));
            let (e, y, out) = (&kept.exponentials[piece.clone()], &y[piece.clone()], &mut out[piece]);
            for_each_vector!(simd, Vector<S, R>, y.len(), read [e, y], write [out], sum [], stream [out], |at, _counted| {
                let y_k = load::<S, R>(simd, y, at);
                let weight = load::<S, R>(simd, e, at) * per_sum * y_k;
                store::<S, R>(y_k.simd_eq(zero).select(zero, weight), out, at);
            });
        }
        0.0
    }
}

/// Adds `w_i f_i` to row `y_i` of `numerator` and `w_i` to element `y_i` of `denominator`, in the order of the
/// samples; an ignored sample adds nothing, whatever it holds.
///
/// # Errors
///
/// Where lengths do not fit, or a label is neither a class nor `ignore_index`.
pub fn accumulate_context<E: Element>(
    features: &[E],
    weights: &[E::Real],
    target: &[i64],
    shape: [usize; 2],
    ignore_index: i64,
    numerator: &mut [E::Real],
    denominator: &mut [E::Real],
) -> Result<(), Error> {
    let ([samples, columns], classes) = (shape, denominator.len());
    check_shape("features", features, shape)?;
    check_len("weights", weights, samples)?;
    check_len("target", target, samples)?;
    check_shape("numerator", numerator, [classes, columns])?;
    check_labels(target, Some(classes), ignore_index)?;
    let level = dispatch::level()?;

    let (starts, order) = group(target, classes, ignore_index);
    let classes_a_block = (classes * par::TASK / (samples * columns).max(1)).clamp(1, classes.max(1));
    let sums = (Chunks::new(numerator, (classes_a_block * columns).max(1)), Chunks::new(denominator, classes_a_block));
    par::for_each(
        classes.div_ceil(classes_a_block),
        samples * columns,
        sums,
        || (),
        |(), block, (numerator, denominator)| {
            let first = block * classes_a_block;
            let starts = &starts[first..=first + denominator.len()];
            dispatch!(level, simd => {
                for (i, total) in denominator.iter_mut().enumerate() {
                    let members = &order[starts[i]..starts[i + 1]];
                    for &sample in members {
                        *total += weights[sample];
                    }
                    add_weighted(simd, features, weights, members, &mut numerator[i * columns..][..columns]);
                }
            });
        },
    );
    Ok(())
}

/// The samples by class: those of class `k` are `order[starts[k]..starts[k + 1]]`, in their own order.
fn group(target: &[i64], classes: usize, ignore_index: i64) -> (Vec<usize>, Vec<usize>) {
    let labelled = || target.iter().enumerate().filter(|&(_, &label)| label != ignore_index);
    let mut starts = vec![0; classes + 1];
    for (_, &label) in labelled() {
        starts[label as usize + 1] += 1;
    }
    for class in 0..classes {
        starts[class + 1] += starts[class];
    }
    let mut next = starts.clone();
    let mut order = vec![0; starts[classes]];
    for (sample, &label) in labelled() {
        order[next[label as usize]] = sample;
        next[label as usize] += 1;
    }
    (starts, order)
}

/// `sum += w_i f_i` for each of the samples.
#[inline(always)]
fn add_weighted<S: Simd, E: Element>(
    simd: S,
    features: &[E],
    weights: &[E::Real],
    samples: &[usize],
    sum: &mut [E::Real],
) {
    // Four at a time: their rows lie anywhere in memory, which is slow to find one after the other.
    let (fours, rest) = samples.as_chunks::<4>();
    for &fours in fours {
        add_rows(simd, features, weights, fours, sum);
    }
    match *rest {
        [a] => add_rows(simd, features, weights, [a], sum),
        [a, b] => add_rows(simd, features, weights, [a, b], sum),
        [a, b, c] => add_rows(simd, features, weights, [a, b, c], sum),
        _ => {}
    }
}

/// The same for so many samples at once, in their order.
#[inline(always)]
fn add_rows<S: Simd, E: Element, const N: usize>(
    simd: S,
    features: &[E],
    weights: &[E::Real],
    samples: [usize; N],
    sum: &mut [E::Real],
) {
    let (columns, lanes) = (sum.len(), Vector::<S, E>::LEN);
    let rows: [&[E]; N] = std::array::from_fn(|i| &features[samples[i] * columns..][..columns]);
    let weights: [E::Real; N] = std::array::from_fn(|i| weights[samples[i]]);
    let mut at = 0;
    while at + lanes <= sum.len() {
        let mut vector = load::<S, E::Real>(simd, sum, at);
        for (row, weight) in rows.iter().zip(weights) {
            vector = load(simd, row, at).mul_add(weight, vector);
        }
        store::<S, E::Real>(vector, sum, at);
        at += lanes;
    }
    // An overlapping vector would add some elements twice.
    for (row, weight) in rows.iter().zip(weights) {
        for (sum, &element) in sum[at..].iter_mut().zip(&row[at..]) {
            *sum += E::Real::from_f64(element.to_f64()) * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::on_every_level;
    use crate::half::{Bf16, F16};
    use crate::par::serial_and_parallel;
    use crate::testing::{SIZES, Tested, assert_close, random, same_bits, widen};

    const IGNORED: i64 = -100;

    fn check_weights<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for classes in SIZES {
                for (factor, temperature) in [(3.0, 4.0), (E::FACTORS[1], 1.0), (E::FACTORS[0], 0.1)] {
                    let rows = 5;
                    let q: Vec<E> = random(rows * classes, factor, 1);
                    let mut target: Vec<i64> = (0..rows).map(|i| ((i * 7 + 1) % classes) as i64).collect();
                    target[3] = IGNORED;
                    let [weights, parallel] = serial_and_parallel(|| {
                        let mut out = vec![E::Real::from_f64(7.0); rows];
                        context_weights(&q, &target, [rows, classes], temperature, IGNORED, &mut out).unwrap();
                        out
                    });
                    same_bits(&weights, &parallel);
                    for i in 0..rows {
                        let row = widen(&q[i * classes..][..classes]);
                        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let e = |x: f64| ((x - max) / temperature).exp();
                        let sum: f64 = row.iter().map(|&x| e(x)).sum();
                        let expected = if target[i] == IGNORED { 0.0 } else { e(row[target[i] as usize]) / sum };
                        // What is too small for the type is 0.
                        let expected = E::Real::from_f64(expected).to_f64();
                        assert_close(&[weights[i].to_f64()], &[expected], tolerance);
                    }
                }
            }
        });
    }

    #[test]
    fn weights_agree_with_f64() {
        check_weights::<f32>(3e-7);
        check_weights::<Bf16>(3e-7);
        check_weights::<F16>(3e-7);
        check_weights::<f64>(1e-14);
    }

    fn check_soft_weights<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for classes in SIZES {
                let rows = 5;
                let mut q: Vec<E> = random(rows * classes, 3.0, 1);
                let mut shares: Vec<E::Real> = random(rows * classes, 1.0, 2);
                // Every other class, and no class of a row, which may hold anything.
                for (i, share) in shares.iter_mut().enumerate().filter(|(i, _)| i % 2 == 1 || i / classes == 3) {
                    *share = E::Real::default();
                    if i / classes == 3 {
                        q[i] = E::from_f64(f64::NAN);
                    }
                }
                let [weights, parallel] = serial_and_parallel(|| {
                    let mut out = vec![E::Real::from_f64(7.0); rows * classes];
                    soft_context_weights(&q, &shares, [rows, classes], 2.0, &mut out).unwrap();
                    out
                });
                same_bits(&weights, &parallel);
                for i in 0..rows {
                    let row = i * classes..(i + 1) * classes;
                    let (q, y) = (widen(&q[row.clone()]), widen(&shares[row.clone()]));
                    let max = q.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let e: Vec<f64> = q.iter().map(|x| ((x - max) / 2.0).exp()).collect();
                    let sum: f64 = e.iter().sum();
                    let expected: Vec<f64> =
                        e.iter().zip(y).map(|(e, y)| if y == 0.0 { 0.0 } else { y * e / sum }).collect();
                    assert_close(&widen(&weights[row]), &expected, tolerance);
                }
            }
        });
    }

    #[test]
    fn weights_of_shares_agree_with_f64() {
        check_soft_weights::<f32>(5e-7);
        check_soft_weights::<Bf16>(5e-7);
        check_soft_weights::<F16>(5e-7);
        check_soft_weights::<f64>(1e-14);
    }

    fn check_sums<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for (samples, columns, classes) in [(1, 1, 1), (64, 37, 10), (50, 129, 3), (7, 8, 100), (333, 17, 4)] {
                let mut features: Vec<E> = random(samples * columns, 1.0, 1);
                let mut weights: Vec<E::Real> = random(samples, 1.0, 2);
                let mut target: Vec<i64> = (0..samples).map(|i| (i * i % classes) as i64).collect();
                if samples > 5 {
                    target[5] = IGNORED;
                    features[5 * columns] = E::from_f64(f64::NAN);
                    weights[5] = E::Real::from_f64(f64::NAN);
                }
                let before: Vec<E::Real> = random(classes * (columns + 1), 1.0, 3);
                let [sums, parallel] = serial_and_parallel(|| {
                    let mut sums = before.clone();
                    let (numerator, denominator) = sums.split_at_mut(classes * columns);
                    let shape = [samples, columns];
                    accumulate_context(&features, &weights, &target, shape, IGNORED, numerator, denominator).unwrap();
                    sums
                });
                same_bits(&sums, &parallel);
                let mut expected = widen(&before);
                for (i, &label) in target.iter().enumerate().filter(|&(_, &label)| label != IGNORED) {
                    let (label, weight) = (label as usize, weights[i].to_f64());
                    for k in 0..columns {
                        expected[label * columns + k] += weight * features[i * columns + k].to_f64();
                    }
                    expected[classes * columns + label] += weight;
                }
                assert_close(&widen(&sums), &expected, tolerance);
            }
        });
    }

    #[test]
    fn sums_agree_with_f64() {
        check_sums::<f32>(2e-6);
        check_sums::<Bf16>(2e-6);
        check_sums::<F16>(2e-6);
        check_sums::<f64>(1e-14);
    }

    #[test]
    fn a_wrong_label_leaves_the_sums_alone() {
        let (mut numerator, mut denominator) = ([1.0_f32; 4], [1.0_f32; 2]);
        let error =
            accumulate_context(&[1.0_f32; 4], &[1.0; 2], &[0, 2], [2, 2], IGNORED, &mut numerator, &mut denominator);
        assert_eq!(error, Err(Error::Label { label: 2, index: 1, classes: Some(2), ignore_index: IGNORED }));
        assert_eq!((numerator, denominator), ([1.0; 4], [1.0; 2]));
    }
}
