//! As [`neon`](super::neon), with dot products of bytes.

use std::arch::{aarch64::*, asm};

pub(crate) use super::neon::*;

/// Adds the products of four columns. Weights have no sign, and may be up to 127.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn add_products(mut dots: Dots, weights: Words, columns: int8x16_t) -> Dots {
    for (dots, weights) in dots.iter_mut().zip(weights) {
        // SAFETY: Neither memory nor flags are touched.
        unsafe {
            asm!(
                "sdot {dots:v}.4s, {weights:v}.16b, {columns:v}.16b",
                dots = inout(vreg) *dots,
                weights = in(vreg) weights,
                columns = in(vreg) columns,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
    }
    dots
}

/// Adds the products of four columns of weights with a sign.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn add_signed_products(dots: Dots, weights: Words, columns: int8x16_t) -> Dots {
    add_products(dots, weights, columns)
}
