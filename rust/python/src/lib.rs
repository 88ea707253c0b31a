//! The Python module `cid._native`: names the kernels and hands them checked tensors.

#![deny(unsafe_code)] // but for `dlpack`, `huge_pages` and `threads`

mod dlpack;
mod dtype;
mod errors;
mod huge_pages;
mod kernels;
mod operands;
mod threads;

use pyo3::prelude::pymodule;

/// The compiled kernels: plain functions over dense CPU tensors.
#[pymodule]
mod _native {
    use pyo3::prelude::*;
    use pyo3::types::{PyDict, PyTuple};

    use crate::dtype::FLOATS;
    use crate::{errors, operands};

    #[pymodule_export]
    use crate::kernels::class_::class_;
    #[pymodule_export]
    use crate::kernels::columns::column_sums;
    #[pymodule_export]
    use crate::kernels::context::{accumulate_context, context_weights, soft_context_weights};
    #[pymodule_export]
    use crate::kernels::criterion::{cid_after, cid_before, cid_fits};
    #[pymodule_export]
    use crate::kernels::cross_entropy::{cross_entropy, soft_cross_entropy};
    #[pymodule_export]
    use crate::kernels::kd::kd;
    #[pymodule_export]
    use crate::kernels::sample::sample;
    #[pymodule_export]
    use crate::kernels::softmax::{softmax, softmax_backward};
    #[pymodule_export]
    use crate::threads::{run_serially, use_torch_threads};

    /// What this build is, and which vector instructions it uses.
    #[pyfunction]
    fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let level = cid_kernels::dispatch::level().map_err(errors::of_kernel)?;
        let info = PyDict::new(py);
        info.set_item("version", env!("CARGO_PKG_VERSION"))?;
        info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
        info.set_item("simd", cid_kernels::dispatch::name(level))?;
        Ok(info)
    }

    /// Whether all are dense CPU tensors of one float type, of PyTorch's own classes, with elements.
    #[pyfunction]
    #[pyo3(signature = (*tensors))]
    fn plain(tensors: &Bound<'_, PyTuple>) -> PyResult<bool> {
        let mut first = None;
        for object in tensors.iter_borrowed() {
            match operands::plain(&object)? {
                Some((dtype, _)) if FLOATS.contains(&dtype) && *first.get_or_insert(dtype) == dtype => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}
