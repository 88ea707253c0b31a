//! Softened logits.

use cid_kernels::Divergence;
use pyo3::prelude::*;

use super::{reduction, run};
use crate::dlpack::Output;
use crate::dtype::with_elements;
use crate::errors;
use crate::operands::Operands;

/// Softened logits.
#[pyfunction]
pub fn kd(
    py: Python<'_>,
    student_logits: &Bound<'_, PyAny>,
    teacher_logits: &Bound<'_, PyAny>,
    target: Option<&Bound<'_, PyAny>>,
    weight: Option<&Bound<'_, PyAny>>,
    temperature: f64,
    divergence: &str,
    beta: f64,
    ignore_index: i64,
    mean: bool,
    loss: &Bound<'_, PyAny>,
    grad: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let divergence = match divergence {
        "forward" => Divergence::Forward,
        "reverse" => Divergence::Reverse,
        "js" => Divergence::JensenShannon { beta },
        _ => return Err(errors::divergence(divergence)),
    };
    let mut operands = Operands::default();
    let student = operands.matrix("student_logits", student_logits)?;
    let (dtype, shape) = (student.dtype(), student.shape());
    let teacher = operands.input("teacher_logits", teacher_logits, dtype.beside(), &[&shape.map(Some)])?;
    let target = target.map(|target| operands.labels(target, shape[0])).transpose()?;
    let weight = operands.weight(weight, dtype, shape[0])?;
    let loss = operands.losses(loss, dtype, shape[0])?;
    let grad = operands.grad("grad", grad, &student)?;
    with_elements!(dtype, teacher.dtype(), E, T => {
        let (student, teacher) = (student.as_slice::<E>(), teacher.as_slice::<T>());
        let target = target.map(|target| target.as_slice());
        let weight = weight.map(|weight| weight.as_slice());
        let (loss, grad) = (loss.into_loss(), grad.map(Output::into_slice));
        let reduction = reduction(mean);
        run(py, student.len(), || {
            cid_kernels::kd(
                student, teacher, target, weight, shape, temperature, divergence, ignore_index, reduction, loss,
                grad,
            )
        })
    })
}
