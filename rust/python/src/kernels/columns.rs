//! Sums over rows.

use pyo3::prelude::*;

use super::run;
use crate::dtype::with_element;
use crate::operands::Operands;

/// The sum of each column, times a factor.
#[pyfunction]
pub fn column_sums(py: Python<'_>, matrix: &Bound<'_, PyAny>, factor: f64, out: &Bound<'_, PyAny>) -> PyResult<()> {
    let mut operands = Operands::default();
    let matrix = operands.matrix("matrix", matrix)?;
    let (dtype, shape) = (matrix.dtype(), matrix.shape());
    let out = operands.output("out", out, dtype, &[&[Some(shape[1])]])?;
    with_element!(dtype, E => {
        let (matrix, out) = (matrix.as_slice::<E>(), out.into_slice());
        run(py, matrix.len(), || cid_kernels::column_sums(matrix, shape, factor, out))
    })
}
