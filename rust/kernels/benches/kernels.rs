//! Single kernels on one thread, without Python: `cargo bench -p cid-kernels`, `CID_SIMD` for a tier.
//!
//! Outputs are allocated once, so that what is timed is arithmetic and memory, not page faults.

use cid_kernels::{Divergence, Element, Loss, Reduction};
use divan::Bencher;
use divan::counter::ItemsCount;

const SIZES: [(usize, usize); 4] = [(64, 100), (256, 1000), (4096, 1000), (64, 128_256)];
const LABELS: usize = 100;

fn main() {
    divan::main();
}

/// Numbers of an irrational rotation: cheap, spread evenly from -2 to 2, different in each row.
fn numbers<E: Element>(len: usize, seed: f64) -> Vec<E> {
    (0..len).map(|i| E::from_f64((i as f64 * 0.618_033_988_749_895 + seed).fract() * 4.0 - 2.0)).collect()
}

fn labels(rows: usize, classes: usize) -> Vec<i64> {
    (0..rows).map(|i| (i * 31 % classes) as i64).collect()
}

#[divan::bench(types = [f32, f64], args = SIZES)]
fn kd<E: Element>(bencher: Bencher, (rows, columns): (usize, usize)) {
    let (s, q) = (numbers::<E>(rows * columns, 0.1), numbers::<E>(rows * columns, 0.7));
    let mut grad = vec![E::default(); s.len()];
    let mut loss = E::Real::default();
    bencher.counter(ItemsCount::new(s.len())).bench_local(|| {
        let (shape, total) = ([rows, columns], Loss::Total(&mut loss));
        cid_kernels::kd(
            &s,
            &q,
            None,
            None,
            shape,
            4.0,
            Divergence::Forward,
            -100,
            Reduction::Sum,
            total,
            Some(&mut grad),
        )
        .unwrap();
    });
}

#[divan::bench(types = [f32, f64], args = SIZES)]
fn softmax<E: Element>(bencher: Bencher, (rows, columns): (usize, usize)) {
    let s = numbers::<E>(rows * columns, 0.1);
    let mut out = vec![E::default(); s.len()];
    bencher.counter(ItemsCount::new(s.len())).bench_local(|| {
        cid_kernels::softmax(&s, [rows, columns], 4.0, &mut out).unwrap();
    });
}

#[divan::bench(types = [f32, f64], args = SIZES)]
fn cross_entropy<E: Element>(bencher: Bencher, (rows, columns): (usize, usize)) {
    let (z, target) = (numbers::<E>(rows * columns, 0.1), labels(rows, columns));
    let mut grad = vec![E::default(); z.len()];
    let mut loss = E::Real::default();
    bencher.counter(ItemsCount::new(z.len())).bench_local(|| {
        cid_kernels::cross_entropy(&z, &target, None, [rows, columns], -100, &mut loss, Some(&mut grad)).unwrap();
    });
}

#[divan::bench(types = [f32, f64], args = [(64, 128), (4096, 512), (4096, 2048)])]
fn sample<E: Element>(bencher: Bencher, (rows, columns): (usize, usize)) {
    let (s, t) = (numbers::<E>(rows * columns, 0.1), numbers::<E>(rows * columns, 0.7));
    let mut grad = vec![E::default(); s.len()];
    let mut loss = E::Real::default();
    bencher.counter(ItemsCount::new(s.len())).bench_local(|| {
        cid_kernels::sample(&s, &t, None, [rows, columns], Reduction::Sum, Loss::Total(&mut loss), Some(&mut grad))
            .unwrap();
    });
}

#[divan::bench(types = [f32, f64], args = [(64, 128), (4096, 512)])]
fn class_<E: Element>(bencher: Bencher, (rows, columns): (usize, usize)) {
    let (s, t) = (numbers::<E>(rows * columns, 0.1), numbers::<E>(rows * columns, 0.7));
    let target = labels(rows, LABELS);
    let mut grad = vec![E::default(); s.len()];
    let mut loss = E::Real::default();
    bencher.counter(ItemsCount::new(s.len())).bench_local(|| {
        cid_kernels::class_(&s, &t, &target, [columns; 2], -100, &mut loss, Some(&mut grad)).unwrap();
    });
}

#[divan::bench(types = [f32, f64], args = SIZES)]
fn context_weights<E: Element>(bencher: Bencher, (rows, columns): (usize, usize)) {
    let (q, target) = (numbers::<E>(rows * columns, 0.1), labels(rows, columns));
    let mut out = vec![E::Real::default(); rows];
    bencher.counter(ItemsCount::new(q.len())).bench_local(|| {
        cid_kernels::context_weights(&q, &target, [rows, columns], 4.0, -100, &mut out).unwrap();
    });
}

#[divan::bench(types = [f32, f64], args = [(64, 128), (4096, 512)])]
fn accumulate_context<E: Element>(bencher: Bencher, (rows, columns): (usize, usize)) {
    let (features, target) = (numbers::<E>(rows * columns, 0.1), labels(rows, LABELS));
    let weights = numbers::<E::Real>(rows, 0.3);
    let mut sums = vec![E::Real::default(); LABELS * (columns + 1)];
    bencher.counter(ItemsCount::new(features.len())).bench_local(|| {
        let (numerator, denominator) = sums.split_at_mut(LABELS * columns);
        let shape = [rows, columns];
        cid_kernels::accumulate_context(&features, &weights, &target, shape, -100, numerator, denominator).unwrap();
    });
}
