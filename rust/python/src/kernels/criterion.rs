//! The whole criterion, but for its matrix products.

use cid_kernels::criterion::{After, Batch, Before, ContextSums, Factors, Sizes, Target};
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt};

use super::run;
use crate::dlpack::Output;
use crate::dtype::{DType, FLOATS, with_elements};
use crate::operands::{Operands, plain};

/// Whether all arguments of the criterion are as its kernels and its products take them.
#[pyfunction]
pub fn cid_fits(
    student_features: &Bound<'_, PyAny>,
    student_logits: &Bound<'_, PyAny>,
    teacher_features: &Bound<'_, PyAny>,
    teacher_logits: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    weight: Option<&Bound<'_, PyAny>>,
    adapter_weight: &Bound<'_, PyAny>,
    adapter_bias: &Bound<'_, PyAny>,
    head_weight: &Bound<'_, PyAny>,
    head_bias: &Bound<'_, PyAny>,
    context: Option<&Bound<'_, PyAny>>,
    factors: [Bound<'_, PyAny>; 3],
    temperature: &Bound<'_, PyAny>,
    ignore_index: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let Some((dtype, f)) = plain(student_features)? else { return Ok(false) };
    let &[rows, students] = &f[..] else { return Ok(false) };
    let Some((_, s)) = plain(student_logits)? else { return Ok(false) };
    let &[_, classes] = &s[..] else { return Ok(false) };
    let Some((teacher, t)) = plain(teacher_features)? else { return Ok(false) };
    let &[teacher_rows, teachers] = &t[..] else { return Ok(false) };
    let is = |object: &Bound<'_, PyAny>, dtypes: &[DType], shape: &[usize]| {
        Ok::<_, PyErr>(plain(object)?.is_some_and(|(is, of)| dtypes.contains(&is) && of == shape))
    };
    let own = &[dtype];
    if !FLOATS.contains(&dtype)
        || teacher_rows != rows
        || !is(student_logits, own, &[rows, classes])?
        || !dtype.beside().contains(&teacher)
        || !is(teacher_logits, &[teacher], &[rows, classes])?
        || !is(target, &[DType::I64], &[rows])?
        || !weight.map_or(Ok(true), |weight| is(weight, &[dtype.real()], &[rows]))?
        || !is(adapter_weight, own, &[teachers, students])?
        || !is(adapter_bias, own, &[teachers])?
    {
        return Ok(false);
    }
    if let Some(context) = context
        && (!is(context, &[dtype, dtype.real()], &[classes, students])?
            || !is(head_weight, own, &[classes, 2 * students])?
            || !is(head_bias, own, &[classes])?)
    {
        return Ok(false);
    }
    let number = |object: &Bound<'_, PyAny>| {
        let is_number = object.is_exact_instance_of::<PyFloat>() || object.is_exact_instance_of::<PyInt>();
        is_number.then(|| object.extract::<f64>().ok()).flatten().unwrap_or(f64::NAN)
    };
    Ok(factors.iter().all(|factor| (0.0..f64::INFINITY).contains(&number(factor)))
        && (1e-30..=1e30).contains(&number(temperature))
        && ignore_index.is_exact_instance_of::<PyInt>()
        && ignore_index.extract::<i64>().is_ok())
}

/// All of the criterion that comes before its products.
#[pyfunction]
pub fn cid_before(
    py: Python<'_>,
    student_features: &Bound<'_, PyAny>,
    student_logits: &Bound<'_, PyAny>,
    teacher_features: &Bound<'_, PyAny>,
    teacher_logits: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    weight: Option<&Bound<'_, PyAny>>,
    temperature: f64,
    ignore_index: i64,
    terms: &Bound<'_, PyAny>,
    kd_grad: Option<&Bound<'_, PyAny>>,
    class_grad: Option<&Bound<'_, PyAny>>,
    inputs: Option<&Bound<'_, PyAny>>,
    belief: Option<&Bound<'_, PyAny>>,
    numerator: Option<&Bound<'_, PyAny>>,
    denominator: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let f = operands.matrix("student_features", student_features)?;
    let (dtype, [rows, dim]) = (f.dtype(), f.shape());
    let s = operands.input("student_logits", student_logits, &[dtype], &[&[Some(rows), None]])?;
    let t = operands.input("teacher_features", teacher_features, dtype.beside(), &[&[Some(rows), None]])?;
    let logits = s.shape().map(Some);
    let q = operands.input("teacher_logits", teacher_logits, &[t.dtype()], &[&logits])?;
    let y = operands.labels(target, rows)?;
    let weight = operands.weight(weight, dtype, rows)?;
    let real = dtype.real();
    let terms = operands.output("terms", terms, real, &[&[Some(4)]])?;
    let kd_grad = operands.grad("kd_grad", kd_grad, &s)?;
    let class_grad = operands.grad("class_grad", class_grad, &f)?;
    let wide = [Some(rows), Some(2 * dim)];
    let mut optional = |argument, object: Option<_>, dtype, shape: &[Option<usize>]| {
        object.map(|object| operands.output(argument, object, dtype, &[shape])).transpose()
    };
    let inputs = optional("inputs", inputs, dtype, &wide)?;
    let belief = optional("belief", belief, dtype, &logits)?;
    let numerator = optional("numerator", numerator, real, &[logits[1], Some(dim)])?;
    let denominator = optional("denominator", denominator, real, &[logits[1]])?;
    let sizes = Sizes { samples: rows, classes: s.shape()[1], students: dim, teachers: t.shape()[1] };
    with_elements!(dtype, t.dtype(), E, T => {
        let batch = Batch {
            student_features: f.as_slice::<E>(),
            student_logits: s.as_slice(),
            teacher_features: t.as_slice::<T>(),
            teacher_logits: q.as_slice(),
            target: y.as_slice(),
            weight: weight.map(|weight| weight.as_slice()),
            sizes,
        };
        let outputs = Before {
            terms: terms.into_slice(),
            kd_grad: kd_grad.map(Output::into_slice),
            class_grad: class_grad.map(Output::into_slice),
            inputs: inputs.map(Output::into_slice),
            belief: belief.map(Output::into_slice),
            context_sums: numerator
                .zip(denominator)
                .map(|(n, d)| ContextSums { numerator: n.into_slice(), denominator: d.into_slice() }),
        };
        run(py, batch.elements(), || cid_kernels::criterion::before(&batch, temperature, ignore_index, outputs))
    })
}

/// All of the criterion that comes after its products.
#[pyfunction]
pub fn cid_after(
    py: Python<'_>,
    adapted: &Bound<'_, PyAny>,
    teacher_features: &Bound<'_, PyAny>,
    logits: Option<&Bound<'_, PyAny>>,
    target: &Bound<'_, PyAny>,
    weight: Option<&Bound<'_, PyAny>>,
    ignore_index: i64,
    alpha: f64,
    beta: f64,
    gamma: f64,
    terms: &Bound<'_, PyAny>,
    loss: &Bound<'_, PyAny>,
    sample_grad: Option<&Bound<'_, PyAny>>,
    ce_grad: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let adapted = operands.matrix("adapted", adapted)?;
    let (dtype, features) = (adapted.dtype(), adapted.shape());
    let t = operands.input("teacher_features", teacher_features, dtype.beside(), &[&features.map(Some)])?;
    let z = logits.map(|z| operands.input("logits", z, &[dtype], &[&[Some(features[0]), None]])).transpose()?;
    let classes = z.as_ref().map_or(0, |z| z.shape()[1]);
    // That a type has its shape the kernel sees by the length.
    let shapes: [&[_]; 2] = [&[Some(features[0])], &[Some(features[0]), Some(classes)]];
    let y = operands.input("target", target, &[DType::I64, dtype.real()], &shapes)?;
    let weight = operands.weight(weight, dtype, features[0])?;
    let terms = operands.output("terms", terms, dtype.real(), &[&[Some(4)]])?;
    let loss = operands.loss(loss, dtype)?;
    let sample_grad = operands.grad("sample_grad", sample_grad, &adapted)?;
    let ce_grad = match &z {
        Some(z) => operands.grad("ce_grad", ce_grad, z)?,
        None => None,
    };
    with_elements!(dtype, t.dtype(), E, T => {
        let (adapted, t) = (adapted.as_slice::<E>(), t.as_slice::<T>());
        let y = match y.dtype() {
            DType::I64 => Target::Labels(y.as_slice(), ignore_index),
            _ => Target::Shares(y.as_slice()),
        };
        let (z, weight) = (z.map(|z| z.as_slice()), weight.map(|weight| weight.as_slice()));
        let outputs = After {
            terms: terms.into_slice(),
            loss: &mut loss.into_slice()[0],
            sample_grad: sample_grad.map(Output::into_slice),
            ce_grad: ce_grad.map(Output::into_slice),
        };
        let sizes = [features[0], features[1], classes];
        let factors = Factors { alpha, beta, gamma };
        run(py, adapted.len() + features[0] * classes, || {
            cid_kernels::criterion::after(adapted, t, z, y, weight, sizes, factors, outputs)
        })
    })
}
