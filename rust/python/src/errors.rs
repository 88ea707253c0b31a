//! What is refused, and in which words: those of `_checks.py`, `argument: got X, accepted: Y`.

use cid_kernels::Error;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::dtype::DType;

/// A size that a dimension must have, or `None` for any.
pub type Size = Option<usize>;

/// What a kernel does with an operand.
#[derive(Clone, Copy, PartialEq)]
pub enum Access {
    /// It reads it.
    Read,
    /// It writes it.
    Write,
}

/// What a kernel says of its arguments.
pub fn of_kernel(error: Error) -> PyErr {
    match error {
        Error::Tier { .. } => PyRuntimeError::new_err(error.to_string()),
        Error::Length { .. } | Error::Temperature(_) | Error::Beta(_) | Error::Label { .. } | Error::Weight { .. } => {
            PyValueError::new_err(error.to_string())
        }
    }
}

/// A kernel has panicked.
pub fn panic(message: &str) -> PyErr {
    PyRuntimeError::new_err(format!("panic in a kernel: {message}"))
}

/// PyTorch lacks what tensors are looked at by.
pub fn no_table() -> PyErr {
    PyRuntimeError::new_err("this PyTorch has no DLPack exchange table of version 1")
}

pub fn no_address(argument: &str) -> PyErr {
    PyValueError::new_err(format!("{argument}: got 0, accepted: the address of a function"))
}

pub fn divergence(came: &str) -> PyErr {
    PyValueError::new_err(format!("divergence: got '{came}', accepted: 'forward', 'reverse', 'js'"))
}

pub fn no_tensor(argument: &str, object: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("{argument}: got {}, accepted: torch.Tensor", class(object)))
}

/// The exchange table refuses a tensor, for this cause.
pub fn not_dense(argument: &str, object: &Bound<'_, PyAny>, cause: Option<PyErr>) -> PyErr {
    let py = object.py();
    let layout = attribute(object, intern!(py, "layout"));
    let error = PyTypeError::new_err(if layout != "torch.strided" {
        format!("{argument}: got layout {layout}, accepted: torch.strided (see Tensor.to_dense)")
    } else if attribute(object, intern!(py, "is_nested")) == "True" {
        format!("{argument}: got a nested tensor, accepted: one of a single shape (see Tensor.to_padded_tensor)")
    } else {
        format!("{argument}: got a {} that is not dense on the CPU, accepted: one that is", class(object))
    });
    error.set_cause(py, cause);
    error
}

pub fn no_memory(argument: &str, object: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!(
        "{argument}: got a {} without memory of its own, accepted: one with it",
        class(object)
    ))
}

pub fn misaligned(argument: &str, address: usize, size: usize) -> PyErr {
    PyValueError::new_err(format!("{argument}: got memory at {address:#x}, accepted: at a multiple of {size} bytes"))
}

#[cold]
pub fn dtype(argument: &str, object: &Bound<'_, PyAny>, accepted: &[DType]) -> PyErr {
    let came = attribute(object, intern!(object.py(), "dtype"));
    let accepted: Vec<&str> = accepted.iter().map(|dtype| dtype.name()).collect();
    PyTypeError::new_err(format!("{argument}: got {came}, accepted: {}", accepted.join(", ")))
}

/// A tensor is not on the CPU, where the first of the call is: `of` says whose device that is.
#[cold]
pub fn device(argument: &str, object: &Bound<'_, PyAny>, of: Option<&str>) -> PyErr {
    let came = attribute(object, intern!(object.py(), "device"));
    let of = of.map(|of| format!(", the device of {of}")).unwrap_or_default();
    PyValueError::new_err(format!("{argument}: is on {came}, accepted: cpu{of}"))
}

#[cold]
pub fn shape(argument: &str, sizes: &[i64], accepted: &[&[Size]]) -> PyErr {
    let size = |size: &Size| size.map_or_else(|| "*".into(), |size| size.to_string());
    let accepted: Vec<String> = accepted.iter().map(|sizes| tuple(sizes.iter().map(size))).collect();
    PyValueError::new_err(format!("{argument}: got shape {}, accepted: {}", numbers(sizes), accepted.join(" or ")))
}

pub fn too_large(argument: &str, sizes: &[i64]) -> PyErr {
    PyValueError::new_err(format!("{argument}: got shape {}, accepted: one that fits into memory", numbers(sizes)))
}

pub fn strides(argument: &str, strides: &[i64], access: Access) -> PyErr {
    let why = why(access);
    PyValueError::new_err(format!("{argument}: got strides {}, accepted: a contiguous tensor{why}", numbers(strides)))
}

/// A tensor shows the values in its memory negated.
pub fn negated(argument: &str, access: Access) -> PyErr {
    let why = match access {
        Access::Read => " (see Tensor.resolve_neg)",
        Access::Write => why(access),
    };
    PyValueError::new_err(format!("{argument}: is a negated view, accepted: a tensor without one{why}"))
}

pub fn overlap(argument: &str, other: &str) -> PyErr {
    let why = why(Access::Write);
    PyValueError::new_err(format!("{argument}: overlaps {other} in memory, accepted: memory of its own{why}"))
}

fn why(access: Access) -> &'static str {
    match access {
        Access::Read => "",
        Access::Write => ", it is written in place",
    }
}

fn class(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "object".into(), |name| name.to_string())
}

fn attribute(object: &Bound<'_, PyAny>, name: &Bound<'_, PyString>) -> String {
    object.getattr(name).map_or_else(|_| "unknown".into(), |value| value.to_string())
}

fn numbers(numbers: &[i64]) -> String {
    tuple(numbers.iter().map(i64::to_string))
}

/// Items as Python writes a tuple.
fn tuple(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    format!("({}{})", items.join(", "), if items.len() == 1 { "," } else { "" })
}
