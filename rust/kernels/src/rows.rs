//! One driver for every formula that goes row by row: blocks, threads, short rows, sums over rows.

use std::ops::Range;

use fearless_simd::prelude::*;

use crate::dispatch::{self, dispatch};
use crate::par::{self, Chunks};
use crate::simd::{Element, MAX_LANES, Real, Vector};
use crate::{Error, check_len, check_shape};

/// The longest piece that a row is gone through in: two of them, of two rows, fit the cache next to the CPU.
pub(crate) const PIECE: usize = 2048;

/// Room for the exponentials of two rows: no larger than they need, so that it leaves the cache to them.
pub(crate) struct Scratch<R>(pub(crate) [Kept<R>; 2]);

/// What is kept of a row between two passes.
pub(crate) struct Kept<R> {
    /// The exponentials of its elements, less a maximum: the largest element up to the end of its piece.
    pub(crate) exponentials: Vec<R>,
    /// The maximum that is subtracted in each piece.
    pub(crate) maxima: Vec<R>,
}

impl<R: Real> Scratch<R> {
    pub(crate) fn new(columns: usize) -> Self {
        let kept = || Kept {
            exponentials: vec![R::default(); columns.max(MAX_LANES)],
            maxima: vec![R::default(); columns.div_ceil(PIECE)],
        };
        Self([kept(), kept()])
    }
}

/// Where the values of the rows go.
pub enum Loss<'a, R> {
    /// Their sum.
    Total(&'a mut R),
    /// Each to its own place.
    Each(&'a mut [R]),
}

/// How the values of rows become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// Their mean over the rows that count; 0 where none does.
    Mean,
}

impl Reduction {
    /// What the value of each row is multiplied by.
    pub(crate) fn scale(self, rows: usize) -> f64 {
        match self {
            Self::Sum => 1.0,
            Self::Mean => 1.0 / rows.max(1) as f64,
        }
    }
}

/// What the value of a row counts: its weight, or 1 where there are none.
#[inline(always)]
pub(crate) fn weight_of<R: Real>(weight: Option<&[R]>, row: usize) -> f64 {
    weight.map_or(1.0, |weight| weight[row].to_f64())
}

/// A formula of one row: of an operand whose type the result has, and of one that may be stored in another.
pub(crate) trait RowFormula<E: Element, T: Element<Real = E::Real> = E>: Sync {
    /// What rows shorter than a vector are filled up with: elements that change no result.
    const NEUTRAL: [f64; 2];

    /// The operands of a row, of its length or, where there is only one, empty.
    fn operands(&self, row: usize) -> (&[E], &[T]);

    /// The value of a row whose operands have at least the length of a vector; `out` has the same length.
    ///
    /// `#[inline(always)]`, as it is run with the CPU features of the tier of `simd`.
    fn row<S: Simd>(
        &self,
        simd: S,
        row: usize,
        operands: (&[E], &[T]),
        out: Option<&mut [E]>,
        scratch: &mut Scratch<E::Real>,
    ) -> f64;
}

/// Runs a formula over rows; the kernels have checked the operands.
pub(crate) fn run<E: Element, T: Element<Real = E::Real>, F: RowFormula<E, T>>(
    formula: &F,
    [rows, columns]: [usize; 2],
    mut loss: Option<Loss<'_, E::Real>>,
    out: Option<&mut [E]>,
) -> Result<(), Error> {
    if let Some(out) = &out {
        check_shape("grad", out, [rows, columns])?;
    }
    if let Some(Loss::Each(each)) = &loss {
        check_len("loss", each, rows)?;
    }
    let level = dispatch::level()?;
    if columns == 0 {
        match loss {
            Some(Loss::Total(total)) => *total = E::Real::default(),
            Some(Loss::Each(each)) => each.fill(E::Real::default()),
            None => {}
        }
        return Ok(());
    }
    let rows_a_block = (par::TASK / columns).max(1);
    let blocks = rows.div_ceil(rows_a_block);
    let mut totals = vec![0.0; if matches!(loss, Some(Loss::Total(_))) { blocks } else { 0 }];
    let each = match &mut loss {
        Some(Loss::Each(each)) => Some(Chunks::new(each, rows_a_block)),
        _ => None,
    };
    let out = out.map(|out| Chunks::new(out, rows_a_block * columns));
    par::for_each(
        blocks,
        rows * columns,
        (Chunks::new(&mut totals, 1), each, out),
        || Scratch::new(columns),
        |scratch, index, (total, each, out)| {
            let first = index * rows_a_block;
            let last = rows.min(first + rows_a_block);
            dispatch!(level, simd => block(simd, formula, first..last, columns, total, each, out, scratch));
        },
    );
    if let Some(Loss::Total(total)) = loss {
        *total = E::Real::from_f64(totals.iter().fold(0.0, |sum, total| sum + total));
    }
    Ok(())
}

#[inline(always)]
fn block<S: Simd, E: Element, T: Element<Real = E::Real>, F: RowFormula<E, T>>(
    simd: S,
    formula: &F,
    rows: Range<usize>,
    columns: usize,
    total: &mut [f64],
    mut each: Option<&mut [E::Real]>,
    mut out: Option<&mut [E]>,
    scratch: &mut Scratch<E::Real>,
) {
    let lanes = Vector::<S, E>::LEN;
    let short = columns < lanes;
    // A row shorter than a vector goes by way of a copy that is filled up to one.
    let [neutral, other_neutral] = F::NEUTRAL;
    let mut filled = [E::from_f64(neutral); MAX_LANES];
    let mut other_filled = [T::from_f64(other_neutral); MAX_LANES];
    let mut filled_out = [E::default(); MAX_LANES];
    let mut sum = 0.0;
    for (i, row) in rows.enumerate() {
        let (mut operand, mut other) = formula.operands(row);
        let mut out = out.as_deref_mut().map(|out| &mut out[i * columns..][..columns]);
        if short {
            filled[..operand.len()].copy_from_slice(operand);
            other_filled[..other.len()].copy_from_slice(other);
            (operand, other) = (&filled[..lanes], &other_filled[..lanes]);
        }
        let to = if short { out.is_some().then_some(&mut filled_out[..lanes]) } else { out.as_deref_mut() };
        let value = formula.row(simd, row, (operand, other), to, scratch);
        if short && let Some(out) = out {
            out.copy_from_slice(&filled_out[..columns]);
        }
        if let Some(each) = each.as_deref_mut() {
            each[i] = E::Real::from_f64(value);
        }
        sum += value;
    }
    if let [total] = total {
        *total = sum;
    }
}
