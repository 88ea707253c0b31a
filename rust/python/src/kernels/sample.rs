//! Sample representation.

use pyo3::prelude::*;

use super::{reduction, run};
use crate::dlpack::Output;
use crate::dtype::with_elements;
use crate::operands::Operands;

/// Sample representation.
#[pyfunction]
pub fn sample(
    py: Python<'_>,
    student_features: &Bound<'_, PyAny>,
    teacher_features: &Bound<'_, PyAny>,
    weight: Option<&Bound<'_, PyAny>>,
    mean: bool,
    loss: &Bound<'_, PyAny>,
    grad: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let student = operands.matrix("student_features", student_features)?;
    let (dtype, shape) = (student.dtype(), student.shape());
    let teacher = operands.input("teacher_features", teacher_features, dtype.beside(), &[&shape.map(Some)])?;
    let weight = operands.weight(weight, dtype, shape[0])?;
    let loss = operands.losses(loss, dtype, shape[0])?;
    let grad = operands.grad("grad", grad, &student)?;
    with_elements!(dtype, teacher.dtype(), E, T => {
        let (student, teacher) = (student.as_slice::<E>(), teacher.as_slice::<T>());
        let weight = weight.map(|weight| weight.as_slice());
        let (loss, grad) = (loss.into_loss(), grad.map(Output::into_slice));
        run(py, student.len(), || cid_kernels::sample(student, teacher, weight, shape, reduction(mean), loss, grad))
    })
}
