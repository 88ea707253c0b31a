//! Where the features of a class stand: sample by sample, each divided by its norm.

use std::ops::Range;

use fearless_simd::prelude::*;

use super::squares::SIDE;
use super::{Inputs, Sample};
use crate::simd::{Element, MAX_LANES, Real, SumOfSquares, Vector, load, splat, store};

/// Rows of features are filled up with zeros to a multiple of this, so that no loop over them has a tail.
const PADDING: usize = 2 * MAX_LANES;
/// A row's norm is taken to be at least this.
const SMALLEST_NORM: f64 = 1e-12;

/// Where the features of a sample stand: the teacher's before the student's.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) students: usize,
    pub(super) teachers: usize,
    /// Where the student's begin.
    pub(super) student: usize,
    /// Where they end.
    pub(super) end: usize,
    /// From sample to sample: a cache line more, as a power of two would have them compete for places in the cache.
    pub(super) stride: usize,
}

impl Layout {
    pub(super) fn new(students: usize, teachers: usize) -> Self {
        let student = teachers.next_multiple_of(PADDING);
        let end = student + students.next_multiple_of(PADDING);
        Self { students, teachers, student, end, stride: end + MAX_LANES }
    }

    /// The numbers of blocks of up to `SIDE` features: the teacher's, which come first, and the student's.
    pub(super) fn blocks(self) -> [usize; 2] {
        [self.student.div_ceil(SIDE), (self.end - self.student).div_ceil(SIDE)]
    }

    /// Where a block of features stands.
    pub(super) fn block(self, index: usize) -> Range<usize> {
        let [teachers, _] = self.blocks();
        let (start, end) = if index < teachers {
            (index * SIDE, self.student)
        } else {
            (self.student + (index - teachers) * SIDE, self.end)
        };
        start..end.min(start + SIDE)
    }
}

/// Whether a norm is taken to be another: then it is a constant, with a derivative of 0.
#[inline(always)]
pub(super) fn is_raised(norm: f64) -> bool {
    norm < SMALLEST_NORM
}

/// What a row of this norm is divided by.
#[inline(always)]
pub(super) fn divisor(norm: f64) -> f64 {
    // Not `max`, which would lose a NaN.
    if is_raised(norm) { SMALLEST_NORM } else { norm }
}

/// Copies the rows of some samples, each divided by its norm.
#[inline(always)]
pub(super) fn normalize<S: Simd, E: Element, T: Element<Real = E::Real>>(
    simd: S,
    inputs: &Inputs<E, T>,
    class: &[Sample<E>],
    features: &mut [E::Real],
    norms: &mut [f64],
) {
    let layout = inputs.layout;
    // All of them before there is anything to wait for, as they come from anywhere in memory.
    for (sample, row) in class.iter().zip(features.chunks_exact_mut(layout.stride)) {
        let (teacher, student) = row[..layout.end].split_at_mut(layout.student);
        let [students, teachers] = [layout.students, layout.teachers];
        copy(simd, &inputs.teacher[sample.index * teachers..][..teachers], teacher);
        copy(simd, &inputs.student[sample.index * students..][..students], student);
    }
    for (row, norm) in features.chunks_exact_mut(layout.stride).zip(norms) {
        let (teacher, student) = row[..layout.end].split_at_mut(layout.student);
        divide_by_norm(simd, teacher);
        *norm = divide_by_norm(simd, student);
    }
}

/// Copies a row, filled up with zeros.
#[inline(always)]
fn copy<S: Simd, E: Element>(simd: S, from: &[E], to: &mut [E::Real]) {
    let lanes = Vector::<S, E>::LEN;
    let (to, rest) = to.split_at_mut(from.len());
    rest.fill(E::Real::default());
    let (mut to, mut from) = (to.chunks_exact_mut(lanes), from.chunks_exact(lanes));
    for (to, from) in to.by_ref().zip(from.by_ref()) {
        store::<S, E::Real>(load::<S, E>(simd, from, 0), to, 0);
    }
    for (to, from) in to.into_remainder().iter_mut().zip(from.remainder()) {
        *to = E::Real::from_f64(from.to_f64());
    }
}

/// Divides a row by its norm, and returns that.
#[inline(always)]
fn divide_by_norm<S: Simd, R: Real>(simd: S, row: &mut [R]) -> f64 {
    let lanes = R::Native::<S>::LEN;
    // Two sums, as one would wait for the latency of each step.
    let mut squares = [SumOfSquares::new(simd); 2];
    for pair in row.chunks_exact(2 * lanes) {
        squares[0].add::<R>(load(simd, pair, 0));
        squares[1].add::<R>(load(simd, pair, lanes));
    }
    let norm = (squares[0].total() + squares[1].total()).sqrt();
    let divisor = splat::<S, R>(simd, divisor(norm));
    for vector in row.chunks_exact_mut(lanes) {
        store::<S, R>(load::<S, R>(simd, vector, 0) / divisor, vector, 0);
    }
    norm
}
