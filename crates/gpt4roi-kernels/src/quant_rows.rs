//! Activations in eight bits, as the products with quantised weights take them.

use crate::{
    parallel::for_each_chunk,
    quant_block::{ACTIVATION_GROUP, BlockFormat, STRETCH},
};

/// Groups of activations in a stretch.
pub(crate) const GROUPS: usize = STRETCH / ACTIVATION_GROUP;

/// A stretch of one row: `scale·q` by groups of 32 columns, rounded to the nearest. What lies behind the
/// row's last column is zero.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct RowStretch {
    pub(crate) values: [i8; STRETCH],
    pub(crate) scales: [f32; GROUPS],
    /// scale·Σq of each group.
    pub(crate) sums: [f32; GROUPS],
    /// For each group of the weights, −OFFSET·Σq: what their integer product starts from.
    pub(crate) starts: [i32; 2 * GROUPS],
}

/// Rows in eight bits, stretch by stretch: `[stretches, rows]`.
pub(crate) fn quantize_rows<F: BlockFormat>(x: &[f32], columns: usize) -> Vec<RowStretch> {
    let rows = x.len() / columns;
    let mut out = vec![RowStretch::ZERO; rows * columns.div_ceil(STRETCH)];
    for_each_chunk(&mut out, rows, x.len(), |stretch, out| {
        let start = stretch * STRETCH;
        let width = STRETCH.min(columns - start);
        for (row, out) in x.chunks_exact(columns).zip(out) {
            out.quantize(&row[start..][..width]);
            out.start_from::<F>();
        }
    });
    out
}

impl RowStretch {
    const ZERO: Self =
        Self { values: [0; STRETCH], scales: [0.0; GROUPS], sums: [0.0; GROUPS], starts: [0; 2 * GROUPS] };

    fn quantize(&mut self, x: &[f32]) {
        let groups = x.chunks(ACTIVATION_GROUP).zip(self.values.as_chunks_mut::<ACTIVATION_GROUP>().0);
        for (index, (x, values)) in groups.enumerate() {
            (self.scales[index], self.sums[index]) = quantize_group(x, values);
        }
    }

    fn start_from<F: BlockFormat>(&mut self) {
        for (start, values) in self.starts.iter_mut().zip(self.values.chunks_exact(F::GROUP)) {
            *start = -i32::from(F::OFFSET) * values.iter().map(|&value| i32::from(value)).sum::<i32>();
        }
    }
}

wide! {
    /// Returns the scale, and the sum of the rounded activations. A group that holds something infinite or NaN
    /// gets the scale NaN, which reaches every result.
    fn quantize_group(x: &[f32], values: &mut [i8; ACTIVATION_GROUP]) -> (f32, f32) {
        // Magnitudes are ordered as their bits are, with infinity and NaN behind all others.
        let largest = x.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            return (f32::NAN, f32::NAN);
        }
        // Activations so small that the inverse overflows come to zero.
        let inverse = 127.0 / largest;
        if !inverse.is_finite() {
            return (0.0, 0.0);
        }
        let mut sum = 0;
        for (value, &x) in values.iter_mut().zip(x) {
            *value = round(x * inverse) as i8;
            sum += i32::from(*value);
        }
        let scale = largest / 127.0;
        (scale, scale * sum as f32)
    }
}

/// To the nearest whole number, for magnitudes far below 2²².
#[inline(always)]
fn round(x: f32) -> i32 {
    /// Behind it a float has no place for fractions; the lowest bits hold the number.
    const ROUND: f32 = (3 << 22) as f32;
    (x + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{q4_k::Q4K, q6_k::Q6K, q8_0::Q8_0, test_values::values};

    #[test]
    fn a_quantised_row_is_within_half_a_step() {
        let columns = 288; // a stretch and one group
        let x: Vec<f32> = values(3 * columns, 5).iter().map(|x| 3.0 * x).collect();
        let rows = quantize_rows::<Q4K>(&x, columns);
        assert_eq!(rows.len(), 6);
        for (row, x) in x.chunks(columns).enumerate() {
            for (column, &x) in x.iter().enumerate() {
                let stretch = &rows[column / STRETCH * 3 + row];
                let place = column % STRETCH;
                let scale = stretch.scales[place / ACTIVATION_GROUP];
                let got = f32::from(stretch.values[place]) * scale;
                assert!((got - x).abs() <= 0.5001 * scale && scale <= 3.0 / 127.0, "{got}, expected {x}");
            }
        }
        assert!(rows[3..].iter().all(|row| row.values[32..].iter().all(|&value| value == 0)));
    }

    #[test]
    fn sums_are_those_of_the_values() {
        let x = values(STRETCH, 6);
        let q6 = &quantize_rows::<Q6K>(&x, STRETCH)[0];
        let q8 = &quantize_rows::<Q8_0>(&x, STRETCH)[0];
        let sum = |values: &[i8]| values.iter().map(|&value| i32::from(value)).sum::<i32>();
        for group in 0..GROUPS {
            let expected = sum(&q8.values[32 * group..][..32]);
            assert_eq!((q8.sums[group], q8.starts[group]), (q8.scales[group] * expected as f32, -128 * expected));
        }
        for group in 0..2 * GROUPS {
            assert_eq!(q6.starts[group], -32 * sum(&q6.values[16 * group..][..16]));
        }
    }

    #[test]
    fn what_is_no_number_is_not_lost() {
        for (value, scale) in [(f32::NAN, f32::NAN), (f32::INFINITY, f32::NAN), (1e-45, 0.0), (0.0, 0.0)] {
            let mut x = [0.0; 32];
            x[7] = value;
            let got = quantize_rows::<Q8_0>(&x, 32)[0].scales[0];
            assert!(got == scale || got.is_nan() && scale.is_nan(), "{value}: {got}");
        }
    }
}
