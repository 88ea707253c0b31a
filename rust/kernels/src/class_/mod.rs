//! Class representation: the mean over classes of `||Gt - Gs||_F^2 / n^2`, with `G` the cosines within a class.
//!
//! Class by class: its features are normalised (`layout`), `D = Gt - Gs` is computed a square at a time, below the
//! diagonal alone, and the gradient is `D F` (`by_samples`); a class of more samples than features goes by products of
//! its features instead (`by_features`). A class that is a small part of the work is one task from end to end, in memory
//! that stays in the cache of its thread; the rest are cut into tasks themselves, by the same code.

mod by_features;
mod by_samples;
mod layout;
mod products;
mod squares;

use fearless_simd::Level;

use self::by_features::by_features;
use self::by_samples::by_samples;
use self::layout::{Layout, normalize};
use self::squares::{SIDE, Squares, at_least};
use crate::dispatch::{self, dispatch};
use crate::par::{self, Chunks};
use crate::simd::{Element, Real};
use crate::{Error, check_labels, check_len, check_shape};

/// A class goes by its features where it has more than this many samples to each, student's and teacher's together:
/// on Zen 3 with AVX2 the two forms meet at 1.5 to 2 (at 2, D = 64: 0.29 ms against 0.36; D = 512: 128 against 246;
/// at 4: 0.88 against 1.4, 277 against 1318). Below it, `D` takes no more than twice the memory of the features.
const TALL: usize = 2;
/// A class is cut into tasks where it is more than one part in so many of the whole work.
const PARTS: usize = 16;

/// The mean over classes of two or more samples of `||Gt_k - Gs_k||_F^2 / n_k^2`, and its derivative in the
/// student's features; 0 if there is no such class.
///
/// # Errors
///
/// Where lengths do not fit, or a label is negative and not `ignore_index`.
pub fn class_<E: Element, T: Element<Real = E::Real>>(
    student_features: &[E],
    teacher_features: &[T],
    target: &[i64],
    [students, teachers]: [usize; 2],
    ignore_index: i64,
    loss: &mut E::Real,
    grad: Option<&mut [E]>,
) -> Result<(), Error> {
    let samples = target.len();
    check_shape("student_features", student_features, [samples, students])?;
    check_shape("teacher_features", teacher_features, [samples, teachers])?;
    if let Some(grad) = &grad {
        check_len("grad", grad, student_features.len())?;
    }
    check_labels(target, None, ignore_index)?;
    let level = dispatch::level()?;

    let inputs =
        Inputs { student: student_features, teacher: teacher_features, layout: Layout::new(students, teachers) };
    let mut samples = labelled(target, ignore_index, students, grad);
    let mut classes = classes(&mut samples);
    let share = 1.0 / classes.len() as f64;
    let pairs = |class: &[Sample<E>]| class.len() * class.len();
    let elements = |class: &[Sample<E>]| class.len() * inputs.layout.stride;
    let (all_pairs, all_elements) =
        classes.iter().fold((0, 0), |sum, (class, _)| (sum.0 + pairs(class), sum.1 + elements(class)));
    let is_large = |class: &[Sample<E>]| class.len() > SIDE && pairs(class) * PARTS > all_pairs;

    let mut work = Work::default();
    for (class, loss) in classes.iter_mut().filter(|(class, _)| is_large(class)) {
        *loss = of_class(level, &inputs, class, share, &mut work, elements(class));
    }
    par::for_each(classes.len(), all_elements, Chunks::new(&mut classes, 1), Work::default, |work, _, class| {
        let (class, loss) = &mut class[0];
        if !is_large(class) {
            *loss = of_class(level, &inputs, class, share, work, 0);
        }
    });
    *loss = E::Real::from_f64(classes.iter().fold(0.0, |sum, (_, loss)| sum + loss));
    Ok(())
}

/// A sample with a label.
struct Sample<'a, E> {
    label: i64,
    index: usize,
    grad: Option<&'a mut [E]>,
}

/// The samples that have a label; the gradients of the others are set to 0.
fn labelled<'a, E: Element>(
    target: &[i64],
    ignore_index: i64,
    columns: usize,
    mut grad: Option<&'a mut [E]>,
) -> Vec<Sample<'a, E>> {
    let mut samples = Vec::with_capacity(target.len());
    for (index, &label) in target.iter().enumerate() {
        let grad = grad.as_mut().and_then(|grad| grad.split_off_mut(..columns));
        if label != ignore_index {
            samples.push(Sample { label, index, grad });
        } else if let Some(grad) = grad {
            grad.fill(E::default());
        }
    }
    samples
}

/// The samples that have another of their class, by class, each with room for its loss; the gradients of the others
/// are set to 0.
fn classes<'a, 'b, E: Element>(samples: &'b mut [Sample<'a, E>]) -> Vec<(&'b mut [Sample<'a, E>], f64)> {
    samples.sort_unstable_by_key(|sample| (sample.label, sample.index));
    let mut classes = Vec::new();
    for class in samples.chunk_by_mut(|a, b| a.label == b.label) {
        match class {
            [Sample { grad, .. }] => grad.iter_mut().for_each(|grad| grad.fill(E::default())),
            _ => classes.push((class, 0.0)),
        }
    }
    classes
}

struct Inputs<'a, E, T> {
    student: &'a [E],
    teacher: &'a [T],
    layout: Layout,
}

/// Memory for what is kept of a class: each as long as the largest class so far asked for.
#[derive(Default)]
struct Work<R> {
    /// Normalised features, sample by sample.
    features: Vec<R>,
    /// The norms that the student's had.
    norms: Vec<f64>,
    squares: Squares<R>,
}

/// The share of a class in the loss, and its gradients.
fn of_class<E: Element, T: Element<Real = E::Real>>(
    level: Level,
    inputs: &Inputs<E, T>,
    class: &mut [Sample<E>],
    share: f64,
    work: &mut Work<E::Real>,
    elements: usize,
) -> f64 {
    let layout = inputs.layout;
    let samples = class.len();
    let share = share / (samples * samples) as f64;
    let features = at_least(&mut work.features, samples * layout.stride);
    let norms = at_least(&mut work.norms, samples);
    par::for_each(
        samples.div_ceil(SIDE),
        elements,
        (Chunks::new(class, SIDE), Chunks::new(features, SIDE * layout.stride), Chunks::new(norms, SIDE)),
        || (),
        |(), _, (class, features, norms)| {
            dispatch!(level, simd => normalize(simd, inputs, class, features, norms));
        },
    );
    let is_tall = E::Real::WIDE > 1 && samples > TALL * layout.end;
    let compute = if is_tall { by_features } else { by_samples };
    share * compute(level, layout, features, norms, class, share, &mut work.squares, elements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::on_every_level;
    use crate::half::{Bf16, F16};
    use crate::par::serial_and_parallel;
    use crate::testing::{Tested, assert_close, random, same_bits, widen};

    const IGNORED: i64 = -100;

    /// The loss and the gradient in f64, class by class, naively.
    fn truth(s: &[f64], t: &[f64], target: &[i64], [ds, dt]: [usize; 2]) -> (f64, Vec<f64>) {
        let normalized = |x: &[f64], d: usize| -> (Vec<Vec<f64>>, Vec<f64>) {
            let rows = (0..target.len()).map(|i| &x[i * d..(i + 1) * d]);
            let norms: Vec<f64> = rows.clone().map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
            (rows.zip(&norms).map(|(row, norm)| row.iter().map(|x| x / norm.max(1e-12)).collect()).collect(), norms)
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let ((f, norms), (ft, _)) = (normalized(s, ds), normalized(t, dt));
        let others = |i: usize| -> Vec<usize> {
            (0..target.len()).filter(|&j| target[i] != IGNORED && target[j] == target[i]).collect()
        };
        let mut labels: Vec<i64> = (0..target.len()).filter(|&i| others(i).len() > 1).map(|i| target[i]).collect();
        labels.sort_unstable();
        labels.dedup();
        let (mut loss, mut grad) = (0.0, vec![0.0; s.len()]);
        for i in 0..target.len() {
            let class = others(i);
            if class.len() < 2 {
                continue;
            }
            let share = 1.0 / (class.len() * class.len() * labels.len()) as f64;
            let mut g = vec![0.0; ds];
            for j in class {
                let d = dot(&ft[i], &ft[j]) - dot(&f[i], &f[j]);
                loss += share * d * d;
                g.iter_mut().zip(&f[j]).for_each(|(g, f)| *g -= 4.0 * share * d * f);
            }
            let along = if norms[i] < 1e-12 { 0.0 } else { dot(&g, &f[i]) };
            for k in 0..ds {
                grad[i * ds + k] = (g[k] - along * f[i][k]) / norms[i].max(1e-12);
            }
        }
        (loss, grad)
    }

    fn run<E: Element>(s: &[E], t: &[E], target: &[i64], shape: [usize; 2]) -> (E::Real, Vec<E>) {
        let (mut loss, mut grad) = (E::Real::from_f64(7.0), vec![E::from_f64(7.0); s.len()]);
        class_(s, t, target, shape, IGNORED, &mut loss, Some(&mut grad)).unwrap();
        (loss, grad)
    }

    fn check<E: Tested>(tolerance: f64) {
        on_every_level(|| {
            for (samples, classes, ds, dt) in [
                (1, 1, 3, 2),
                (2, 1, 1, 1),
                (64, 10, 128, 37),
                (37, 3, 17, 129),
                (150, 1, 40, 333),
                (333, 200, 9, 5000),
                (600, 2, 40, 30),
                (600, 1, 100, 70),
            ] {
                for factor in [1.0, E::FACTORS[1], E::FACTORS[0].max(1e-10)] {
                    let s: Vec<E> = random(samples * ds, factor, 1);
                    let t: Vec<E> = random(samples * dt, factor, 2);
                    let mut target: Vec<i64> =
                        (0..samples).map(|i| ((i * i + i / 3) % classes) as i64 * 1_000_003).collect();
                    if samples > 20 {
                        target[20] = IGNORED;
                    }
                    let [(loss, grad), parallel] = serial_and_parallel(|| run(&s, &t, &target, [ds, dt]));
                    same_bits(&[loss], &[parallel.0]);
                    same_bits(&grad, &parallel.1);
                    let (expected, slope) = truth(&widen(&s), &widen(&t), &target, [ds, dt]);
                    assert_close(&[loss.to_f64()], &[expected], tolerance);
                    assert_close(&grad, &slope, 5.0 * tolerance);
                    let mut alone = E::Real::default();
                    class_(&s, &t, &target, [ds, dt], IGNORED, &mut alone, None).unwrap();
                    same_bits(&[alone], &[loss]);
                }
            }
        });
    }

    #[test]
    fn agrees_with_f64() {
        check::<f32>(1e-5);
        check::<Bf16>(1e-5);
        check::<F16>(1e-5);
        check::<f64>(1e-13);
    }

    /// As after a ReLU, all cosines large, and the student close to the teacher. The loss is of squares of differences
    /// of cosines that are good to `d`, the gradient of their products with the normalised rows.
    fn check_close<E: Element>(d: f64) {
        on_every_level(|| {
            for samples in [2, 49, 100, 300] {
                let t: Vec<f64> = random(samples * 20, 1.0, 1).into_iter().map(f64::abs).collect();
                let s: Vec<E> =
                    t.iter().zip(random::<f64>(t.len(), 1e-2, 2)).map(|(t, x)| E::from_f64(t + x)).collect();
                let t: Vec<E> = t.into_iter().map(E::from_f64).collect();
                let target = vec![3; samples];
                let (loss, grad) = run(&s, &t, &target, [20, 20]);
                let (expected, slope) = truth(&widen(&s), &widen(&t), &target, [20, 20]);
                let error = (loss.to_f64() - expected).abs();
                assert!(error <= 2.0 * d * expected.sqrt() + d * d, "{loss:?}, not {expected}");
                let norms =
                    widen(&s).chunks(20).map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).collect::<Vec<_>>();
                for (k, (got, expected)) in widen(&grad).iter().zip(&slope).enumerate() {
                    let bound = 8.0 * d / (samples as f64 * norms[k / 20]);
                    assert!((got - expected).abs() <= bound, "element {k}: {got}, not {expected}");
                }
                let (loss, grad) = run(&t, &t, &target, [20, 20]);
                assert!((0.0..1e-15).contains(&loss.to_f64()));
                assert!(widen(&grad).iter().all(|g| g.abs() < 1e-14));
            }
        });
    }

    #[test]
    fn agrees_with_f64_where_features_are_close() {
        check_close::<f32>(4.0 * f64::from(f32::EPSILON));
        check_close::<f64>(8.0 * f64::EPSILON); // of which the truth has half
    }

    #[test]
    fn no_pairs_and_small_norms() {
        on_every_level(|| {
            let s: Vec<f32> = random(4 * 5, 1.0, 1);
            assert_eq!(run(&s, &s, &[0, 1, 2, IGNORED], [5, 5]), (0.0, vec![0.0; 20]));
            assert_eq!(run(&s, &s, &[IGNORED; 4], [5, 5]), (0.0, vec![0.0; 20]));
            assert_eq!(run::<f32>(&[], &[], &[], [5, 5]), (0.0, vec![]));

            let mut small: Vec<f64> = random(4 * 5, 1.0, 1);
            small[..5].iter_mut().for_each(|x| *x *= 1e-13);
            small[5..10].fill(0.0);
            let t: Vec<f64> = random(4 * 5, 1.0, 2);
            let (loss, grad) = run(&small, &t, &[7; 4], [5, 5]);
            let (expected, slope) = truth(&small, &t, &[7; 4], [5, 5]);
            assert_close(&[loss], &[expected], 1e-14);
            for i in 0..4 {
                assert_close(&grad[i * 5..][..5], &slope[i * 5..][..5], 1e-13);
            }
        });
    }

    #[test]
    fn a_nan_stays_in_its_class() {
        let mut s: Vec<f32> = random(4 * 5, 1.0, 1);
        s[3] = f32::NAN;
        let t: Vec<f32> = random(4 * 5, 1.0, 2);
        let (loss, grad) = run(&s, &t, &[0, 0, 1, 1], [5, 5]);
        assert!(loss.is_nan() && grad[..10].iter().all(|x| x.is_nan()) && grad[10..].iter().all(|x| x.is_finite()));
        let (loss, grad) = run(&s, &t, &[2, 0, 1, 1], [5, 5]);
        assert!(loss.is_finite() && grad.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn a_negative_label_is_named() {
        let error = class_(&[0.0_f32; 2], &[0.0_f32; 2], &[0, -3], [1, 1], IGNORED, &mut 0.0, None).unwrap_err();
        assert_eq!(error, Error::Label { label: -3, index: 1, classes: None, ignore_index: IGNORED });
    }
}
