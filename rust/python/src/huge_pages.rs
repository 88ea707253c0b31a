//! Huge pages for large outputs.

#![allow(unsafe_code)]

use std::ffi::c_void;

/// Asks for huge pages where an output is so large that the allocator has likely just mapped it: the kernel is about to
/// touch each of its pages for the first time, which for small ones takes longer than computing what goes there.
#[cfg(target_os = "linux")]
pub fn advise(start: *mut c_void, bytes: usize) {
    use std::ffi::c_int;

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
        // SAFETY: the advice changes nothing but how fast pages are. Where the system gives none, as its result would
        // say, they are as they were.
        unsafe { madvise(start.wrapping_byte_add(skipped), bytes - skipped, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
pub fn advise(_start: *mut c_void, _bytes: usize) {}
