//! A row added to every row, and its gradient.

use crate::parallel::map_chunks;

/// Writes `row` over and over.
///
/// # Panics
/// If `out` is no whole number of rows.
pub fn repeat_row(row: &[f32], out: &mut [f32]) {
    if row.is_empty() {
        return;
    }
    assert!(out.len().is_multiple_of(row.len()), "{} values in rows of {}", out.len(), row.len());
    map_chunks(out, 64 * row.len(), |_, out| out.chunks_exact_mut(row.len()).for_each(|out| out.copy_from_slice(row)));
}

/// Adds every row of `x` to `out`.
///
/// # Panics
/// If `x` is no whole number of rows.
pub fn sum_rows(x: &[f32], out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    assert!(x.len().is_multiple_of(out.len()), "{} values in rows of {}", x.len(), out.len());
    add_rows(x, out);
}

wide! {
    fn add_rows(x: &[f32], out: &mut [f32]) {
        for row in x.chunks_exact(out.len()) {
            for (out, &x) in out.iter_mut().zip(row) {
                *out += x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_repeated_and_rows_are_summed() {
        let mut out = [0.0; 6];
        repeat_row(&[1.0, 2.0, 3.0], &mut out);
        assert_eq!(out, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        let mut sums = [10.0, 0.0, 0.0];
        sum_rows(&out, &mut sums);
        assert_eq!(sums, [12.0, 4.0, 6.0]);
    }
}
