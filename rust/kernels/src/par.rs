//! Threads: PyTorch's own pool, borrowed by the addresses of two C functions, or none.
//!
//! Work is cut into parts whose boundaries depend on its size alone, so that the results are the same, to the bit,
//! for any number of threads.

#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

/// The callback of [`ParallelFor`]: takes the parts `begin..end`.
pub type Callback = unsafe extern "C" fn(begin: i64, end: i64, context: *mut c_void);
/// `torch_parallel_for`: calls back for ranges that make up `begin..end`, returns 0 when all have come back.
pub type ParallelFor =
    unsafe extern "C" fn(begin: i64, end: i64, grain_size: i64, callback: Callback, context: *mut c_void) -> i32;
/// `torch_get_num_threads`: writes the number of threads, returns 0.
pub type GetNumThreads = unsafe extern "C" fn(out: *mut u32) -> i32;

/// Elements in a task.
pub(crate) const TASK: usize = 4096;
/// Elements up to which all tasks stay in the calling thread: others would save a few microseconds there, and cost
/// milliseconds on a machine that has something else to do.
const ALONE: usize = 16_384;

#[derive(Clone, Copy)]
struct Pool {
    parallel_for: ParallelFor,
    get_num_threads: GetNumThreads,
}

/// Null or leaked, never freed. Not a lock: a child forked while another thread held one could not take it.
static POOL: AtomicPtr<Pool> = AtomicPtr::new(ptr::null_mut());

/// Runs on this pool from now on.
///
/// # Safety
///
/// For as long as the process lives, `parallel_for` must call back for each part exactly once, from any threads,
/// and return after the last call has; `get_num_threads` must write through the pointer that it is given.
pub unsafe fn use_pool(parallel_for: ParallelFor, get_num_threads: GetNumThreads) {
    POOL.store(Box::leak(Box::new(Pool { parallel_for, get_num_threads })), Ordering::Release);
}

/// Stays in the calling thread from now on.
pub fn run_serially() {
    POOL.store(ptr::null_mut(), Ordering::Release);
}

/// The pool, if it has more than one thread.
fn pool() -> Option<Pool> {
    // SAFETY: null, or leaked by `use_pool`.
    let pool = *unsafe { POOL.load(Ordering::Acquire).as_ref() }?;
    let mut threads = 0;
    // SAFETY: the pointer is valid for the call, and `use_pool` was promised a function of this kind.
    let status = unsafe { (pool.get_num_threads)(&mut threads) };
    (status == 0 && threads > 1).then_some(pool)
}

/// Memory cut into parts, each of which is taken once.
pub(crate) trait Parts: Sync {
    /// One of them.
    type Part;

    /// Part `index`.
    ///
    /// # Safety
    ///
    /// Each index may be taken once in the lifetime of `self`.
    unsafe fn take(&self, index: usize) -> Self::Part;
}

/// A slice cut every `size` elements; indices past its end are empty.
pub(crate) struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    size: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out disjoint `&mut [T]`, which may go to other threads where `T` may.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    pub(crate) fn new(slice: &'a mut [T], size: usize) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), size, slice: PhantomData }
    }
}

impl<'a, T: Send> Parts for Chunks<'a, T> {
    type Part = &'a mut [T];

    unsafe fn take(&self, index: usize) -> &'a mut [T] {
        let begin = index.saturating_mul(self.size).min(self.len);
        let end = begin.saturating_add(self.size).min(self.len);
        // SAFETY: within the slice that is borrowed for 'a, and disjoint from the parts of other indices.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(begin), end - begin) }
    }
}

impl Parts for () {
    type Part = ();

    unsafe fn take(&self, _: usize) {}
}

impl<P: Parts> Parts for Option<P> {
    type Part = Option<P::Part>;

    unsafe fn take(&self, index: usize) -> Option<P::Part> {
        // SAFETY: the caller's promise.
        self.as_ref().map(|parts| unsafe { parts.take(index) })
    }
}

impl<P: Parts, Q: Parts> Parts for (P, Q) {
    type Part = (P::Part, Q::Part);

    unsafe fn take(&self, index: usize) -> (P::Part, Q::Part) {
        // SAFETY: the caller's promise.
        unsafe { (self.0.take(index), self.1.take(index)) }
    }
}

impl<P: Parts, Q: Parts, R: Parts> Parts for (P, Q, R) {
    type Part = (P::Part, Q::Part, R::Part);

    unsafe fn take(&self, index: usize) -> (P::Part, Q::Part, R::Part) {
        // SAFETY: the caller's promise.
        unsafe { (self.0.take(index), self.1.take(index), self.2.take(index)) }
    }
}

/// Calls `task` with each of `count` parts and the state of the thread that it runs in.
///
/// `elements` is the size of the whole: little work is not worth waking other threads.
///
/// # Panics
///
/// Where a task does, in the calling thread.
pub(crate) fn for_each<P: Parts, T>(
    count: usize,
    elements: usize,
    parts: P,
    state: impl Fn() -> T + Sync,
    task: impl Fn(&mut T, usize, P::Part) + Sync,
) {
    let range = |begin, end| {
        let mut state = state();
        for index in begin..end {
            // SAFETY: the ranges that are run are disjoint, and `parts` lives in this call alone.
            task(&mut state, index, unsafe { parts.take(index) });
        }
    };
    // Asking for the pool is a call into PyTorch, which the smallest work would feel.
    match (count > 1 && elements > ALONE).then(pool).flatten() {
        Some(pool) => pool.run(count, &range),
        None => range(0, count),
    }
}

type Range<'a> = &'a (dyn Fn(usize, usize) + Sync);

struct Context<'a> {
    range: Range<'a>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A panic must not unwind through the pool's C++: it is caught here and carried to the calling thread.
unsafe extern "C" fn callback(begin: i64, end: i64, context: *mut c_void) {
    // SAFETY: `Pool::run` passes its context, which outlives the calls and is only shared.
    let context = unsafe { &*context.cast::<Context>() };
    let range = AssertUnwindSafe(|| (context.range)(begin as usize, end as usize));
    if let Err(panic) = catch_unwind(range) {
        context.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}

impl Pool {
    fn run(self, count: usize, range: Range) {
        let context = Context { range, panic: Mutex::new(None) };
        // SAFETY: `use_pool` was promised that `parallel_for` is done with the callback when it returns, and the
        // context is alive until then.
        let status =
            unsafe { (self.parallel_for)(0, count as i64, 1, callback, (&raw const context).cast_mut().cast()) };
        if let Some(panic) = context.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
        assert!(status == 0, "torch_parallel_for failed with status {status}");
    }
}

/// Runs a test's body in one thread and in several, and returns both results.
#[cfg(test)]
pub(crate) use tests::serial_and_parallel;

#[cfg(test)]
mod tests {
    use super::*;

    const THREADS: i64 = 3;

    /// Uneven ranges, in several threads at once.
    unsafe extern "C" fn parallel_for(begin: i64, end: i64, _: i64, callback: Callback, context: *mut c_void) -> i32 {
        let context = context as usize;
        std::thread::scope(|scope| {
            let mut from = begin;
            for i in 1..=THREADS {
                let to = if i == THREADS { end } else { from + (end - from) / 3 };
                // SAFETY: the context is shared, and the ranges are disjoint.
                scope.spawn(move || unsafe { callback(from, to, context as *mut c_void) });
                from = to;
            }
        });
        0
    }

    unsafe extern "C" fn get_num_threads(out: *mut u32) -> i32 {
        // SAFETY: the caller's pointer is valid.
        unsafe { *out = THREADS as u32 };
        0
    }

    /// The pool is the process's: tests that switch it take turns.
    static TURN: Mutex<()> = Mutex::new(());

    pub(crate) fn serial_and_parallel<T>(body: impl Fn() -> T) -> [T; 2] {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        run_serially();
        let serial = body();
        // SAFETY: the functions above do as `use_pool` asks.
        unsafe { use_pool(parallel_for, get_num_threads) };
        let parallel = catch_unwind(AssertUnwindSafe(&body));
        run_serially();
        [serial, parallel.unwrap_or_else(|panic| resume_unwind(panic))]
    }

    #[test]
    fn each_part_is_taken_once() {
        let [serial, parallel] = serial_and_parallel(|| {
            let (mut a, mut b) = (vec![0; 103], vec![0; 11]);
            let parts = (Chunks::new(&mut a, 10), Some(Chunks::new(&mut b, 1)));
            for_each(
                11,
                ALONE + 1,
                parts,
                || 0,
                |_, index, (a, b)| {
                    a.iter_mut().for_each(|x| *x += index);
                    b.unwrap()[0] += a.len();
                },
            );
            (a, b)
        });
        assert_eq!(serial, parallel);
        assert_eq!(serial.1, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 3]);
        assert!(serial.0.iter().enumerate().all(|(i, &x)| x == i / 10));
    }

    #[test]
    fn a_panic_comes_back_to_the_caller() {
        let caught = serial_and_parallel(|| {
            catch_unwind(|| for_each(9, ALONE + 1, (), || (), |(), index, ()| assert!(index != 5, "five")))
        });
        for panic in caught {
            assert_eq!(*panic.unwrap_err().downcast_ref::<&str>().unwrap(), "five");
        }
    }
}
