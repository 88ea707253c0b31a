//! The bindings, a file a formula: each checks its tensors, and runs the kernel on their memory.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cid_kernels::{Error, Reduction};
use pyo3::prelude::*;

use crate::errors;

/// Runs an expression with `$element` naming the Rust type of a checked float tensor.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $call:expr) => {
        match $dtype {
            crate::dtype::DType::F32 => {
                type $element = f32;
                $call
            }
            crate::dtype::DType::F64 => {
                type $element = f64;
                $call
            }
            crate::dtype::DType::BF16 => {
                type $element = cid_kernels::Bf16;
                $call
            }
            crate::dtype::DType::F16 => {
                type $element = cid_kernels::F16;
                $call
            }
            crate::dtype::DType::I64 => unreachable!("floats alone were accepted"),
        }
    };
}

/// As `with_element`, of the student's type and the teacher's: the same, or either half beside an `f32`.
macro_rules! with_elements {
    ($dtype:expr, $teacher:expr, $element:ident, $other:ident => $call:expr) => {
        match ($dtype, $teacher) {
            (crate::dtype::DType::F32, crate::dtype::DType::BF16) => {
                type $element = f32;
                type $other = cid_kernels::Bf16;
                $call
            }
            (crate::dtype::DType::F32, crate::dtype::DType::F16) => {
                type $element = f32;
                type $other = cid_kernels::F16;
                $call
            }
            (dtype, _) => with_element!(dtype, $element => {
                type $other = $element;
                $call
            }),
        }
    };
}

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
