//! The arithmetic of interventional distillation, without Python.
//!
//! Each public function takes dense row-major slices and their shape, checks everything before it writes
//! anything, and runs on the threads of [`par`]. A `grad` of `None` is not computed. Results do not depend on the
//! number of threads; between vector instruction sets they differ by rounding.

#![deny(unsafe_code)] // but for `par`, which hands memory to other threads, and a hint to the cache

mod class_;
mod columns;
mod context;
pub mod criterion;
mod cross_entropy;
pub mod dispatch;
mod exp;
mod half;
mod kd;
pub mod par;
mod rows;
mod sample;
mod simd;
mod softmax;
#[cfg(test)]
mod testing;

use std::fmt;

pub use class_::class_;
pub use columns::column_sums;
pub use context::{accumulate_context, context_weights, soft_context_weights};
pub use cross_entropy::{cross_entropy, soft_cross_entropy};
pub use half::{Bf16, F16};
pub use kd::{Divergence, kd};
pub use rows::{Loss, Reduction};
pub use sample::sample;
pub use simd::{Element, Real};
pub use softmax::{softmax, softmax_backward};

/// Why a function has written nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// `CID_SIMD` can't be met; the text says why.
    Tier(String),
    /// An operand's length does not fit the others'.
    Length {
        /// The operand.
        argument: &'static str,
        /// Its length.
        len: usize,
        /// The length that the others ask for.
        expected: usize,
    },
    /// A temperature outside 1e-30 to 1e30.
    Temperature(f64),
    /// A `beta` that is not between 0 and 1.
    Beta(f64),
    /// A label that is neither a class nor `ignore_index`.
    Label {
        /// The label.
        label: i64,
        /// Where it stands.
        index: usize,
        /// The number of classes, where it is known.
        classes: Option<usize>,
        /// The label that marks an ignored sample.
        ignore_index: i64,
    },
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tier(reason) => f.write_str(reason),
            Self::Length { argument, len, expected } => {
                write!(f, "{argument}: {len} elements do not fit the other arguments (accepted: {expected})")
            }
            Self::Temperature(value) => {
                write!(f, "temperature: {value} is out of range (accepted: numbers from 1e-30 to 1e30)")
            }
            Self::Beta(value) => write!(f, "beta: {value} is no share (accepted: numbers above 0 and below 1)"),
            Self::Label { label, index, classes: Some(0), ignore_index } => {
                write!(
                    f,
                    "target: label {label} at index {index} is out of range for 0 classes (accepted: ignore_index \
                     {ignore_index})"
                )
            }
            Self::Label { label, index, classes: Some(classes), ignore_index } => {
                write!(
                    f,
                    "target: label {label} at index {index} is out of range for {classes} classes (accepted: 0 to {}, \
                     or ignore_index {ignore_index})",
                    classes - 1
                )
            }
            Self::Label { label, index, classes: None, ignore_index } => {
                write!(
                    f,
                    "target: label {label} at index {index} is negative (accepted: 0 and above, or ignore_index \
                     {ignore_index})"
                )
            }
        }
    }
}

/// An error unless `argument` has the length that the others ask for.
fn check_len<T>(argument: &'static str, slice: &[T], expected: usize) -> Result<(), Error> {
    let len = slice.len();
    if len == expected { Ok(()) } else { Err(Error::Length { argument, len, expected }) }
}

/// An error unless `argument` is a matrix of this shape.
fn check_shape<T>(argument: &'static str, slice: &[T], [rows, columns]: [usize; 2]) -> Result<(), Error> {
    check_len(argument, slice, rows.saturating_mul(columns))
}

/// An error unless the temperature and its inverse are of a size that every type can hold.
fn check_temperature(temperature: f64) -> Result<(), Error> {
    if (1e-30..=1e30).contains(&temperature) { Ok(()) } else { Err(Error::Temperature(temperature)) }
}

/// An error unless each label is a class or ignored. Without `classes` any label from 0 is a class.
fn check_labels(target: &[i64], classes: Option<usize>, ignore_index: i64) -> Result<(), Error> {
    let end = classes.map_or(i64::MAX as u64 + 1, |classes| classes as u64);
    // A negative label is a large unsigned one.
    match target.iter().position(|&label| label as u64 >= end && label != ignore_index) {
        None => Ok(()),
        Some(index) => Err(Error::Label { label: target[index], index, classes, ignore_index }),
    }
}
