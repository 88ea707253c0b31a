//! Symmetric matrices in squares: each of those on and below the diagonal beside its mirror image.

/// The side of a square: a multiple of those of the tiles that it is computed in.
pub(super) const SIDE: usize = 48;
/// The elements of a square.
pub(super) const AREA: usize = SIDE * SIDE;

/// A square on or below the diagonal.
#[derive(Clone, Copy)]
pub(super) struct Square {
    pub(super) row: usize,
    pub(super) column: usize,
}

impl Square {
    /// The one of this index, counted row by row.
    pub(super) fn at(index: usize) -> Self {
        let row = (0..=index).rfind(|&row| triangle(row) <= index).unwrap_or(0);
        Self { row, column: index - triangle(row) }
    }

    /// Whether it is its own mirror image.
    pub(super) fn is_diagonal(self) -> bool {
        self.row == self.column
    }
}

/// The number of squares on and below the diagonal in so many rows of them: where the next row begins.
pub(super) fn triangle(rows: usize) -> usize {
    rows * (rows + 1) / 2
}

/// Where a square stands, among those on and below the diagonal and their mirror images.
pub(super) fn image(row: usize, column: usize) -> usize {
    2 * (triangle(row.max(column)) + row.min(column)) + usize::from(row < column)
}

/// Memory for what is computed of a class in squares: each as long as the largest class so far asked for.
#[derive(Default)]
pub(super) struct Squares<R> {
    /// The squares of `-D` and their mirror images, where [`image`] says.
    pub(super) differences: Vec<R>,
    /// The squares of `U'U`, and their mirror images.
    pub(super) grams: Vec<f64>,
    /// The share of each square and its image in `||D||_F^2`.
    pub(super) losses: Vec<f64>,
    /// `sum_j -D_ij f_i . f_j` over each row of each square: of the row `i` of `-D F`, what lies along `f_i`.
    pub(super) radial: Vec<f64>,
}

/// So much of some memory, from a cache line's boundary.
pub(super) fn at_least<T: Clone + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    const LINE: usize = 64;
    if memory.len() < len + LINE {
        *memory = vec![T::default(); len + LINE];
    }
    let start = memory.as_ptr().align_offset(LINE).min(LINE);
    &mut memory[start..start + len]
}
