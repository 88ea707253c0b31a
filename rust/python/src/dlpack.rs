//! Tensors as PyTorch's DLPack exchange table shows them, and their memory as slices: all `unsafe` code for tensors.
//!
//! The table's borrowed view is the cheapest way in, and checks nothing. Here is checked what makes it sound to read and
//! write that memory; what a kernel asks of its arguments is checked in `operands`.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use cid_kernels::{Bf16, F16};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::dtype::DType;
use crate::errors::{self, Access};
use crate::huge_pages;

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
            let capsule = tensor.getattr("__dlpack_c_exchange_api__").map_err(|_| errors::no_table())?;
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
            let from_py_object = api.and_then(|api| api.tensor_from_py_object).ok_or_else(errors::no_table)?;
            let parameter = py.import("torch.nn")?.getattr("Parameter")?.cast_into::<PyType>()?;
            Ok(Self { tensor: tensor.unbind(), parameter: parameter.unbind(), from_py_object })
        })
    }
}

/// Whether an object is of a class that PyTorch itself makes: what is derived from those may be anything.
pub fn is_of_pytorch(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let (torch, class) = (Torch::get(object.py())?, object.get_type());
    Ok(class.is(&torch.tensor) || class.is(&torch.parameter))
}

/// The element type, if it is one of those here.
fn known(dtype: DlDataType) -> Option<DType> {
    match dtype {
        DlDataType { code: 2, bits: 32, lanes: 1 } => Some(DType::F32),
        DlDataType { code: 2, bits: 64, lanes: 1 } => Some(DType::F64),
        DlDataType { code: 4, bits: 16, lanes: 1 } => Some(DType::BF16),
        DlDataType { code: 2, bits: 16, lanes: 1 } => Some(DType::F16),
        DlDataType { code: 0, bits: 64, lanes: 1 } => Some(DType::I64),
        _ => None,
    }
}

/// The Rust type of an element type.
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

/// The most dimensions of an operand.
const MAX_RANK: usize = 2;

/// A tensor as the table shows it: nothing of it is checked.
pub struct View<'a, 'py> {
    argument: &'static str,
    object: &'a Bound<'py, PyAny>,
    tensor: DlTensor,
}

impl<'a, 'py> View<'a, 'py> {
    /// That of a `torch.Tensor`.
    pub fn of(argument: &'static str, object: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let torch = Torch::get(py)?;
        // The table takes any object for a tensor. SAFETY: both are live Python objects, the second one a type.
        let is_tensor = unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), torch.tensor.as_ptr().cast()) } != 0;
        if !is_tensor {
            return Err(errors::no_tensor(argument, object));
        }
        let mut tensor = MaybeUninit::<DlTensor>::uninit();
        // SAFETY: the object is a tensor and the GIL is held; `out` has room for what the entry writes.
        let status = unsafe { (torch.from_py_object)(object.as_ptr().cast(), tensor.as_mut_ptr()) };
        if status != 0 {
            return Err(errors::not_dense(argument, object, PyErr::take(py)));
        }
        // SAFETY: the entry has succeeded, and so filled it in.
        Ok(Self { argument, object, tensor: unsafe { tensor.assume_init() } })
    }

    /// The element type, if it is one of those here.
    pub fn dtype(&self) -> Option<DType> {
        known(self.tensor.dtype)
    }

    /// Whether the CPU can read it.
    pub fn is_on_host(&self) -> bool {
        HOST.contains(&self.tensor.device_type)
    }

    /// Whether it has memory of its own. Of one without, the values, if any, are elsewhere.
    pub fn has_memory(&self) -> bool {
        !self.tensor.data.is_null()
    }

    /// The size of each dimension.
    pub fn sizes(&self) -> &[i64] {
        self.numbers(self.tensor.shape)
    }

    fn strides(&self) -> &[i64] {
        self.numbers(self.tensor.strides)
    }

    /// One number a dimension; none where the pointer is null.
    fn numbers(&self, start: *const i64) -> &[i64] {
        if start.is_null() {
            return &[];
        }
        // SAFETY: unless it is null the table gives `ndim` numbers, which live as long as the tensor's shape is not
        // changed. Only Python code could, and the GIL is held until they have been read.
        unsafe { std::slice::from_raw_parts(start, usize::try_from(self.tensor.ndim).unwrap_or(0)) }
    }

    /// Whether rows lie one after the other. The stride of a dimension of size 1 says nothing.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&size, &stride) in self.sizes().iter().zip(self.strides()).rev() {
            if size != 1 && stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }

    /// Its memory: dense, of a type that is known here, and of two dimensions at most.
    pub fn memory(&self, access: Access) -> PyResult<Memory<'a>> {
        let (argument, sizes) = (self.argument, self.sizes());
        let dtype = self.dtype().expect("the caller has accepted the type");
        let rank = sizes.len();
        assert!(rank <= MAX_RANK, "the caller has accepted the shape");
        let mut shape = [1; MAX_RANK];
        for (checked, &size) in shape.iter_mut().zip(sizes) {
            *checked = size as usize;
        }
        let bytes = shape.iter().try_fold(dtype.size(), |product, &size| product.checked_mul(size));
        let bytes = bytes.filter(|&bytes| isize::try_from(bytes).is_ok());
        let bytes = bytes.ok_or_else(|| errors::too_large(argument, sizes))?;
        let start = self.tensor.data.wrapping_byte_add(self.tensor.byte_offset as usize);
        if bytes > 0 {
            if !self.is_contiguous() {
                return Err(errors::strides(argument, self.strides(), access));
            }
            if !self.has_memory() {
                return Err(errors::no_memory(argument, self.object));
            }
            if !start.addr().is_multiple_of(dtype.size()) {
                return Err(errors::misaligned(argument, start.addr(), dtype.size()));
            }
        }
        Ok(Memory { argument, start, len: bytes / dtype.size(), dtype, rank, shape, object: PhantomData })
    }
}

/// The dense memory of a tensor.
///
/// It is borrowed from the Python object, whose reference `'a` keeps it alive. As anywhere in PyTorch, a program must
/// not resize or write a tensor in one thread while it passes it to a function in another.
pub struct Memory<'a> {
    argument: &'static str,
    start: *mut c_void,
    len: usize,
    dtype: DType,
    rank: usize,
    shape: [usize; MAX_RANK],
    object: PhantomData<&'a PyAny>,
}

impl Memory<'_> {
    fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }
}

/// Memory that no output of the call overlaps.
pub struct Input<'a>(Memory<'a>);

/// Memory that no other operand of the call overlaps.
pub struct Output<'a>(Memory<'a>);

impl<'a> Input<'a> {
    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Its shape, if it is a matrix.
    pub fn shape(&self) -> [usize; 2] {
        self.0.shape
    }

    /// Its elements.
    pub fn as_slice<T: Scalar>(&self) -> &'a [T] {
        assert_eq!(self.0.dtype, T::DTYPE, "the type was checked when the tensor was borrowed");
        if self.0.len == 0 {
            return &[];
        }
        // SAFETY: `View::memory` has checked the pointer, alignment, density and type; see `Memory` for how long it
        // lives. `Loans` has seen to it that no output of the call overlaps it.
        unsafe { std::slice::from_raw_parts(self.0.start.cast(), self.0.len) }
    }
}

impl<'a> Output<'a> {
    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.0.shape[0]
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

/// The memory that the operands of one call have borrowed: an output shares none with another operand.
#[derive(Default)]
pub struct Loans {
    seen: [Option<Loan>; 16],
    count: usize,
}

struct Loan {
    argument: &'static str,
    access: Access,
    addresses: Range<usize>,
}

impl Loans {
    /// Lends memory to read.
    pub fn input<'a>(&mut self, memory: Memory<'a>) -> PyResult<Input<'a>> {
        self.add(&memory, Access::Read)?;
        Ok(Input(memory))
    }

    /// Lends memory to write.
    pub fn output<'a>(&mut self, memory: Memory<'a>) -> PyResult<Output<'a>> {
        self.add(&memory, Access::Write)?;
        huge_pages::advise(memory.start, memory.bytes());
        Ok(Output(memory))
    }

    fn add(&mut self, memory: &Memory, access: Access) -> PyResult<()> {
        let start = memory.start.addr();
        let new = Loan { argument: memory.argument, access, addresses: start..start + memory.bytes() };
        for old in self.seen[..self.count].iter().flatten() {
            let overlap = old.addresses.start.max(new.addresses.start) < old.addresses.end.min(new.addresses.end);
            if overlap && (old.access == Access::Write || access == Access::Write) {
                let (output, other) = if access == Access::Write { (&new, old) } else { (old, &new) };
                return Err(errors::overlap(output.argument, other.argument));
            }
        }
        self.seen[self.count] = Some(new);
        self.count += 1;
        Ok(())
    }
}
