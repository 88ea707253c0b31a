//! What a kernel asks of its tensors: a type, a place, a shape, and values that are as they lie in memory.

use cid_kernels::{Loss, Real};
use pyo3::intern;
use pyo3::prelude::*;

use crate::dlpack::{self, Input, Loans, Memory, Output, Scalar, View};
use crate::dtype::{DType, FLOATS};
use crate::errors::{self, Access, Size};

/// The operands of one call, each checked against those before.
#[derive(Default)]
pub struct Operands {
    loans: Loans,
    first: Option<&'static str>,
}

impl Operands {
    /// Borrows a tensor to read.
    pub fn input<'a>(
        &mut self,
        argument: &'static str,
        object: &'a Bound<'_, PyAny>,
        dtypes: &[DType],
        shapes: &[&[Size]],
    ) -> PyResult<Input<'a>> {
        let memory = self.check(argument, object, dtypes, shapes, Access::Read)?;
        self.loans.input(memory)
    }

    /// Borrows a tensor to write.
    pub fn output<'a>(
        &mut self,
        argument: &'static str,
        object: &'a Bound<'_, PyAny>,
        dtype: DType,
        shapes: &[&[Size]],
    ) -> PyResult<Output<'a>> {
        let memory = self.check(argument, object, &[dtype], shapes, Access::Write)?;
        self.loans.output(memory)
    }

    /// A float matrix of any size.
    pub fn matrix<'a>(&mut self, argument: &'static str, object: &'a Bound<'_, PyAny>) -> PyResult<Input<'a>> {
        self.input(argument, object, FLOATS, &[&[None, None]])
    }

    /// A label a row.
    pub fn labels<'a>(&mut self, object: &'a Bound<'_, PyAny>, rows: usize) -> PyResult<Input<'a>> {
        self.input("target", object, &[DType::I64], &[&[Some(rows)]])
    }

    /// The share of each class in each row of some logits.
    pub fn shares<'a>(&mut self, object: &'a Bound<'_, PyAny>, logits: &Input) -> PyResult<Input<'a>> {
        self.input("target", object, &[logits.dtype().real()], &[&logits.shape().map(Some)])
    }

    /// The weight of each row of a matrix of this type, where there are weights.
    pub fn weight<'a>(
        &mut self,
        object: Option<&'a Bound<'_, PyAny>>,
        dtype: DType,
        rows: usize,
    ) -> PyResult<Option<Input<'a>>> {
        object.map(|object| self.input("weight", object, &[dtype.real()], &[&[Some(rows)]])).transpose()
    }

    /// Where the loss of inputs of this type goes.
    pub fn loss<'a>(&mut self, object: &'a Bound<'_, PyAny>, dtype: DType) -> PyResult<Output<'a>> {
        self.output("loss", object, dtype.real(), &[&[]])
    }

    /// Where the loss goes that may be one a row.
    pub fn losses<'a>(&mut self, object: &'a Bound<'_, PyAny>, dtype: DType, rows: usize) -> PyResult<Losses<'a>> {
        let output = self.output("loss", object, dtype.real(), &[&[], &[Some(rows)]])?;
        Ok(if output.rank() == 0 { Losses::Total(output) } else { Losses::Each(output) })
    }

    /// Where the derivative in a matrix goes, if it is asked for.
    pub fn grad<'a>(
        &mut self,
        argument: &'static str,
        object: Option<&'a Bound<'_, PyAny>>,
        of: &Input,
    ) -> PyResult<Option<Output<'a>>> {
        let shape = of.shape().map(Some);
        object.map(|object| self.output(argument, object, of.dtype(), &[&shape])).transpose()
    }

    fn check<'a>(
        &mut self,
        argument: &'static str,
        object: &'a Bound<'_, PyAny>,
        dtypes: &[DType],
        shapes: &[&[Size]],
        access: Access,
    ) -> PyResult<Memory<'a>> {
        let view = View::of(argument, object)?;
        if !view.dtype().is_some_and(|dtype| dtypes.contains(&dtype)) {
            return Err(errors::dtype(argument, object, dtypes));
        }
        if !view.is_on_host() {
            let lead = if argument == "target" { Some("the features or logits") } else { self.first };
            return Err(errors::device(argument, object, lead));
        }
        let sizes = view.sizes();
        let fits = |shape: &&[Size]| {
            sizes.len() == shape.len()
                && sizes.iter().zip(*shape).all(|(&size, wanted)| match wanted {
                    Some(wanted) => usize::try_from(size) == Ok(*wanted),
                    None => size >= 0,
                })
        };
        if !shapes.iter().any(fits) {
            return Err(errors::shape(argument, sizes, shapes));
        }
        let memory = view.memory(access)?;
        if is_negated(object)? {
            return Err(errors::negated(argument, access));
        }
        self.first.get_or_insert(argument);
        Ok(memory)
    }
}

/// Where a loss goes: to a number, or to one a row.
pub enum Losses<'a> {
    Total(Output<'a>),
    Each(Output<'a>),
}

impl<'a> Losses<'a> {
    pub fn into_loss<R: Real + Scalar>(self) -> Loss<'a, R> {
        match self {
            Self::Total(output) => Loss::Total(&mut output.into_slice()[0]),
            Self::Each(output) => Loss::Each(output.into_slice()),
        }
    }
}

/// Type and shape of an object, if it is a tensor that a kernel can read as it lies in memory: dense, on the CPU, of a
/// class that PyTorch itself makes, with elements of a type known here.
pub fn plain(object: &Bound<'_, PyAny>) -> PyResult<Option<(DType, Vec<usize>)>> {
    if !dlpack::is_of_pytorch(object)? {
        return Ok(None);
    }
    let Ok(view) = View::of("", object) else { return Ok(None) };
    let Some(dtype) = view.dtype().filter(|_| view.is_on_host()) else { return Ok(None) };
    let sizes = view.sizes();
    if !view.has_memory() || sizes.contains(&0) || !view.is_contiguous() {
        return Ok(None);
    }
    let shape = sizes.iter().map(|&size| size as usize).collect();
    Ok(if is_negated(object)? { None } else { Some((dtype, shape)) })
}

/// Whether the values of a tensor are those in its memory, negated: as in the imaginary part of a conjugate.
fn is_negated(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    object.call_method0(intern!(object.py(), "is_neg"))?.is_truthy()
}
