//! Cross-entropy, with labels or with shares.

use pyo3::prelude::*;

use super::run;
use crate::dlpack::Output;
use crate::dtype::with_element;
use crate::operands::Operands;

/// Cross-entropy.
#[pyfunction]
pub fn cross_entropy(
    py: Python<'_>,
    logits: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    weight: Option<&Bound<'_, PyAny>>,
    ignore_index: i64,
    loss: &Bound<'_, PyAny>,
    grad: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let logits = operands.matrix("logits", logits)?;
    let (dtype, shape) = (logits.dtype(), logits.shape());
    let target = operands.labels(target, shape[0])?;
    let weight = operands.weight(weight, dtype, shape[0])?;
    let loss = operands.loss(loss, dtype)?;
    let grad = operands.grad("grad", grad, &logits)?;
    with_element!(dtype, E => {
        let (logits, target) = (logits.as_slice::<E>(), target.as_slice());
        let weight = weight.map(|weight| weight.as_slice());
        let (loss, grad) = (loss.into_slice(), grad.map(Output::into_slice));
        run(py, logits.len(), || {
            cid_kernels::cross_entropy(logits, target, weight, shape, ignore_index, &mut loss[0], grad)
        })
    })
}

/// Cross-entropy with shares.
#[pyfunction]
pub fn soft_cross_entropy(
    py: Python<'_>,
    logits: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    weight: Option<&Bound<'_, PyAny>>,
    loss: &Bound<'_, PyAny>,
    grad: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let logits = operands.matrix("logits", logits)?;
    let (dtype, shape) = (logits.dtype(), logits.shape());
    let target = operands.shares(target, &logits)?;
    let weight = operands.weight(weight, dtype, shape[0])?;
    let loss = operands.loss(loss, dtype)?;
    let grad = operands.grad("grad", grad, &logits)?;
    with_element!(dtype, E => {
        let (logits, target) = (logits.as_slice::<E>(), target.as_slice());
        let weight = weight.map(|weight| weight.as_slice());
        let (loss, grad) = (loss.into_slice(), grad.map(Output::into_slice));
        run(py, logits.len(), || cid_kernels::soft_cross_entropy(logits, target, weight, shape, &mut loss[0], grad))
    })
}
