//! PyTorch's thread pool, by the addresses of two of its functions.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem::transmute;

use cid_kernels::par::{self, GetNumThreads, ParallelFor};
use pyo3::prelude::*;

use crate::errors;

/// Run on PyTorch's thread pool.
#[pyfunction]
pub fn use_torch_threads(parallel_for: usize, get_num_threads: usize) -> PyResult<()> {
    for (argument, address) in [("parallel_for", parallel_for), ("get_num_threads", get_num_threads)] {
        if address == 0 {
            return Err(errors::no_address(argument));
        }
    }
    // SAFETY: the Python caller gives the addresses of `torch_parallel_for` and `torch_get_num_threads`, which are
    // functions of these types, do as `use_pool` asks, and are never unloaded.
    unsafe {
        let parallel_for = transmute::<*const c_void, ParallelFor>(parallel_for as *const c_void);
        let get_num_threads = transmute::<*const c_void, GetNumThreads>(get_num_threads as *const c_void);
        par::use_pool(parallel_for, get_num_threads);
    }
    Ok(())
}

/// Stay in the calling thread from now on.
#[pyfunction]
pub fn run_serially() {
    par::run_serially();
}
