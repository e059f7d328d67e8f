//! Vector code for a few rows of activations times sixteen rows of weights, straight from their tiles.
//!
//! Decoding reads every weight once for one token, or for a few that are read together. Taken apart into a
//! [`Panel`](crate::quant_block::Panel) first, a weight is stored and read again for few products; here it goes from
//! its tile through a register into the sums. The arithmetic is that of the panel in the same order, so that a token's
//! numbers do not depend on how many others are computed with it.
//!
//! Sixteen lanes are one register of AVX-512, two of AVX2 or four of NEON. The modules have the same functions, in
//! whose terms [`add_rows!`] says once what a format's product is.

#[cfg(target_arch = "x86_64")]
use std::{
    arch::x86_64::{_MM_HINT_T0, _mm_prefetch},
    hint::black_box,
};

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon_dot;

/// Compiles a product with N rows for every kind of registers, as `avx512::add_rows`, `avx2::add_rows` and so on.
macro_rules! add_rows {
    (|$tiles:ident, $x:ident, $totals:ident| $body:block) => {
        $crate::quant_lanes::add_rows! {
            "x86_64", avx512, "avx512f,avx512bw,avx512vl,avx512vnni", |$tiles, $x, $totals| $body
        }
        $crate::quant_lanes::add_rows! { "x86_64", avx2, "avx2,fma,f16c", |$tiles, $x, $totals| $body }
        $crate::quant_lanes::add_rows! { "aarch64", neon_dot, "neon,dotprod", |$tiles, $x, $totals| $body }
        $crate::quant_lanes::add_rows! { "aarch64", neon, "neon", |$tiles, $x, $totals| $body }
    };
    ($arch:literal, $level:ident, $features:literal, |$tiles:ident, $x:ident, $totals:ident| $body:block) => {
        #[cfg(target_arch = $arch)]
        mod $level {
            use super::*;
            use crate::{quant_lanes::$level::*, quant_product::Totals, quant_rows::RowStretch};

            #[target_feature(enable = $features)]
            pub(super) fn add_rows<const N: usize>($tiles: &[u8], $x: &[RowStretch; N], $totals: &mut [Totals; N]) $body
        }
    };
}
pub(crate) use add_rows;

/// Writes the methods through which a [`BlockFormat`](crate::quant_block::BlockFormat) hands out what [`add_rows!`] has
/// compiled.
macro_rules! add_rows_methods {
    () => {
        $crate::quant_lanes::add_rows_methods! {
            "x86_64", add_rows_avx512, avx512, "avx512f,avx512bw,avx512vl,avx512vnni"
        }
        $crate::quant_lanes::add_rows_methods! { "x86_64", add_rows_avx2, avx2, "avx2,fma,f16c" }
        $crate::quant_lanes::add_rows_methods! { "aarch64", add_rows_neon_dot, neon_dot, "neon,dotprod" }
        $crate::quant_lanes::add_rows_methods! { "aarch64", add_rows_neon, neon, "neon" }
    };
    ($arch:literal, $method:ident, $level:ident, $features:literal) => {
        #[cfg(target_arch = $arch)]
        #[target_feature(enable = $features)]
        unsafe fn $method<const N: usize>(
            tiles: &[u8],
            x: &[$crate::quant_rows::RowStretch; N],
            totals: &mut [$crate::quant_product::Totals; N],
        ) {
            $level::add_rows(tiles, x, totals);
        }
    };
}
pub(crate) use add_rows_methods;

/// Asks for a whole tile at once. Its lines would come one after the other otherwise, as far as the processor looks
/// ahead, and two cores would reach two thirds of what memory can give.
///
/// One line a turn: the compiler unrolls a loop over numbers, and with eight requests in a row a step of decoding the 7B
/// took 0.19 s on a Zen 4, with this 0.14 s. It may be that the processor drops what it can't take in; that was not
/// looked at.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse")]
pub(crate) fn prefetch(tile: &[u8]) {
    for line in tile.chunks(64) {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
    }
}

/// The same for so many bytes from the beginning of this tile, which may end behind it. Unrolled, a step of decoding
/// took 0.25 s where AVX2 alone was used and four tiles were asked for, with this 0.18 s.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse")]
pub(crate) fn prefetch_ahead(tile: &[u8], bytes: usize) {
    let (mut line, end) = (tile.as_ptr(), tile.as_ptr().wrapping_add(bytes));
    while line < end {
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
        // What the compiler can't foresee it doesn't unroll.
        line = black_box(line.wrapping_add(64));
    }
}
