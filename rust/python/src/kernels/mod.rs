//! The bindings, a file a formula: each checks its tensors, and runs the kernel on their memory.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cid_kernels::{Error, Reduction};
use pyo3::prelude::*;

use crate::errors;

pub mod class_;
pub mod columns;
pub mod context;
pub mod criterion;
pub mod cross_entropy;
pub mod kd;
pub mod sample;
pub mod softmax;

/// Work, in elements, from which other Python threads may run meanwhile.
const DETACH: usize = 16_384;

/// Runs a kernel, and makes a Python exception of whatever goes wrong: a panic, too, must be one that `except
/// Exception` catches.
fn run(py: Python<'_>, elements: usize, kernel: impl FnOnce() -> Result<(), Error> + Send) -> PyResult<()> {
    let kernel = AssertUnwindSafe(kernel);
    let result = if elements > DETACH { py.detach(|| catch_unwind(kernel)) } else { catch_unwind(kernel) };
    match result {
        Ok(result) => result.map_err(errors::of_kernel),
        Err(panic) => Err(errors::panic(message(&*panic))),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("of unknown cause")
}

fn reduction(mean: bool) -> Reduction {
    if mean { Reduction::Mean } else { Reduction::Sum }
}
