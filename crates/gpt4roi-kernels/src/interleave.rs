//! Sixteen rows word by word: the first 32 bits of every row, then the second, and so on.

use crate::{quant_block::LANES, quant_product::Level};

/// Bytes of one word of every row.
pub(crate) const WORD: usize = 4 * LANES;

/// Sixteen rows of bytes, all of the same length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SixteenRows<'a> {
    rows: [&'a [u8]; LANES],
    length: usize,
}

impl<'a> SixteenRows<'a> {
    /// # Panics
    /// If the rows differ in length.
    pub(crate) fn new(rows: [&'a [u8]; LANES]) -> Self {
        let length = rows[0].len();
        assert!(rows.iter().all(|row| row.len() == length), "rows differ in length");
        Self { rows, length }
    }

    /// Writes `words` words of every row, from its byte `start` on.
    ///
    /// # Panics
    /// If the rows have fewer, or `out` has no room for them.
    #[inline]
    pub(crate) fn interleave(&self, level: Level, start: usize, words: usize, out: &mut [u8]) {
        self.interleave_apart(level, start, words, WORD, out);
    }

    /// The same, with the next word of every row `apart` bytes behind the one before; what lies between is left alone.
    ///
    /// # Panics
    /// As [`Self::interleave`], and if words would overlap.
    #[inline]
    pub(crate) fn interleave_apart(&self, level: Level, start: usize, words: usize, apart: usize, out: &mut [u8]) {
        let needed = words.checked_sub(1).map_or(0, |last| last * apart + WORD);
        assert!(start + 4 * words <= self.length && needed <= out.len() && apart >= WORD, "{words} words");
        match level {
            // SAFETY: A level that is not portable comes from `available`, which has asked the processor, and rows and
            // `out` have just been measured.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni if words.is_multiple_of(4) => unsafe { avx512(&self.rows, start, words, apart, out) },
            // SAFETY: As above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if words.is_multiple_of(4) => unsafe { avx2(&self.rows, start, words, apart, out) },
            _ => portable(&self.rows, start, words, apart, out),
        }
    }

    /// Writes two bytes of every row, from its byte `start` on.
    #[inline]
    pub(crate) fn two_bytes(&self, start: usize, out: &mut [u8]) {
        for (out, row) in out.as_chunks_mut::<2>().0.iter_mut().zip(&self.rows) {
            out.copy_from_slice(&row[start..start + 2]);
        }
    }
}

fn portable(rows: &[&[u8]; LANES], start: usize, words: usize, apart: usize, out: &mut [u8]) {
    for (lane, row) in rows.iter().enumerate() {
        for (word, group) in row[start..].as_chunks::<4>().0[..words].iter().zip(out.chunks_mut(apart)) {
            group[4 * lane..][..4].copy_from_slice(word);
        }
    }
}

/// Four words of a row fill a quarter of a register. With rows 0, 4, 8 and 12 in one, 1, 5, 9 and 13 in the next and so
/// on, a 4×4 transposition within each quarter brings all rows in order.
///
/// # Safety
/// Every row has to have `words` words from `start` on, a multiple of four, and `out` room for all
/// of them, `apart` bytes from one to the next. The processor has to have AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(rows: &[&[u8]; LANES], start: usize, words: usize, apart: usize, out: &mut [u8]) {
    use std::arch::x86_64::*;

    for place in (0..words).step_by(4) {
        let quarter = |row: usize| {
            // SAFETY: The four words from `place` on lie in the row.
            unsafe { _mm_loadu_si128(rows[row].as_ptr().add(start + 4 * place).cast()) }
        };
        let every_fourth = |row: usize| {
            let rows = _mm512_castsi128_si512(quarter(row));
            let rows = _mm512_inserti32x4::<1>(rows, quarter(row + 4));
            let rows = _mm512_inserti32x4::<2>(rows, quarter(row + 8));
            _mm512_inserti32x4::<3>(rows, quarter(row + 12))
        };
        let (a, b, c, d) = (every_fourth(0), every_fourth(1), every_fourth(2), every_fourth(3));
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        let turned = [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ];
        for (word, values) in turned.into_iter().enumerate() {
            // SAFETY: `out` has room for this word of every row.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(apart * (place + word)).cast(), values) };
        }
    }
}

/// As [`avx512`], for eight rows and then the other eight.
///
/// # Safety
/// Every row has to have `words` words from `start` on, a multiple of four, and `out` room for all
/// of them, `apart` bytes from one to the next. The processor has to have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(rows: &[&[u8]; LANES], start: usize, words: usize, apart: usize, out: &mut [u8]) {
    use std::arch::x86_64::*;

    for (place, first) in (0..words).step_by(4).flat_map(|place| [(place, 0), (place, 8)]) {
        let half = |row: usize| {
            // SAFETY: The four words from `place` on lie in the row.
            unsafe { _mm_loadu_si128(rows[first + row].as_ptr().add(start + 4 * place).cast()) }
        };
        let every_fourth = |row: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(half(row)), half(row + 4));
        let (a, b, c, d) = (every_fourth(0), every_fourth(1), every_fourth(2), every_fourth(3));
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        let turned = [
            _mm256_unpacklo_epi64(ab_low, cd_low),
            _mm256_unpackhi_epi64(ab_low, cd_low),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ];
        for (word, values) in turned.into_iter().enumerate() {
            // SAFETY: `out` has room for this word of every row, of which this is one half.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(apart * (place + word) + 4 * first).cast(), values) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::bytes;

    #[test]
    fn every_word_of_every_row_comes_to_its_place() {
        for (start, words) in [(0, 0), (2, 1), (0, 4), (1, 7), (2, 8), (0, 36), (34, 52)] {
            let rows: Vec<Vec<u8>> = (0..LANES).map(|row| bytes(start + 4 * words + 3, row as u64)).collect();
            let sixteen = SixteenRows::new(std::array::from_fn(|row| &*rows[row]));
            for (level, apart) in Level::available().flat_map(|level| [(level, WORD), (level, WORD + 24)]) {
                let mut out = vec![0; apart * words + 5];
                sixteen.interleave_apart(level, start, words, apart, &mut out);
                for (place, byte) in out.iter().enumerate() {
                    let (word, row, part) = (place / apart, place % apart / 4, place % 4);
                    let expected = match word < words && row < LANES {
                        true => rows[row][start + 4 * word + part],
                        false => 0, // between the words and behind the last nothing is touched
                    };
                    assert_eq!(*byte, expected, "{level:?}, {words} words {apart} apart, word {word}, row {row}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "4 words")]
    fn rows_that_are_too_short_are_refused() {
        let rows = SixteenRows::new([&[0u8; 16]; LANES]);
        rows.interleave(Level::best(), 1, 4, &mut [0; 4 * WORD]);
    }

    #[test]
    #[should_panic(expected = "differ in length")]
    fn rows_of_different_lengths_are_refused() {
        let mut rows = [[0u8; 16].as_slice(); LANES];
        rows[9] = &rows[9][..15];
        SixteenRows::new(rows);
    }
}
