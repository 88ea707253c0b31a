//! The Python module `cid._native`: names the kernels and hands them checked tensors.

#![deny(unsafe_code)] // but for `dlpack`

mod dlpack;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cid_kernels::criterion::{After, Batch, Before, ContextSums, Sizes, Target, Weights};
use cid_kernels::{Divergence, Error, Loss, Real, Reduction};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyTuple};

use dlpack::{DType, FLOATS, Input, Operands, Output, Scalar};

/// Work, in elements, from which other Python threads may run meanwhile.
const DETACH: usize = 16_384;

/// Runs an expression with `$element` naming the Rust type of a checked float tensor.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $call:expr) => {
        match $dtype {
            DType::F32 => {
                type $element = f32;
                $call
            }
            DType::F64 => {
                type $element = f64;
                $call
            }
            DType::BF16 => {
                type $element = cid_kernels::Bf16;
                $call
            }
            DType::F16 => {
                type $element = cid_kernels::F16;
                $call
            }
            DType::I64 => unreachable!("floats alone were accepted"),
        }
    };
}

/// As `with_element`, of the student's type and the teacher's: the same, or either half beside an `f32`.
macro_rules! with_elements {
    ($dtype:expr, $teacher:expr, $element:ident, $other:ident => $call:expr) => {
        match ($dtype, $teacher) {
            (DType::F32, DType::BF16) => {
                type $element = f32;
                type $other = cid_kernels::Bf16;
                $call
            }
            (DType::F32, DType::F16) => {
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

/// The types of a teacher that the kernels take beside a student's.
fn beside(dtype: DType) -> &'static [DType] {
    match dtype {
        DType::F32 => &[DType::F32, DType::BF16, DType::F16],
        DType::F64 => &[DType::F64],
        DType::BF16 => &[DType::BF16],
        DType::F16 => &[DType::F16],
        DType::I64 => &[],
    }
}

/// Runs a kernel, and makes a Python exception of whatever goes wrong: a panic, too, must be one that `except
/// Exception` catches.
fn run(py: Python<'_>, elements: usize, kernel: impl FnOnce() -> Result<(), Error> + Send) -> PyResult<()> {
    let kernel = AssertUnwindSafe(kernel);
    let result = if elements > DETACH { py.detach(|| catch_unwind(kernel)) } else { catch_unwind(kernel) };
    match result {
        Ok(result) => result.map_err(exception),
        Err(panic) => Err(PyRuntimeError::new_err(format!("panic in a kernel: {}", message(&*panic)))),
    }
}

fn exception(error: Error) -> PyErr {
    match error {
        Error::Tier(_) => PyRuntimeError::new_err(error.to_string()),
        Error::Length { .. } | Error::Temperature(_) | Error::Beta(_) | Error::Label { .. } => {
            PyValueError::new_err(error.to_string())
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("of unknown cause")
}

/// A float matrix of any size.
fn matrix<'a>(operands: &mut Operands, argument: &'static str, object: &'a Bound<'_, PyAny>) -> PyResult<Input<'a>> {
    operands.input(argument, object, FLOATS, &[&[None, None]])
}

fn labels<'a>(operands: &mut Operands, object: &'a Bound<'_, PyAny>, rows: usize) -> PyResult<Input<'a>> {
    operands.input("target", object, &[DType::I64], &[&[Some(rows)]])
}

fn reduction(mean: bool) -> Reduction {
    if mean { Reduction::Mean } else { Reduction::Sum }
}

/// Where a loss goes: to a number, or to one a row.
enum LossOutput<'a> {
    Total(Output<'a>),
    Each(Output<'a>),
}

impl<'a> LossOutput<'a> {
    fn new(operands: &mut Operands, object: &'a Bound<'_, PyAny>, dtype: DType, rows: usize) -> PyResult<Self> {
        let output = operands.output("loss", object, dtype, &[&[], &[Some(rows)]])?;
        Ok(if output.rank() == 0 { Self::Total(output) } else { Self::Each(output) })
    }

    fn into_loss<R: Real + Scalar>(self) -> Loss<'a, R> {
        match self {
            Self::Total(output) => Loss::Total(&mut output.into_slice()[0]),
            Self::Each(output) => Loss::Each(output.into_slice()),
        }
    }
}

fn optional_output<'a>(
    operands: &mut Operands,
    argument: &'static str,
    object: Option<&'a Bound<'_, PyAny>>,
    like: &Input<'_>,
) -> PyResult<Option<Output<'a>>> {
    let shape = shape(like).map(Some);
    object.map(|object| operands.output(argument, object, like.dtype(), &[&shape])).transpose()
}

/// The shape of a matrix.
fn shape(matrix: &Input<'_>) -> [usize; 2] {
    [matrix.size(0), matrix.size(1)]
}

/// The compiled kernels: plain functions over dense CPU tensors.
#[pymodule]
mod _native {
    use super::*;

    /// What this build is, and which vector instructions it uses.
    #[pyfunction]
    fn build_info(py: Python<'_>) -> PyResult<Bound<'_, pyo3::types::PyDict>> {
        let level = cid_kernels::dispatch::level().map_err(exception)?;
        let info = pyo3::types::PyDict::new(py);
        info.set_item("version", env!("CARGO_PKG_VERSION"))?;
        info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
        info.set_item("simd", cid_kernels::dispatch::name(level))?;
        Ok(info)
    }

    /// Run on PyTorch's thread pool.
    #[pyfunction]
    fn use_torch_threads(parallel_for: usize, get_num_threads: usize) -> PyResult<()> {
        dlpack::use_torch_threads(parallel_for, get_num_threads)
    }

    /// Stay in the calling thread from now on.
    #[pyfunction]
    fn run_serially() {
        cid_kernels::par::run_serially();
    }

    /// Whether all are dense CPU tensors of one float type, of PyTorch's own classes, with elements.
    #[pyfunction]
    #[pyo3(signature = (*tensors))]
    fn plain(tensors: &Bound<'_, PyTuple>) -> PyResult<bool> {
        let mut first = None;
        for object in tensors.iter_borrowed() {
            match dlpack::plain(&object)? {
                Some((dtype, _)) if FLOATS.contains(&dtype) && *first.get_or_insert(dtype) == dtype => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether all arguments of the criterion are as its kernels and its products take them.
    #[pyfunction]
    fn cid_fits(
        student_features: &Bound<'_, PyAny>,
        student_logits: &Bound<'_, PyAny>,
        teacher_features: &Bound<'_, PyAny>,
        teacher_logits: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        adapter_weight: &Bound<'_, PyAny>,
        adapter_bias: &Bound<'_, PyAny>,
        head_weight: &Bound<'_, PyAny>,
        head_bias: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
        factors: [Bound<'_, PyAny>; 3],
        temperature: &Bound<'_, PyAny>,
        ignore_index: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let Some((dtype, f)) = dlpack::plain(student_features)? else { return Ok(false) };
        let &[rows, students] = &f[..] else { return Ok(false) };
        let Some((_, s)) = dlpack::plain(student_logits)? else { return Ok(false) };
        let &[_, classes] = &s[..] else { return Ok(false) };
        let Some((teacher, t)) = dlpack::plain(teacher_features)? else { return Ok(false) };
        let &[teacher_rows, teachers] = &t[..] else { return Ok(false) };
        let is = |object: &Bound<'_, PyAny>, dtypes: &[DType], shape: &[usize]| {
            Ok::<_, PyErr>(dlpack::plain(object)?.is_some_and(|(is, of)| dtypes.contains(&is) && of == shape))
        };
        let own = &[dtype];
        if !FLOATS.contains(&dtype)
            || teacher_rows != rows
            || !is(student_logits, own, &[rows, classes])?
            || !beside(dtype).contains(&teacher)
            || !is(teacher_logits, &[teacher], &[rows, classes])?
            || !is(target, &[DType::I64], &[rows])?
            || !is(adapter_weight, own, &[teachers, students])?
            || !is(adapter_bias, own, &[teachers])?
        {
            return Ok(false);
        }
        if let Some(context) = context
            && (!is(context, &[dtype, dtype.real()], &[classes, students])?
                || !is(head_weight, own, &[classes, 2 * students])?
                || !is(head_bias, own, &[classes])?)
        {
            return Ok(false);
        }
        let number = |object: &Bound<'_, PyAny>| {
            let is_number = object.is_exact_instance_of::<PyFloat>() || object.is_exact_instance_of::<PyInt>();
            is_number.then(|| object.extract::<f64>().ok()).flatten().unwrap_or(f64::NAN)
        };
        Ok(factors.iter().all(|factor| (0.0..f64::INFINITY).contains(&number(factor)))
            && (1e-30..=1e30).contains(&number(temperature))
            && ignore_index.is_exact_instance_of::<PyInt>()
            && ignore_index.extract::<i64>().is_ok())
    }

    /// All of the criterion that comes before its products.
    #[pyfunction]
    fn cid_before(
        py: Python<'_>,
        student_features: &Bound<'_, PyAny>,
        student_logits: &Bound<'_, PyAny>,
        teacher_features: &Bound<'_, PyAny>,
        teacher_logits: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        temperature: f64,
        ignore_index: i64,
        terms: &Bound<'_, PyAny>,
        kd_grad: Option<&Bound<'_, PyAny>>,
        class_grad: Option<&Bound<'_, PyAny>>,
        inputs: Option<&Bound<'_, PyAny>>,
        belief: Option<&Bound<'_, PyAny>>,
        numerator: Option<&Bound<'_, PyAny>>,
        denominator: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let f = matrix(&mut operands, "student_features", student_features)?;
        let (dtype, [rows, dim]) = (f.dtype(), shape(&f));
        let s = operands.input("student_logits", student_logits, &[dtype], &[&[Some(rows), None]])?;
        let t = operands.input("teacher_features", teacher_features, beside(dtype), &[&[Some(rows), None]])?;
        let logits = shape(&s).map(Some);
        let q = operands.input("teacher_logits", teacher_logits, &[t.dtype()], &[&logits])?;
        let y = labels(&mut operands, target, rows)?;
        let real = dtype.real();
        let terms = operands.output("terms", terms, real, &[&[Some(4)]])?;
        let kd_grad = optional_output(&mut operands, "kd_grad", kd_grad, &s)?;
        let class_grad = optional_output(&mut operands, "class_grad", class_grad, &f)?;
        let wide = [Some(rows), Some(2 * dim)];
        let mut optional = |argument, object: Option<_>, dtype, shape: &[Option<usize>]| {
            object.map(|object| operands.output(argument, object, dtype, &[shape])).transpose()
        };
        let inputs = optional("inputs", inputs, dtype, &wide)?;
        let belief = optional("belief", belief, dtype, &logits)?;
        let numerator = optional("context_sums", numerator, real, &[logits[1], Some(dim)])?;
        let denominator = optional("context_sums", denominator, real, &[logits[1]])?;
        let sizes = Sizes { samples: rows, classes: s.size(1), students: dim, teachers: t.size(1) };
        with_elements!(dtype, t.dtype(), E, T => {
            let batch = Batch {
                student_features: f.as_slice::<E>(),
                student_logits: s.as_slice(),
                teacher_features: t.as_slice::<T>(),
                teacher_logits: q.as_slice(),
                target: y.as_slice(),
                sizes,
            };
            let outputs = Before {
                terms: terms.into_slice(),
                kd_grad: kd_grad.map(Output::into_slice),
                class_grad: class_grad.map(Output::into_slice),
                inputs: inputs.map(Output::into_slice),
                belief: belief.map(Output::into_slice),
                context_sums: numerator
                    .zip(denominator)
                    .map(|(n, d)| ContextSums { numerator: n.into_slice(), denominator: d.into_slice() }),
            };
            run(py, batch.elements(), || cid_kernels::criterion::before(&batch, temperature, ignore_index, outputs))
        })
    }

    /// All of the criterion that comes after its products.
    #[pyfunction]
    fn cid_after(
        py: Python<'_>,
        adapted: &Bound<'_, PyAny>,
        teacher_features: &Bound<'_, PyAny>,
        logits: Option<&Bound<'_, PyAny>>,
        target: &Bound<'_, PyAny>,
        ignore_index: i64,
        alpha: f64,
        beta: f64,
        gamma: f64,
        terms: &Bound<'_, PyAny>,
        loss: &Bound<'_, PyAny>,
        sample_grad: Option<&Bound<'_, PyAny>>,
        ce_grad: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let adapted = matrix(&mut operands, "adapted", adapted)?;
        let (dtype, features) = (adapted.dtype(), shape(&adapted));
        let t = operands.input("teacher_features", teacher_features, beside(dtype), &[&features.map(Some)])?;
        let z = logits.map(|z| operands.input("logits", z, &[dtype], &[&[Some(features[0]), None]])).transpose()?;
        let classes = z.as_ref().map_or(0, |z| z.size(1));
        // That a type has its shape the kernel sees by the length.
        let shapes: [&[_]; 2] = [&[Some(features[0])], &[Some(features[0]), Some(classes)]];
        let y = operands.input("target", target, &[DType::I64, dtype.real()], &shapes)?;
        let terms = operands.output("terms", terms, dtype.real(), &[&[Some(4)]])?;
        let loss = operands.output("loss", loss, dtype.real(), &[&[]])?;
        let sample_grad = optional_output(&mut operands, "sample_grad", sample_grad, &adapted)?;
        let ce_grad = match &z {
            Some(z) => optional_output(&mut operands, "ce_grad", ce_grad, z)?,
            None => None,
        };
        with_elements!(dtype, t.dtype(), E, T => {
            let (adapted, t) = (adapted.as_slice::<E>(), t.as_slice::<T>());
            let y = match y.dtype() {
                DType::I64 => Target::Labels(y.as_slice(), ignore_index),
                _ => Target::Shares(y.as_slice()),
            };
            let z = z.map(|z| z.as_slice());
            let outputs = After {
                terms: terms.into_slice(),
                loss: &mut loss.into_slice()[0],
                sample_grad: sample_grad.map(Output::into_slice),
                ce_grad: ce_grad.map(Output::into_slice),
            };
            let weights = Weights { alpha, beta, gamma };
            run(py, adapted.len() + features[0] * classes, || {
                cid_kernels::criterion::after(adapted, t, z, y, [features[0], features[1], classes], weights, outputs)
            })
        })
    }

    /// The sum of each column, times a factor.
    #[pyfunction]
    fn column_sums(py: Python<'_>, matrix: &Bound<'_, PyAny>, factor: f64, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut operands = Operands::default();
        let matrix = self::matrix(&mut operands, "matrix", matrix)?;
        let (dtype, shape) = (matrix.dtype(), shape(&matrix));
        let out = operands.output("out", out, dtype, &[&[Some(shape[1])]])?;
        with_element!(dtype, E => {
            let (matrix, out) = (matrix.as_slice::<E>(), out.into_slice());
            run(py, matrix.len(), || cid_kernels::column_sums(matrix, shape, factor, out))
        })
    }

    /// Softened logits.
    #[pyfunction]
    fn kd(
        py: Python<'_>,
        student_logits: &Bound<'_, PyAny>,
        teacher_logits: &Bound<'_, PyAny>,
        target: Option<&Bound<'_, PyAny>>,
        temperature: f64,
        divergence: &str,
        beta: f64,
        ignore_index: i64,
        mean: bool,
        loss: &Bound<'_, PyAny>,
        grad: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let divergence = match divergence {
            "forward" => Divergence::Forward,
            "reverse" => Divergence::Reverse,
            "js" => Divergence::JensenShannon { beta },
            _ => {
                let text = format!("divergence: {divergence:?} (accepted: \"forward\", \"reverse\", \"js\")");
                return Err(PyValueError::new_err(text));
            }
        };
        let mut operands = Operands::default();
        let student = matrix(&mut operands, "student_logits", student_logits)?;
        let (dtype, shape) = (student.dtype(), shape(&student));
        let teacher = operands.input("teacher_logits", teacher_logits, beside(dtype), &[&shape.map(Some)])?;
        let target = target.map(|target| labels(&mut operands, target, shape[0])).transpose()?;
        let loss = LossOutput::new(&mut operands, loss, dtype.real(), shape[0])?;
        let grad = optional_output(&mut operands, "grad", grad, &student)?;
        with_elements!(dtype, teacher.dtype(), E, T => {
            let (student, teacher) = (student.as_slice::<E>(), teacher.as_slice::<T>());
            let target = target.map(|target| target.as_slice());
            let (loss, grad) = (loss.into_loss(), grad.map(Output::into_slice));
            let reduction = reduction(mean);
            run(py, student.len(), || {
                cid_kernels::kd(
                    student, teacher, target, shape, temperature, divergence, ignore_index, reduction, loss, grad,
                )
            })
        })
    }

    /// Cross-entropy.
    #[pyfunction]
    fn cross_entropy(
        py: Python<'_>,
        logits: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        ignore_index: i64,
        loss: &Bound<'_, PyAny>,
        grad: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let logits = matrix(&mut operands, "logits", logits)?;
        let (dtype, shape) = (logits.dtype(), shape(&logits));
        let target = labels(&mut operands, target, shape[0])?;
        let loss = operands.output("loss", loss, dtype.real(), &[&[]])?;
        let grad = optional_output(&mut operands, "grad", grad, &logits)?;
        with_element!(dtype, E => {
            let (logits, target) = (logits.as_slice::<E>(), target.as_slice());
            let (loss, grad) = (loss.into_slice(), grad.map(Output::into_slice));
            run(py, logits.len(), || {
                cid_kernels::cross_entropy(logits, target, shape, ignore_index, &mut loss[0], grad)
            })
        })
    }

    /// Cross-entropy with shares.
    #[pyfunction]
    fn soft_cross_entropy(
        py: Python<'_>,
        logits: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        loss: &Bound<'_, PyAny>,
        grad: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let logits = matrix(&mut operands, "logits", logits)?;
        let (dtype, shape) = (logits.dtype(), shape(&logits));
        let target = operands.input("target", target, &[dtype.real()], &[&shape.map(Some)])?;
        let loss = operands.output("loss", loss, dtype.real(), &[&[]])?;
        let grad = optional_output(&mut operands, "grad", grad, &logits)?;
        with_element!(dtype, E => {
            let (logits, target) = (logits.as_slice::<E>(), target.as_slice());
            let (loss, grad) = (loss.into_slice(), grad.map(Output::into_slice));
            run(py, logits.len(), || cid_kernels::soft_cross_entropy(logits, target, shape, &mut loss[0], grad))
        })
    }

    /// Sample representation.
    #[pyfunction]
    fn sample(
        py: Python<'_>,
        student_features: &Bound<'_, PyAny>,
        teacher_features: &Bound<'_, PyAny>,
        mean: bool,
        loss: &Bound<'_, PyAny>,
        grad: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let student = matrix(&mut operands, "student_features", student_features)?;
        let (dtype, shape) = (student.dtype(), shape(&student));
        let teacher = operands.input("teacher_features", teacher_features, beside(dtype), &[&shape.map(Some)])?;
        let loss = LossOutput::new(&mut operands, loss, dtype.real(), shape[0])?;
        let grad = optional_output(&mut operands, "grad", grad, &student)?;
        with_elements!(dtype, teacher.dtype(), E, T => {
            let (student, teacher) = (student.as_slice::<E>(), teacher.as_slice::<T>());
            let (loss, grad) = (loss.into_loss(), grad.map(Output::into_slice));
            run(py, student.len(), || cid_kernels::sample(student, teacher, shape, reduction(mean), loss, grad))
        })
    }

    /// Class representation.
    #[pyfunction]
    fn class_(
        py: Python<'_>,
        student_features: &Bound<'_, PyAny>,
        teacher_features: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        ignore_index: i64,
        loss: &Bound<'_, PyAny>,
        grad: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let student = matrix(&mut operands, "student_features", student_features)?;
        let (dtype, rows) = (student.dtype(), student.size(0));
        let teacher = operands.input("teacher_features", teacher_features, beside(dtype), &[&[Some(rows), None]])?;
        let target = labels(&mut operands, target, rows)?;
        let loss = operands.output("loss", loss, dtype.real(), &[&[]])?;
        let grad = optional_output(&mut operands, "grad", grad, &student)?;
        let columns = [student.size(1), teacher.size(1)];
        with_elements!(dtype, teacher.dtype(), E, T => {
            let (student, teacher, target) = (student.as_slice::<E>(), teacher.as_slice::<T>(), target.as_slice());
            let (loss, grad) = (&mut loss.into_slice()[0], grad.map(Output::into_slice));
            run(py, student.len() + teacher.len(), || {
                cid_kernels::class_(student, teacher, target, columns, ignore_index, loss, grad)
            })
        })
    }

    /// The softmax of each row.
    #[pyfunction]
    fn softmax(py: Python<'_>, logits: &Bound<'_, PyAny>, temperature: f64, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut operands = Operands::default();
        let logits = matrix(&mut operands, "logits", logits)?;
        let (dtype, shape) = (logits.dtype(), shape(&logits));
        let out = operands.output("out", out, dtype, &[&shape.map(Some)])?;
        with_element!(dtype, E => {
            let (logits, out) = (logits.as_slice::<E>(), out.into_slice());
            run(py, logits.len(), || cid_kernels::softmax(logits, shape, temperature, out))
        })
    }

    /// The derivative through the softmax of each row.
    #[pyfunction]
    fn softmax_backward(
        py: Python<'_>,
        grad_output: &Bound<'_, PyAny>,
        probabilities: &Bound<'_, PyAny>,
        temperature: f64,
        grad: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let grad_output = matrix(&mut operands, "grad_output", grad_output)?;
        let (dtype, shape) = (grad_output.dtype(), shape(&grad_output));
        let probabilities = operands.input("probabilities", probabilities, &[dtype], &[&shape.map(Some)])?;
        let grad = operands.output("grad", grad, dtype, &[&shape.map(Some)])?;
        with_element!(dtype, E => {
            let (grad_output, probabilities) = (grad_output.as_slice::<E>(), probabilities.as_slice());
            let grad = grad.into_slice();
            run(py, grad_output.len(), || {
                cid_kernels::softmax_backward(grad_output, probabilities, shape, temperature, grad)
            })
        })
    }

    /// The context weight of each row.
    #[pyfunction]
    fn context_weights(
        py: Python<'_>,
        teacher_logits: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        temperature: f64,
        ignore_index: i64,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let teacher = matrix(&mut operands, "teacher_logits", teacher_logits)?;
        let (dtype, shape) = (teacher.dtype(), shape(&teacher));
        let target = labels(&mut operands, target, shape[0])?;
        let out = operands.output("out", out, dtype.real(), &[&[Some(shape[0])]])?;
        with_element!(dtype, E => {
            let (teacher, target, out) = (teacher.as_slice::<E>(), target.as_slice(), out.into_slice());
            run(py, teacher.len(), || {
                cid_kernels::context_weights(teacher, target, shape, temperature, ignore_index, out)
            })
        })
    }

    /// The context weights of each row with shares.
    #[pyfunction]
    fn soft_context_weights(
        py: Python<'_>,
        teacher_logits: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        temperature: f64,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let teacher = matrix(&mut operands, "teacher_logits", teacher_logits)?;
        let (dtype, shape) = (teacher.dtype(), shape(&teacher));
        let target = operands.input("target", target, &[dtype.real()], &[&shape.map(Some)])?;
        let out = operands.output("out", out, dtype.real(), &[&shape.map(Some)])?;
        with_element!(dtype, E => {
            let (teacher, target, out) = (teacher.as_slice::<E>(), target.as_slice(), out.into_slice());
            run(py, teacher.len(), || {
                cid_kernels::soft_context_weights(teacher, target, shape, temperature, out)
            })
        })
    }

    /// Adds a batch to the sums of the context bank.
    #[pyfunction]
    fn accumulate_context(
        py: Python<'_>,
        features: &Bound<'_, PyAny>,
        weights: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        ignore_index: i64,
        numerator: &Bound<'_, PyAny>,
        denominator: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut operands = Operands::default();
        let features = matrix(&mut operands, "features", features)?;
        let (dtype, shape) = (features.dtype(), shape(&features));
        let real = dtype.real();
        let weights = operands.input("weights", weights, &[real], &[&[Some(shape[0])]])?;
        let target = labels(&mut operands, target, shape[0])?;
        let numerator = operands.output("numerator", numerator, real, &[&[None, Some(shape[1])]])?;
        let denominator = operands.output("denominator", denominator, real, &[&[Some(numerator.size(0))]])?;
        with_element!(dtype, E => {
            let (features, weights, target) = (features.as_slice::<E>(), weights.as_slice(), target.as_slice());
            let (numerator, denominator) = (numerator.into_slice(), denominator.into_slice());
            run(py, features.len(), || {
                cid_kernels::accumulate_context(
                    features, weights, target, shape, ignore_index, numerator, denominator,
                )
            })
        })
    }
}
