//! Class representation.

use pyo3::prelude::*;

use super::run;
use crate::dlpack::Output;
use crate::dtype::with_elements;
use crate::operands::Operands;

/// Class representation.
#[pyfunction]
pub fn class_(
    py: Python<'_>,
    student_features: &Bound<'_, PyAny>,
    teacher_features: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    ignore_index: i64,
    loss: &Bound<'_, PyAny>,
    grad: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let mut operands = Operands::default();
    let student = operands.matrix("student_features", student_features)?;
    let (dtype, [rows, students]) = (student.dtype(), student.shape());
    let teacher = operands.input("teacher_features", teacher_features, dtype.beside(), &[&[Some(rows), None]])?;
    let target = operands.labels(target, rows)?;
    let loss = operands.loss(loss, dtype)?;
    let grad = operands.grad("grad", grad, &student)?;
    let columns = [students, teacher.shape()[1]];
    with_elements!(dtype, teacher.dtype(), E, T => {
        let (student, teacher, target) = (student.as_slice::<E>(), teacher.as_slice::<T>(), target.as_slice());
        let (loss, grad) = (&mut loss.into_slice()[0], grad.map(Output::into_slice));
        run(py, student.len() + teacher.len(), || {
            cid_kernels::class_(student, teacher, target, columns, ignore_index, loss, grad)
        })
    })
}
