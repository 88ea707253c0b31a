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
mod errors;
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

pub use class_::class_;
pub use columns::column_sums;
pub use context::{accumulate_context, context_weights, soft_context_weights};
pub use cross_entropy::{cross_entropy, soft_cross_entropy};
pub use errors::Error;
pub use half::{Bf16, F16};
pub use kd::{Divergence, kd};
pub use rows::{Loss, Reduction};
pub use sample::sample;
pub use simd::{Element, Real};
pub use softmax::{softmax, softmax_backward};

use errors::{check_labels, check_len, check_shape, check_temperature, check_weight};
