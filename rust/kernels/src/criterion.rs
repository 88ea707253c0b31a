//! The whole criterion, `alpha (ce + kd) + beta sample + gamma class`, but for its matrix products: what comes before
//! them, and what comes after. No formula is here.

use crate::rows::{Loss, Reduction};
use crate::simd::Element;
use crate::{
    Divergence, Error, accumulate_context, check_labels, check_shape, class_, context_weights, cross_entropy, kd,
    sample, soft_cross_entropy, softmax,
};

/// Where the value of each term stands.
const CE: usize = 0;
const KD: usize = 1;
const SAMPLE: usize = 2;
const CLASS: usize = 3;

/// The sizes of a batch.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// B
    pub samples: usize,
    /// C
    pub classes: usize,
    /// Ds
    pub students: usize,
    /// Dt
    pub teachers: usize,
}

/// What student and teacher make of a batch.
pub struct Batch<'a, E: Element, T> {
    /// f, (B, Ds)
    pub student_features: &'a [E],
    /// s, (B, C)
    pub student_logits: &'a [E],
    /// t, (B, Dt)
    pub teacher_features: &'a [T],
    /// q, (B, C)
    pub teacher_logits: &'a [T],
    /// y, (B,)
    pub target: &'a [i64],
    /// w, (B,)
    pub weight: Option<&'a [E::Real]>,
    /// B, C, Ds and Dt.
    pub sizes: Sizes,
}

impl<E: Element, T> Batch<'_, E, T> {
    /// The number of elements of all matrices.
    pub fn elements(&self) -> usize {
        2 * self.student_logits.len() + self.student_features.len() + self.teacher_features.len()
    }
}

/// Where the results of [`before`] go.
pub struct Before<'a, E: Element> {
    /// The values of the terms; it fills in that of kd and class.
    pub terms: &'a mut [E::Real],
    /// The derivative of kd in s.
    pub kd_grad: Option<&'a mut [E]>,
    /// The derivative of class in f.
    pub class_grad: Option<&'a mut [E]>,
    /// `[f ; m]`, (B, 2 Ds), of which it fills in f.
    pub inputs: Option<&'a mut [E]>,
    /// `softmax(s / T)`.
    pub belief: Option<&'a mut [E]>,
    /// The sums of the context bank, to which it adds the batch.
    pub context_sums: Option<ContextSums<'a, E::Real>>,
}

/// The sums of a context bank.
pub struct ContextSums<'a, R> {
    /// N, (C, Ds)
    pub numerator: &'a mut [R],
    /// d, (C,)
    pub denominator: &'a mut [R],
}

/// The terms kd and class, the student's belief, and the batch's contexts.
///
/// # Errors
///
/// Where lengths do not fit, the temperature or a weight is out of range, or a label is neither a class nor
/// `ignore_index`: nothing has been added to the sums.
pub fn before<E: Element, T: Element<Real = E::Real>>(
    batch: &Batch<E, T>,
    temperature: f64,
    ignore_index: i64,
    outputs: Before<E>,
) -> Result<(), Error> {
    let Batch { student_features, student_logits, teacher_features, teacher_logits, target, weight, sizes } = *batch;
    let Sizes { samples, classes, students, teachers } = sizes;
    check_shape("student_features", student_features, [samples, students])?;
    check_labels(target, Some(classes), ignore_index)?;
    let logits = [samples, classes];
    kd(
        student_logits,
        teacher_logits,
        None,
        weight,
        logits,
        temperature,
        Divergence::Forward,
        ignore_index,
        Reduction::Mean,
        Loss::Total(&mut outputs.terms[KD]),
        outputs.kd_grad,
    )?;
    let value = &mut outputs.terms[CLASS];
    let columns = [students, teachers];
    class_(student_features, teacher_features, target, columns, ignore_index, value, outputs.class_grad)?;
    if let Some(belief) = outputs.belief {
        softmax(student_logits, logits, temperature, belief)?;
    }
    if let Some(inputs) = outputs.inputs {
        check_shape("inputs", inputs, [samples, 2 * students])?;
        for (to, from) in inputs.chunks_exact_mut(2 * students).zip(student_features.chunks_exact(students)) {
            to[..students].copy_from_slice(from);
        }
    }
    if let Some(ContextSums { numerator, denominator }) = outputs.context_sums {
        let mut weights = vec![E::Real::default(); samples];
        context_weights(teacher_logits, target, logits, temperature, ignore_index, &mut weights)?;
        let shape = [samples, students];
        accumulate_context(student_features, &weights, target, shape, ignore_index, numerator, denominator)?;
    }
    Ok(())
}

/// What the logits z are to say.
#[derive(Clone, Copy)]
pub enum Target<'a, R> {
    /// The class of each sample, and the label of those without one.
    Labels(&'a [i64], i64),
    /// The share of each class in each sample; all 0 in those without one.
    Shares(&'a [R]),
}

/// The factors of the terms in the total.
#[derive(Clone, Copy)]
pub struct Factors {
    /// The factor of ce and kd.
    pub alpha: f64,
    /// The factor of sample.
    pub beta: f64,
    /// The factor of class.
    pub gamma: f64,
}

/// Where the results of [`after`] go.
pub struct After<'a, E: Element> {
    /// The values of the terms; it fills in those that [`before`] has not.
    pub terms: &'a mut [E::Real],
    /// The weighted total.
    pub loss: &'a mut E::Real,
    /// The derivative of sample in the adapted features.
    pub sample_grad: Option<&'a mut [E]>,
    /// The derivative of ce in z.
    pub ce_grad: Option<&'a mut [E]>,
}

/// The terms sample and ce (0 without `logits`), and the total.
///
/// # Errors
///
/// Where lengths do not fit, a weight is out of range, or a label is neither a class nor `ignore_index`.
pub fn after<E: Element, T: Element<Real = E::Real>>(
    adapted: &[E],
    teacher_features: &[T],
    logits: Option<&[E]>,
    target: Target<E::Real>,
    weight: Option<&[E::Real]>,
    [samples, teachers, classes]: [usize; 3],
    factors: Factors,
    outputs: After<E>,
) -> Result<(), Error> {
    let terms = outputs.terms;
    let value = Loss::Total(&mut terms[SAMPLE]);
    sample(adapted, teacher_features, weight, [samples, teachers], Reduction::Mean, value, outputs.sample_grad)?;
    let (value, shape) = (&mut terms[CE], [samples, classes]);
    match (logits, target) {
        (Some(z), Target::Labels(y, ignore_index)) => {
            cross_entropy(z, y, weight, shape, ignore_index, value, outputs.ce_grad)?;
        }
        (Some(z), Target::Shares(y)) => soft_cross_entropy(z, y, weight, shape, value, outputs.ce_grad)?,
        (None, _) => *value = E::Real::default(),
    }
    let Factors { alpha, beta, gamma } = factors;
    let term = |index: usize| terms[index].to_f64();
    let total = alpha * (term(CE) + term(KD)) + beta * term(SAMPLE) + gamma * term(CLASS);
    *outputs.loss = E::Real::from_f64(total);
    Ok(())
}
