//! Matrix products over strided views: a transpose costs no copy.

use gemm::Parallelism;

use crate::parallel::threads;

/// A matrix inside a slice: element (i, j) lies at `i·row_stride + j·column_stride`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    data: &'a [f32],
    layout: MatLayout,
}

/// A matrix to write to; no two of its elements share a place.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    layout: MatLayout,
}

#[derive(Clone, Copy, Debug)]
struct MatLayout {
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl MatLayout {
    fn check(&self, length: usize) {
        let Self { rows, columns, row_stride, column_stride } = *self;
        if rows > 0 && columns > 0 {
            let last = (rows - 1) * row_stride + (columns - 1) * column_stride;
            assert!(last < length, "a matrix of {self:?} does not fit {length} values");
        }
    }
}

impl<'a> MatRef<'a> {
    /// `rows` rows of `columns` values, one after the other.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, (rows, columns), (columns, 1))
    }

    /// A matrix of this shape with these strides, rows first in both.
    ///
    /// # Panics
    /// If the last element lies behind the slice's end.
    pub fn strided(
        data: &'a [f32],
        (rows, columns): (usize, usize),
        (row_stride, column_stride): (usize, usize),
    ) -> Self {
        let layout = MatLayout { rows, columns, row_stride, column_stride };
        layout.check(data.len());
        Self { data, layout }
    }

    /// The same values with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let MatLayout { rows, columns, row_stride, column_stride } = self.layout;
        let layout = MatLayout { rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride };
        Self { layout, ..self }
    }
}

impl<'a> MatMut<'a> {
    /// `rows` rows of `columns` values, one after the other.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, (rows, columns), columns)
    }

    /// Rows of contiguous values, `row_stride` apart.
    ///
    /// # Panics
    /// If the last element lies behind the slice's end, or rows overlap.
    pub fn strided(data: &'a mut [f32], (rows, columns): (usize, usize), row_stride: usize) -> Self {
        let layout = MatLayout { rows, columns, row_stride, column_stride: 1 };
        layout.check(data.len());
        assert!(rows <= 1 || row_stride >= columns, "rows of {layout:?} overlap");
        Self { data, layout }
    }
}

/// C = alpha·A·B + beta·C, as BLAS's `sgemm`; with beta = 0 the old C is not read.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn gemm(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>) {
    let parallelism = if threads() == 1 { Parallelism::None } else { Parallelism::Rayon(0) };
    product(alpha, a, b, beta, c, parallelism);
}

/// [`gemm`] on the calling thread: for code that is already one of many tasks.
pub(crate) fn gemm_serial(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>) {
    product(alpha, a, b, beta, c, Parallelism::None);
}

fn product(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>, parallelism: Parallelism) {
    let (left, right, target) = (a.layout, b.layout, c.layout);
    assert_eq!(left.columns, right.rows, "inner dimensions of {left:?} and {right:?}");
    assert_eq!((left.rows, right.columns), (target.rows, target.columns), "shape of the product");
    // SAFETY: The constructors have checked that every element of the three matrices lies inside its
    // slice, and that the elements of C are distinct; C is borrowed mutably, so it overlaps neither
    // A nor B. Strides are below the slices' lengths, which fit isize.
    unsafe {
        gemm::gemm(
            target.rows,
            target.columns,
            left.columns,
            c.data.as_mut_ptr(),
            target.column_stride as isize,
            target.row_stride as isize,
            beta != 0.0,
            a.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            b.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, values};
    use proptest::prelude::*;

    /// A·B by its definition, in f64.
    fn reference(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum();
            }
        }
        c
    }

    fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        (0..columns).flat_map(|j| (0..rows).map(move |i| x[i * columns + j])).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_product_is_the_same_through_any_layout(m in 1usize..40, k in 1usize..40, n in 1usize..40, seed: u64) {
            let (a, b) = (values(m * k, seed), values(k * n, seed ^ 1));
            let old = values(m * n, seed ^ 2);
            let expected: Vec<f32> =
                reference(&a, &b, (m, k, n)).iter().zip(&old).map(|(c, &old)| (0.5 * c) as f32 + 2.0 * old).collect();

            let mut c = old.clone();
            gemm(0.5, MatRef::new(&a, m, k), MatRef::new(&b, k, n), 2.0, MatMut::new(&mut c, m, n));
            assert_close(&c, &expected, 1e-4);

            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            let mut c = old.clone();
            let (left, right) = (MatRef::new(&at, k, m).transposed(), MatRef::new(&bt, n, k).transposed());
            gemm_serial(0.5, left, right, 2.0, MatMut::new(&mut c, m, n));
            assert_close(&c, &expected, 1e-4);
        }
    }

    #[test]
    fn nothing_to_sum_leaves_beta_times_c() {
        let mut c = [1.0, 2.0];
        gemm(1.0, MatRef::new(&[], 1, 0), MatRef::new(&[], 0, 2), 3.0, MatMut::new(&mut c, 1, 2));
        assert_eq!(c, [3.0, 6.0]);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_matrix_larger_than_its_slice_is_refused() {
        MatRef::new(&[0.0; 5], 2, 3);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn rows_that_overlap_are_refused() {
        MatMut::strided(&mut [0.0; 9], (3, 3), 2);
    }
}
