//! Everything that comes from PyTorch as an address: tensors, by its DLPack exchange table, and its thread pool.
//!
//! The table's borrowed view is the cheapest way in, and checks nothing: all checks are here.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::fmt::Write;
use std::marker::PhantomData;
use std::ops::Range;

use cid_kernels::{Bf16, F16};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use pyo3::{ffi, intern};

/// `DLTensor` of DLPack 1.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    dtype: DlDataType,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

#[derive(Clone, Copy, PartialEq)]
#[repr(C)]
struct DlDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// `DLPackExchangeAPI`, of which one entry is used.
#[repr(C)]
struct ExchangeApi {
    major: u32,
    minor: u32,
    previous: *const c_void,
    managed_tensor_allocator: *const c_void,
    managed_tensor_from_py_object: *const c_void,
    managed_tensor_to_py_object: *const c_void,
    tensor_from_py_object: Option<TensorFromPyObject>,
}

type TensorFromPyObject = unsafe extern "C" fn(object: *mut c_void, out: *mut DlTensor) -> c_int;

const CAPSULE: &std::ffi::CStr = c"dlpack_exchange_api";
/// Memory that the CPU reads: its own, and that pinned for a GPU's sake.
const HOST: [i32; 2] = [1, 3];

/// What is looked up once.
struct Torch {
    tensor: Py<PyType>,
    parameter: Py<PyType>,
    from_py_object: TensorFromPyObject,
}

impl Torch {
    fn get(py: Python<'_>) -> PyResult<&Self> {
        static TORCH: PyOnceLock<Torch> = PyOnceLock::new();
        TORCH.get_or_try_init(py, || {
            let tensor = py.import("torch")?.getattr("Tensor")?.cast_into::<PyType>()?;
            let missing = || PyRuntimeError::new_err("this PyTorch has no DLPack exchange table of version 1");
            let capsule = tensor.getattr("__dlpack_c_exchange_api__").map_err(|_| missing())?;
            let name: *const c_char = CAPSULE.as_ptr();
            // SAFETY: the name is a C string. The call refuses what is no capsule of that name.
            let api = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), name) };
            if api.is_null() {
                return Err(PyErr::fetch(py));
            }
            // SAFETY: a capsule of this name holds the table, which lives as long as the process. The version comes
            // first in every version, and the fields of major version 1 are those above.
            let api = unsafe {
                let major = *api.cast::<u32>();
                if major != 1 { None } else { Some(&*api.cast::<ExchangeApi>()) }
            };
            let from_py_object = api.and_then(|api| api.tensor_from_py_object).ok_or_else(missing)?;
            let parameter = py.import("torch.nn")?.getattr("Parameter")?.cast_into::<PyType>()?;
            Ok(Self { tensor: tensor.unbind(), parameter: parameter.unbind(), from_py_object })
        })
    }
}

/// An element type that a tensor may have here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DType {
    /// `torch.float32`
    F32,
    /// `torch.float64`
    F64,
    /// `torch.bfloat16`
    BF16,
    /// `torch.float16`
    F16,
    /// `torch.int64`
    I64,
}

/// The types of logits and features.
pub const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::BF16, DType::F16];

impl DType {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "torch.float32",
            Self::F64 => "torch.float64",
            Self::BF16 => "torch.bfloat16",
            Self::F16 => "torch.float16",
            Self::I64 => "torch.int64",
        }
    }

    fn of(dtype: DlDataType) -> Option<Self> {
        match dtype {
            DlDataType { code: 2, bits: 32, lanes: 1 } => Some(Self::F32),
            DlDataType { code: 2, bits: 64, lanes: 1 } => Some(Self::F64),
            DlDataType { code: 4, bits: 16, lanes: 1 } => Some(Self::BF16),
            DlDataType { code: 2, bits: 16, lanes: 1 } => Some(Self::F16),
            DlDataType { code: 0, bits: 64, lanes: 1 } => Some(Self::I64),
            _ => None,
        }
    }

    /// The type that a float type is computed in.
    pub fn real(self) -> Self {
        match self {
            Self::BF16 | Self::F16 => Self::F32,
            _ => self,
        }
    }

    fn size(self) -> usize {
        match self {
            Self::BF16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

/// The Rust type of a [`DType`].
///
/// # Safety
///
/// Elements of a tensor of type `DTYPE` are valid values of the type, of the size of [`DType::size`].
pub unsafe trait Scalar: Copy + Send + Sync {
    /// The tensor's type.
    const DTYPE: DType;
}

// SAFETY: these are those types, and any bits are a value of them.
unsafe impl Scalar for f32 {
    const DTYPE: DType = DType::F32;
}
// SAFETY: as above.
unsafe impl Scalar for f64 {
    const DTYPE: DType = DType::F64;
}
// SAFETY: as above.
unsafe impl Scalar for Bf16 {
    const DTYPE: DType = DType::BF16;
}
// SAFETY: as above.
unsafe impl Scalar for F16 {
    const DTYPE: DType = DType::F16;
}
// SAFETY: as above.
unsafe impl Scalar for i64 {
    const DTYPE: DType = DType::I64;
}

/// The dense memory of a tensor that has passed all checks.
///
/// It is borrowed from the Python object, whose reference `'a` keeps it alive. As anywhere in PyTorch, a program must
/// not resize or write a tensor in one thread while it passes it to a function in another.
pub struct Input<'a> {
    start: *mut c_void,
    len: usize,
    dtype: DType,
    rank: usize,
    shape: [usize; MAX_RANK],
    object: PhantomData<&'a PyAny>,
}

/// As [`Input`], and no other operand of the call overlaps it.
pub struct Output<'a>(Input<'a>);

const MAX_RANK: usize = 2;

impl<'a> Input<'a> {
    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The size of a dimension.
    pub fn size(&self, dimension: usize) -> usize {
        self.shape[dimension]
    }

    /// Its elements.
    pub fn as_slice<T: Scalar>(&self) -> &'a [T] {
        assert_eq!(self.dtype, T::DTYPE, "the type was checked when the tensor was borrowed");
        if self.len == 0 {
            return &[];
        }
        // SAFETY: `Operands::borrow` has checked the pointer, alignment, density and type; see the struct for the
        // memory's life. No `Output` of the call overlaps it.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }
}

impl<'a> Output<'a> {
    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// The size of a dimension.
    pub fn size(&self, dimension: usize) -> usize {
        self.0.shape[dimension]
    }

    /// Its elements.
    pub fn into_slice<T: Scalar>(self) -> &'a mut [T] {
        assert_eq!(self.0.dtype, T::DTYPE, "the type was checked when the tensor was borrowed");
        if self.0.len == 0 {
            return &mut [];
        }
        // SAFETY: as in `Input::as_slice`; it overlaps no other operand, and is consumed.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.cast(), self.0.len) }
    }
}

/// A size that a dimension must have, or `None` for any.
pub type Size = Option<usize>;

/// The operands of one call, each checked against those before.
#[derive(Default)]
pub struct Operands {
    seen: [Option<Operand>; 16],
    count: usize,
}

#[derive(Clone)]
struct Operand {
    argument: &'static str,
    memory: Range<usize>,
    output: bool,
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
        self.borrow(argument, object, dtypes, shapes, false)
    }

    /// Borrows a tensor to write.
    pub fn output<'a>(
        &mut self,
        argument: &'static str,
        object: &'a Bound<'_, PyAny>,
        dtype: DType,
        shapes: &[&[Size]],
    ) -> PyResult<Output<'a>> {
        let output = self.borrow(argument, object, &[dtype], shapes, true)?;
        advise_huge_pages(output.start, output.len * dtype.size());
        Ok(Output(output))
    }

    fn borrow<'a>(
        &mut self,
        argument: &'static str,
        object: &'a Bound<'_, PyAny>,
        dtypes: &[DType],
        shapes: &[&[Size]],
        output: bool,
    ) -> PyResult<Input<'a>> {
        let tensor = view(argument, object)?;
        let dtype = DType::of(tensor.dtype).filter(|dtype| dtypes.contains(dtype));
        let dtype = dtype.ok_or_else(|| wrong_dtype(argument, object, dtypes))?;
        if !HOST.contains(&tensor.device_type) {
            let came = attribute(object, intern!(object.py(), "device"));
            return Err(PyValueError::new_err(format!("{argument}: device {came} (accepted: cpu)")));
        }

        let rank = usize::try_from(tensor.ndim).unwrap_or(usize::MAX);
        // SAFETY: the table gives `ndim` sizes and, unless null, strides, which live as long as the tensor's shape
        // is not changed: the GIL is held until they have been read.
        let (sizes, strides) = unsafe { (array(tensor.shape, rank), array(tensor.strides, rank)) };
        let fits = |shape: &&[Size]| {
            rank == shape.len()
                && sizes.iter().zip(*shape).all(|(&size, wanted)| match wanted {
                    Some(wanted) => usize::try_from(size) == Ok(*wanted),
                    None => size >= 0,
                })
        };
        if rank > MAX_RANK || !shapes.iter().any(fits) {
            return Err(wrong_shape(argument, sizes, shapes));
        }
        let mut checked = [1; MAX_RANK];
        for (checked, &size) in checked.iter_mut().zip(sizes) {
            *checked = size as usize;
        }
        let bytes = checked.iter().try_fold(dtype.size(), |product, &size| product.checked_mul(size));
        let bytes = bytes
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or_else(|| wrong_shape(argument, sizes, shapes))?;
        if bytes > 0 && !is_contiguous(sizes, strides) {
            return Err(PyValueError::new_err(format!(
                "{argument}: strides {strides:?} for shape {} (accepted: contiguous tensors)",
                tuple(sizes.iter().map(|&size| Some(size)))
            )));
        }

        // The view shows the values that are to be negated.
        if is_negated(object)? {
            return Err(PyValueError::new_err(format!(
                "{argument}: a negated view (accepted: tensors that hold their values; see Tensor.resolve_neg)"
            )));
        }

        let start = tensor.data.wrapping_byte_add(tensor.byte_offset as usize);
        if bytes > 0 && tensor.data.is_null() {
            return Err(PyTypeError::new_err(format!(
                "{argument}: a {} without memory of its own (accepted: dense tensors)",
                type_name(object)
            )));
        }
        if bytes > 0 && start.addr() % dtype.size() != 0 {
            return Err(PyValueError::new_err(format!(
                "{argument}: memory at {:#x} (accepted: multiples of the element's {} bytes)",
                start.addr(),
                dtype.size()
            )));
        }
        let memory = start.addr()..start.addr() + bytes;
        self.add(Operand { argument, memory, output })?;
        Ok(Input { start, len: bytes / dtype.size(), dtype, rank, shape: checked, object: PhantomData })
    }

    /// Refuses an output that shares memory with another operand.
    fn add(&mut self, new: Operand) -> PyResult<()> {
        for old in self.seen[..self.count].iter().flatten() {
            let overlap = old.memory.start.max(new.memory.start) < old.memory.end.min(new.memory.end);
            if overlap && (old.output || new.output) {
                let (output, other) = if new.output { (&new, old) } else { (old, &new) };
                return Err(PyValueError::new_err(format!(
                    "{}: shares memory with {} (accepted: outputs with memory of their own)",
                    output.argument, other.argument
                )));
            }
        }
        self.seen[self.count] = Some(new);
        self.count += 1;
        Ok(())
    }
}

/// Type and shape of an object, if it is a tensor that a kernel can read as it lies in memory: dense, on the CPU, of a
/// class that PyTorch itself makes, with elements of a type known here.
pub fn plain(object: &Bound<'_, PyAny>) -> PyResult<Option<(DType, Vec<usize>)>> {
    let py = object.py();
    let torch = Torch::get(py)?;
    let class = object.get_type();
    if !class.is(&torch.tensor) && !class.is(&torch.parameter) {
        return Ok(None);
    }
    let Ok(tensor) = view("", object) else { return Ok(None) };
    let Some(dtype) = DType::of(tensor.dtype).filter(|_| HOST.contains(&tensor.device_type)) else { return Ok(None) };
    let rank = usize::try_from(tensor.ndim).unwrap_or(usize::MAX);
    // SAFETY: as in `Operands::borrow`.
    let (sizes, strides) = unsafe { (array(tensor.shape, rank), array(tensor.strides, rank)) };
    // A null pointer: its values, if any, are elsewhere.
    if tensor.data.is_null() || sizes.contains(&0) || !is_contiguous(sizes, strides) || is_negated(object)? {
        return Ok(None);
    }
    Ok(Some((dtype, sizes.iter().map(|&size| size as usize).collect())))
}

/// The table's view of a tensor.
fn view(argument: &str, object: &Bound<'_, PyAny>) -> PyResult<DlTensor> {
    let py = object.py();
    let torch = Torch::get(py)?;
    // The table takes any object for a tensor. SAFETY: both are live Python objects, the second one a type.
    let is_tensor = unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), torch.tensor.as_ptr().cast()) } != 0;
    if !is_tensor {
        let came = type_name(object);
        return Err(PyTypeError::new_err(format!("{argument}: {came} (accepted: torch.Tensor)")));
    }
    let mut tensor = std::mem::MaybeUninit::<DlTensor>::uninit();
    // SAFETY: the object is a tensor and the GIL is held; `out` has room for what the entry writes.
    let status = unsafe { (torch.from_py_object)(object.as_ptr().cast(), tensor.as_mut_ptr()) };
    if status != 0 {
        let cause = PyErr::take(py);
        let error =
            PyTypeError::new_err(format!("{argument}: no dense tensor on the CPU (accepted: dense CPU tensors)"));
        error.set_cause(py, cause);
        return Err(error);
    }
    // SAFETY: the entry has succeeded, and so filled it in.
    Ok(unsafe { tensor.assume_init() })
}

/// Asks for huge pages where an output is so large that the allocator has likely just mapped it: the kernel is about to
/// touch each of its pages for the first time, which for small ones takes longer than computing what goes there.
#[cfg(target_os = "linux")]
fn advise_huge_pages(start: *mut c_void, bytes: usize) {
    /// From here on the call to ask costs nothing beside the kernel.
    const LARGE: usize = 4 << 20;
    /// A multiple of the size of any system's pages.
    const PAGE: usize = 64 << 10;
    const MADV_HUGEPAGE: c_int = 14;
    unsafe extern "C" {
        fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int;
    }
    if bytes >= LARGE {
        let skipped = start.addr().next_multiple_of(PAGE) - start.addr();
        // SAFETY: the pages lie within a tensor's memory, and advice changes nothing but how fast they are. Where the
        // system gives none, as its result would say, they are as they were.
        unsafe { madvise(start.wrapping_byte_add(skipped), bytes - skipped, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_start: *mut c_void, _bytes: usize) {}

/// A C array; empty where the pointer is null.
///
/// # Safety
///
/// A pointer that is not null must point to `len` numbers that live as long as is said by `'a`.
unsafe fn array<'a>(pointer: *const i64, len: usize) -> &'a [i64] {
    if pointer.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(pointer, len) }
}

/// Whether rows lie one after the other. The stride of a dimension of size 1 says nothing.
fn is_contiguous(sizes: &[i64], strides: &[i64]) -> bool {
    let mut expected = 1;
    for (&size, &stride) in sizes.iter().zip(strides).rev() {
        if size != 1 && stride != expected {
            return false;
        }
        expected *= size;
    }
    true
}

/// Whether the values of a tensor are those in its memory, negated: as in the imaginary part of a conjugate.
fn is_negated(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    object.call_method0(intern!(object.py(), "is_neg"))?.is_truthy()
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().fully_qualified_name().map_or_else(|_| "an object".into(), |name| name.to_string())
}

fn attribute(object: &Bound<'_, PyAny>, name: &Bound<'_, pyo3::types::PyString>) -> String {
    object.getattr(name).map_or_else(|_| "unknown".into(), |value| value.to_string())
}

#[cold]
fn wrong_dtype(argument: &str, object: &Bound<'_, PyAny>, dtypes: &[DType]) -> PyErr {
    let came = attribute(object, intern!(object.py(), "dtype"));
    let accepted: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
    PyTypeError::new_err(format!("{argument}: dtype {came} (accepted: {})", accepted.join(", ")))
}

#[cold]
fn wrong_shape(argument: &str, sizes: &[i64], shapes: &[&[Size]]) -> PyErr {
    let came = tuple(sizes.iter().map(|&size| Some(size)));
    let accepted: Vec<String> = shapes.iter().map(|shape| tuple(shape.iter().copied())).collect();
    PyValueError::new_err(format!("{argument}: shape {came} (accepted: {})", accepted.join(" or ")))
}

/// Sizes as Python writes a tuple, with `*` for any.
fn tuple<T: std::fmt::Display>(sizes: impl ExactSizeIterator<Item = Option<T>>) -> String {
    let (count, mut text) = (sizes.len(), String::from("("));
    for (i, size) in sizes.enumerate() {
        let comma = if i + 1 < count {
            ", "
        } else if count == 1 {
            ","
        } else {
            ""
        };
        let _ = match size {
            Some(size) => write!(text, "{size}{comma}"),
            None => write!(text, "*{comma}"),
        };
    }
    text + ")"
}

/// Hands the addresses of PyTorch's two functions to the kernels.
pub fn use_torch_threads(parallel_for: usize, get_num_threads: usize) -> PyResult<()> {
    for (argument, address) in [("parallel_for", parallel_for), ("get_num_threads", get_num_threads)] {
        if address == 0 {
            return Err(PyValueError::new_err(format!("{argument}: 0 (accepted: the address of a function)")));
        }
    }
    // SAFETY: the Python caller gives the addresses of `torch_parallel_for` and `torch_get_num_threads`, which are
    // functions of these types, do as `use_pool` asks, and are never unloaded.
    unsafe {
        let parallel_for =
            std::mem::transmute::<*const c_void, cid_kernels::par::ParallelFor>(parallel_for as *const c_void);
        let get_num_threads =
            std::mem::transmute::<*const c_void, cid_kernels::par::GetNumThreads>(get_num_threads as *const c_void);
        cid_kernels::par::use_pool(parallel_for, get_num_threads);
    }
    Ok(())
}
