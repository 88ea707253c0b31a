//! What is refused, and in which words: those of the package's own checks, `argument: got X, accepted: Y`.

use std::fmt;

use crate::dispatch::VARIABLE;
use crate::simd::Real;

/// Why a function has written nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// `CID_SIMD` can't be met.
    Tier {
        /// What it names.
        forced: String,
        /// Whether there is a tier of that name, which this CPU lacks.
        exists: bool,
        /// The tiers of this CPU.
        accepted: Vec<&'static str>,
    },
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
    /// A weight that is negative or not finite.
    Weight {
        /// The weight.
        weight: f64,
        /// Where it stands.
        index: usize,
    },
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tier { forced, exists, accepted } => {
                let why = if *exists { ", which this CPU lacks" } else { "" };
                write!(f, "{VARIABLE}: got '{forced}'{why}, accepted: '{}'", accepted.join("', '"))
            }
            Self::Length { argument, len, expected } => {
                write!(f, "{argument}: got {len} elements, accepted: {expected}")
            }
            Self::Temperature(value) => {
                write!(f, "temperature: got {value:?}, accepted: finite, from 1e-30 to 1e+30")
            }
            Self::Beta(value) => write!(f, "beta: got {value:?}, accepted: finite, above 0 and below 1"),
            Self::Label { label, index, classes, ignore_index } => {
                write!(f, "target: label {label} at index {index}, accepted: ")?;
                match classes {
                    None => write!(f, "0 and up, or ")?,
                    Some(0) => {}
                    Some(classes) => write!(f, "0 to {}, or ", classes - 1)?,
                }
                write!(f, "ignore_index {ignore_index}")
            }
            Self::Weight { weight, index } => {
                // As Python writes it, also where it is no number.
                let weight = if weight.is_nan() { "nan".into() } else { format!("{weight:?}") };
                write!(f, "weight: got {weight} at index {index}, accepted: finite numbers >= 0")
            }
        }
    }
}

/// An error unless `argument` has the length that the others ask for.
pub(crate) fn check_len<T>(argument: &'static str, slice: &[T], expected: usize) -> Result<(), Error> {
    let len = slice.len();
    if len == expected { Ok(()) } else { Err(Error::Length { argument, len, expected }) }
}

/// An error unless `argument` is a matrix of this shape.
pub(crate) fn check_shape<T>(argument: &'static str, slice: &[T], [rows, columns]: [usize; 2]) -> Result<(), Error> {
    check_len(argument, slice, rows.saturating_mul(columns))
}

/// An error unless the temperature and its inverse are of a size that every type can hold.
pub(crate) fn check_temperature(temperature: f64) -> Result<(), Error> {
    if (1e-30..=1e30).contains(&temperature) { Ok(()) } else { Err(Error::Temperature(temperature)) }
}

/// An error unless each label is a class or ignored. Without `classes` any label from 0 is a class.
pub(crate) fn check_labels(target: &[i64], classes: Option<usize>, ignore_index: i64) -> Result<(), Error> {
    let end = classes.map_or(i64::MAX as u64 + 1, |classes| classes as u64);
    // A negative label is a large unsigned one.
    match target.iter().position(|&label| label as u64 >= end && label != ignore_index) {
        None => Ok(()),
        Some(index) => Err(Error::Label { label: target[index], index, classes, ignore_index }),
    }
}

/// An error unless there is a finite weight from 0 for each row, or none at all.
pub(crate) fn check_weight<R: Real>(weight: Option<&[R]>, rows: usize) -> Result<(), Error> {
    let Some(weights) = weight else { return Ok(()) };
    check_len("weight", weights, rows)?;
    match weights.iter().position(|weight| !(0.0..f64::INFINITY).contains(&weight.to_f64())) {
        None => Ok(()),
        Some(index) => Err(Error::Weight { weight: weights[index].to_f64(), index }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_refused_in_the_words_of_the_package() {
        let said = |label, classes| check_labels(&[0, label], classes, -100).unwrap_err().to_string();
        for label in [3, -1, i64::MAX, i64::MIN] {
            let expected = format!("target: label {label} at index 1, accepted: 0 to 2, or ignore_index -100");
            assert_eq!(said(label, Some(3)), expected);
        }
        assert_eq!(said(-3, None), "target: label -3 at index 1, accepted: 0 and up, or ignore_index -100");
        let none = check_labels(&[0], Some(0), -100).unwrap_err().to_string();
        assert_eq!(none, "target: label 0 at index 0, accepted: ignore_index -100");
    }

    #[test]
    fn numbers_and_lengths_are_refused_in_the_words_of_the_package() {
        let error = check_temperature(0.0).unwrap_err().to_string();
        assert_eq!(error, "temperature: got 0.0, accepted: finite, from 1e-30 to 1e+30");
        assert_eq!(Error::Beta(1.5).to_string(), "beta: got 1.5, accepted: finite, above 0 and below 1");
        for (weight, came) in [(-0.5, "-0.5"), (f32::NAN, "nan"), (f32::INFINITY, "inf"), (-f32::INFINITY, "-inf")] {
            let error = check_weight(Some(&[0.0, weight]), 2).unwrap_err().to_string();
            assert_eq!(error, format!("weight: got {came} at index 1, accepted: finite numbers >= 0"));
        }
        let error = check_shape("grad", &[0.0; 6], [2, 2]).unwrap_err().to_string();
        assert_eq!(error, "grad: got 6 elements, accepted: 4");
    }
}
