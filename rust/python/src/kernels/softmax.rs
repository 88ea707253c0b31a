//! The softmax, and the derivative through it.

use pyo3::prelude::*;

use super::run;
use crate::dtype::with_element;
use crate::operands::Operands;

/// The softmax of each row.
#[pyfunction]
pub fn softmax(py: Python<'_>, logits: &Bound<'_, PyAny>, temperature: f64, out: &Bound<'_, PyAny>) -> PyResult<()> {
    let mut operands = Operands::default();
    let logits = operands.matrix("logits", logits)?;
    let (dtype, shape) = (logits.dtype(), logits.shape());
    let out = operands.output("out", out, dtype, &[&shape.map(Some)])?;
    with_element!(dtype, E => {
        let (logits, out) = (logits.as_slice::<E>(), out.into_slice());
        run(py, logits.len(), || cid_kernels::softmax(logits, shape, temperature, out))
    })
}

/// The derivative through the softmax of each row.
#[pyfunction]
pub fn softmax_backward(
    py: Python<'_>,
    grad_output: &Bound<'_, PyAny>,
    probabilities: &Bound<'_, PyAny>,
    temperature: f64,
    grad: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let grad_output = operands.matrix("grad_output", grad_output)?;
    let (dtype, shape) = (grad_output.dtype(), grad_output.shape());
    let probabilities = operands.input("probabilities", probabilities, &[dtype], &[&shape.map(Some)])?;
    let grad = operands.output("grad", grad, dtype, &[&shape.map(Some)])?;
    with_element!(dtype, E => {
        let (grad_output, probabilities) = (grad_output.as_slice::<E>(), probabilities.as_slice());
        let grad = grad.into_slice();
        run(py, grad_output.len(), || {
            cid_kernels::softmax_backward(grad_output, probabilities, shape, temperature, grad)
        })
    })
}
