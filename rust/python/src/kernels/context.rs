//! The context bank: its weights, with labels or with shares, and its sums.

use pyo3::prelude::*;

use super::run;
use crate::dtype::with_element;
use crate::operands::Operands;

/// The context weight of each row.
#[pyfunction]
pub fn context_weights(
    py: Python<'_>,
    teacher_logits: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    temperature: f64,
    ignore_index: i64,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let teacher = operands.matrix("teacher_logits", teacher_logits)?;
    let (dtype, shape) = (teacher.dtype(), teacher.shape());
    let target = operands.labels(target, shape[0])?;
    let out = operands.output("out", out, dtype.real(), &[&[Some(shape[0])]])?;
    with_element!(dtype, E => {
        let (teacher, target, out) = (teacher.as_slice::<E>(), target.as_slice(), out.into_slice());
        run(py, teacher.len(), || {
            cid_kernels::context_weights(teacher, target, shape, temperature, ignore_index, out)
        })
    })
}

/// The context weights of each row with shares.
#[pyfunction]
pub fn soft_context_weights(
    py: Python<'_>,
    teacher_logits: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    temperature: f64,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let teacher = operands.matrix("teacher_logits", teacher_logits)?;
    let (dtype, shape) = (teacher.dtype(), teacher.shape());
    let target = operands.shares(target, &teacher)?;
    let out = operands.output("out", out, dtype.real(), &[&shape.map(Some)])?;
    with_element!(dtype, E => {
        let (teacher, target, out) = (teacher.as_slice::<E>(), target.as_slice(), out.into_slice());
        run(py, teacher.len(), || {
            cid_kernels::soft_context_weights(teacher, target, shape, temperature, out)
        })
    })
}

/// Adds a batch to the sums of the context bank.
#[pyfunction]
pub fn accumulate_context(
    py: Python<'_>,
    features: &Bound<'_, PyAny>,
    weights: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    ignore_index: i64,
    numerator: &Bound<'_, PyAny>,
    denominator: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let features = operands.matrix("features", features)?;
    let (dtype, shape) = (features.dtype(), features.shape());
    let real = dtype.real();
    let weights = operands.input("weights", weights, &[real], &[&[Some(shape[0])]])?;
    let target = operands.labels(target, shape[0])?;
    let numerator = operands.output("numerator", numerator, real, &[&[None, Some(shape[1])]])?;
    let denominator = operands.output("denominator", denominator, real, &[&[Some(numerator.rows())]])?;
    with_element!(dtype, E => {
        let (features, weights, target) = (features.as_slice::<E>(), weights.as_slice(), target.as_slice());
        let (numerator, denominator) = (numerator.into_slice(), denominator.into_slice());
        run(py, features.len(), || {
            cid_kernels::accumulate_context(
                features, weights, target, shape, ignore_index, numerator, denominator,
            )
        })
    })
}
