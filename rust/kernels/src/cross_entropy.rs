//! Cross-entropy: `-log softmax(z)[y]`, or of shares `-sum_k y_k log softmax(z)_k`.

use fearless_simd::prelude::*;

use crate::rows::{self, Loss, RowFormula, Scratch, weight_of};
use crate::simd::{Element, Sum, Vector, for_each_vector, load, splat, store};
use crate::softmax::{Softmax, pieces};
use crate::{Error, check_labels, check_len, check_shape, check_weight};

/// `-log softmax(z_i)[y_i]`, the mean over the rows that are not ignored, and its derivative in `z`; 0 where all are.
/// Where there are weights, each row counts so many times in the sum.
///
/// # Errors
///
/// Where lengths do not fit, a weight is out of range, or a label is neither a class nor `ignore_index`.
pub fn cross_entropy<E: Element>(
    logits: &[E],
    target: &[i64],
    weight: Option<&[E::Real]>,
    shape: [usize; 2],
    ignore_index: i64,
    loss: &mut E::Real,
    grad: Option<&mut [E]>,
) -> Result<(), Error> {
    check_shape("logits", logits, shape)?;
    check_len("target", target, shape[0])?;
    check_labels(target, Some(shape[1]), ignore_index)?;
    check_weight(weight, shape[0])?;
    let labelled = target.iter().filter(|&&label| label != ignore_index).count();
    let scale = 1.0 / labelled.max(1) as f64;
    let formula = CrossEntropy { logits, target, weight, classes: shape[1], ignore_index, scale };
    rows::run(&formula, shape, Some(Loss::Total(loss)), grad)
}

struct CrossEntropy<'a, E: Element> {
    logits: &'a [E],
    target: &'a [i64],
    weight: Option<&'a [E::Real]>,
    classes: usize,
    ignore_index: i64,
    scale: f64,
}

impl<E: Element> RowFormula<E> for CrossEntropy<'_, E> {
    const NEUTRAL: [f64; 2] = [f64::NEG_INFINITY; 2];

    #[inline(always)]
    fn operands(&self, row: usize) -> (&[E], &[E]) {
        (&self.logits[row * self.classes..][..self.classes], &[])
    }

    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        row: usize,
        (z, _): (&[E], &[E]),
        grad: Option<&mut [E]>,
        Scratch([kept, _]): &mut Scratch<E::Real>,
    ) -> f64 {
        let (label, weight) = (self.target[row], weight_of(self.weight, row));
        if label == self.ignore_index || weight == 0.0 {
            if let Some(grad) = grad {
                grad.fill(E::default());
            }
            return 0.0;
        }
        let softmax = Softmax::of(simd, z, 1.0, kept);
        let log_p = softmax.log(z[label as usize]);
        let scale = self.scale * weight;
        let Some(grad) = grad else { return -scale * log_p };
        softmax.times(simd, scale, kept, grad);
        // `exp_m1` keeps what is left of a belief close to 1.
        grad[label as usize] = E::from_f64(scale * log_p.exp_m1());
        -scale * log_p
    }
}

/// `-sum_k y_ik log softmax(z_i)_k`, the mean over the rows that are not all zeros, and its derivative in `z`; 0 where
/// all are. Where there are weights, each row counts so many times in the sum.
///
/// # Errors
///
/// Where lengths do not fit, or a weight is out of range.
pub fn soft_cross_entropy<E: Element>(
    logits: &[E],
    shares: &[E::Real],
    weight: Option<&[E::Real]>,
    shape: [usize; 2],
    loss: &mut E::Real,
    grad: Option<&mut [E]>,
) -> Result<(), Error> {
    check_shape("logits", logits, shape)?;
    check_shape("target", shares, shape)?;
    check_weight(weight, shape[0])?;
    let zero = E::Real::default();
    // In pieces without an early end, which the compiler makes vectors of.
    let any = |piece: &[E::Real]| piece.iter().fold(false, |any, &share| any | (share != zero));
    let labelled = shares.chunks_exact(shape[1].max(1)).filter(|row| row.chunks(64).any(any)).count();
    let scale = 1.0 / labelled.max(1) as f64;
    let formula = Soft { logits, shares, weight, classes: shape[1], scale };
    rows::run(&formula, shape, Some(Loss::Total(loss)), grad)
}

struct Soft<'a, E: Element> {
    logits: &'a [E],
    shares: &'a [E::Real],
    weight: Option<&'a [E::Real]>,
    classes: usize,
    scale: f64,
}

impl<E: Element> RowFormula<E, E::Real> for Soft<'_, E> {
    const NEUTRAL: [f64; 2] = [f64::NEG_INFINITY, 0.0];

    #[inline(always)]
    fn operands(&self, row: usize) -> (&[E], &[E::Real]) {
        let at = row * self.classes;
        (&self.logits[at..][..self.classes], &self.shares[at..][..self.classes])
    }

    #[inline(always)]
    fn row<S: Simd>(
        &self,
        simd: S,
        row: usize,
        (z, y): (&[E], &[E::Real]),
        grad: Option<&mut [E]>,
        Scratch([kept, _]): &mut Scratch<E::Real>,
    ) -> f64 {
        let softmax = Softmax::of(simd, z, 1.0, kept);
        let max = Vector::<S, E>::splat(simd, softmax.max);
        let zero = splat::<S, E::Real>(simd, 0.0);
        let (mut share, mut dot) = (Sum::<S, E::Real>::new(simd), Sum::<S, E::Real>::new(simd));
        for_each_vector!(simd, Vector<S, E>, z.len(), read [z, y], write [], sum [share, dot], |at, counted| {
            let y_k = load::<S, E::Real>(simd, y, at);
            share.add(counted.of(y_k));
            // A class without a share adds nothing, even where its logit is -inf.
            let term = y_k.simd_eq(zero).select(zero, y_k * (load(simd, z, at) - max));
            dot.add(counted.of(term));
        });
        let (share, weight) = (share.total(), weight_of(self.weight, row));
        if share == 0.0 || weight == 0.0 {
            if let Some(grad) = grad {
                grad.fill(E::default());
            }
            return 0.0;
        }
        let scale = self.scale * weight;
        if let Some(grad) = grad {
            let scale = splat::<S, E::Real>(simd, scale);
            for (i, piece) in pieces(z.len()) {
                let factor = splat::<S, E::Real>(simd, share * softmax.per_sum(i, kept));
                let (e, y, grad) = (&kept.exponentials[piece.clone()], &y[piece.clone()], &mut grad[piece]);
                for_each_vector!(simd, Vector<S, E>, grad.len(), read [e, y], write [grad], sum [], stream [grad], |at, _counted| {
                    let p_k = load::<S, E::Real>(simd, e, at) * factor;
                    store::<S, E>((p_k - load::<S, E::Real>(simd, y, at)) * scale, grad, at);
                });
            }
        }
        scale * (share * softmax.sum.ln() - dot.total())
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

    fn run<E: Element>(z: &[E], target: &[i64], classes: usize) -> (E::Real, Vec<E>) {
        let mut loss = E::Real::default();
        let mut grad = vec![E::from_f64(7.0); z.len()];
        cross_entropy(z, target, None, [target.len(), classes], IGNORED, &mut loss, Some(&mut grad)).unwrap();
        (loss, grad)
    }

    fn truth(z: &[f64], label: i64, scale: f64) -> (f64, Vec<f64>) {
        if label == IGNORED {
            return (0.0, vec![0.0; z.len()]);
        }
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let one = |k: usize| f64::from(k as i64 == label);
        let grad = z.iter().enumerate().map(|(k, z)| scale * ((z - max - log_sum).exp() - one(k))).collect();
        (-scale * (z[label as usize] - max - log_sum), grad)
    }

    fn check<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for classes in SIZES {
                for factor in [3.0, E::FACTORS[1], E::FACTORS[0]] {
                    let rows = 6;
                    let z: Vec<E> = random(rows * classes, factor, 1);
                    let mut target: Vec<i64> = (0..rows).map(|i| ((i * 7 + 1) % classes) as i64).collect();
                    target[2] = IGNORED;
                    let [(loss, grad), parallel] = serial_and_parallel(|| run(&z, &target, classes));
                    same_bits(&[loss], &[parallel.0]);
                    same_bits(&grad, &parallel.1);
                    let mut sum = 0.0;
                    for (i, &label) in target.iter().enumerate() {
                        let row = i * classes..(i + 1) * classes;
                        let (expected, slope) = truth(&widen(&z[row.clone()]), label, 0.2);
                        sum += expected;
                        assert_close(&grad[row], &slope, tolerance);
                    }
                    assert_close(&[loss.to_f64()], &[sum], tolerance);
                }
            }
        });
    }

    #[test]
    fn agrees_with_f64() {
        check::<f32>(5e-7);
        check::<Bf16>(5e-7);
        check::<F16>(5e-7);
        check::<f64>(1e-14);
    }

    fn run_soft<E: Element>(z: &[E], shares: &[E::Real], classes: usize) -> (E::Real, Vec<E>) {
        let mut loss = E::Real::default();
        let mut grad = vec![E::from_f64(7.0); z.len()];
        soft_cross_entropy(z, shares, None, [z.len() / classes, classes], &mut loss, Some(&mut grad)).unwrap();
        (loss, grad)
    }

    fn check_soft<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for classes in SIZES {
                for factor in [3.0, E::FACTORS[1], E::FACTORS[0]] {
                    let rows = 6;
                    let z: Vec<E> = random(rows * classes, factor, 1);
                    // Rows of any sum, with zeros in between; one of zeros alone.
                    let mut shares: Vec<E::Real> = random(rows * classes, 1.0, 2);
                    for (i, share) in shares.iter_mut().enumerate() {
                        let kept = share.to_f64().max(0.0) + if i % classes == 0 { 0.5 } else { 0.0 };
                        *share = E::Real::from_f64(if i / classes == 2 { 0.0 } else { kept });
                    }
                    let [(loss, grad), parallel] = serial_and_parallel(|| run_soft(&z, &shares, classes));
                    same_bits(&[loss], &[parallel.0]);
                    same_bits(&grad, &parallel.1);
                    let mut sum = 0.0;
                    for i in 0..rows {
                        let row = i * classes..(i + 1) * classes;
                        let (z, y) = (widen(&z[row.clone()]), widen(&shares[row.clone()]));
                        let mut expected = vec![0.0; classes];
                        for (k, &share) in y.iter().enumerate().filter(|&(_, &share)| share != 0.0) {
                            let (loss, slope) = truth(&z, k as i64, 0.2 * share);
                            sum += loss;
                            expected.iter_mut().zip(slope).for_each(|(sum, x)| *sum += x);
                        }
                        // Of the row's whole share, of which `p` and `y` are parts that may cancel.
                        let mut got = widen(&grad[row]);
                        let whole = 0.2 * y.iter().sum::<f64>();
                        got.push(whole);
                        expected.push(whole);
                        let got: Vec<E> = got.into_iter().map(E::from_f64).collect();
                        assert_close(&got, &expected, tolerance);
                    }
                    assert_close(&[loss.to_f64()], &[sum], tolerance);
                }
            }
        });
    }

    #[test]
    fn shares_agree_with_f64() {
        check_soft::<f32>(1e-6);
        check_soft::<Bf16>(1e-6);
        check_soft::<F16>(1e-6);
        check_soft::<f64>(1e-14);
    }

    #[test]
    fn rows_without_a_share_may_hold_anything() {
        on_every_level(|| {
            let z = [f32::NAN, 1.0, f32::INFINITY, 1.0];
            assert_eq!(run_soft(&z, &[0.0; 4], 2), (0.0, vec![0.0; 4]));
            assert!(run_soft(&z, &[0.5, 0.5, 0.0, 0.0], 2).0.is_nan());
            // Nor does a class that is ruled out add anything to a row in which it has none.
            let (loss, grad) = run_soft(&[f32::NEG_INFINITY, 1.0, 1.0], &[0.0, 0.5, 0.5], 3);
            assert_eq!((loss, grad), (2.0_f32.ln(), vec![0.0; 3]));
        });
    }

    #[test]
    fn ignored_rows_may_hold_anything() {
        on_every_level(|| {
            let z = [f32::NAN, 1.0, f32::INFINITY, 1.0];
            assert_eq!(run(&z, &[IGNORED, IGNORED], 2), (0.0, vec![0.0; 4]));
            assert!(run(&z, &[1, IGNORED], 2).0.is_nan());
        });
    }

    #[test]
    fn weights_multiply_what_a_row_adds() {
        on_every_level(|| {
            let (rows, classes) = (7, 37);
            let mut z: Vec<f64> = random(rows * classes, 3.0, 1);
            let target: Vec<i64> = (0..rows).map(|i| if i == 1 { IGNORED } else { 5 * i as i64 }).collect();
            let shares: Vec<f64> =
                (0..rows * classes).map(|k| f64::from(u8::from(target[k / classes] == (k % classes) as i64))).collect();
            let weights: Vec<f64> = weights(rows);
            let call = |z: &[f64], weight: Option<&[f64]>, soft: bool| {
                let (shape, mut loss, mut grad) = ([rows, classes], 7.0, vec![7.0; z.len()]);
                if soft {
                    soft_cross_entropy(z, &shares, weight, shape, &mut loss, Some(&mut grad)).unwrap();
                } else {
                    cross_entropy(z, &target, weight, shape, IGNORED, &mut loss, Some(&mut grad)).unwrap();
                }
                (loss, grad)
            };
            for soft in [false, true] {
                z[0] = 0.0;
                assert_eq!(call(&z, Some(&vec![1.0; rows]), soft), call(&z, None, soft));
                z[0] = f64::NAN; // of a row of weight 0
                let (loss, grad) = call(&z, Some(&weights), soft);
                let mut sum = 0.0;
                for (i, &weight) in weights.iter().enumerate() {
                    let row = i * classes..(i + 1) * classes;
                    let label = if weight == 0.0 { IGNORED } else { target[i] };
                    let (expected, slope) = truth(&z[row.clone()], label, weight / 6.0);
                    sum += expected;
                    assert_close(&grad[row], &slope, 1e-14);
                }
                assert_close(&[loss], &[sum], 1e-14);
            }
        });
    }

    #[test]
    fn a_wrong_label_is_named() {
        let mut loss = 7.0_f32;
        for label in [3, -1, i64::MAX, i64::MIN] {
            let error = cross_entropy(&[0.0_f32; 6], &[0, label], None, [2, 3], IGNORED, &mut loss, None).unwrap_err();
            assert_eq!(error, Error::Label { label, index: 1, classes: Some(3), ignore_index: IGNORED });
        }
        assert_eq!(loss, 7.0);
    }
}
