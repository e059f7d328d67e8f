//! Attention of one query, as in a step of decoding.
//!
//! Such a step waits for memory. So keys and values are read in the order in which they lie: a few tokens at a time, and of
//! these one head after the other.

use std::ops::Range;

use crate::{
    attention::{AttentionShape, softmax_parts},
    parallel::{for_each_chunk, threads},
    remembered::{Remembered, StridedRows},
};

/// Tokens that are read side by side.
const BESIDE: usize = 8;

/// Softmax attention of one query over all tokens of some stretches, each given by its keys and its values.
///
/// # Shapes
/// q and out `[heads·D]`, keys and values `[tokens, heads·D]`
pub(crate) fn attend_one<T: Remembered>(q: &[f32], stretches: &[(&[T], &[T])], shape: AttentionShape, out: &mut [f32]) {
    let width = shape.width();
    let tokens: usize = stretches.iter().map(|(keys, _)| keys.len() / width).sum();
    let channels = shape.heads.div_ceil(threads()) * shape.head_dim;
    for_each_chunk(out, channels, 2 * tokens * width, |task, out| {
        let first = task * channels;
        attend_heads(&q[first..][..out.len()], first, stretches, tokens, shape, out);
    });
}

/// Some heads, whose channels begin with the first of `q`.
fn attend_heads<T: Remembered>(
    q: &[f32],
    first: usize,
    stretches: &[(&[T], &[T])],
    tokens: usize,
    shape: AttentionShape,
    out: &mut [f32],
) {
    let (dim, width) = (shape.head_dim, shape.width());
    let rows = |block, head: usize| {
        let start = first + head * dim;
        StridedRows::new(block, start..start + dim, width)
    };
    let mut scores = vec![0.0; q.len() / dim * tokens];
    for (columns, block) in blocks(stretches.iter().map(|(keys, _)| *keys), width) {
        for ((head, q), scores) in q.chunks_exact(dim).enumerate().zip(scores.chunks_exact_mut(tokens)) {
            T::score(rows(block, head), q, &mut scores[columns.clone()]);
        }
    }
    scores.chunks_exact_mut(tokens).for_each(|row| softmax_parts(row, 0..tokens, 0..0, shape.scale()));
    out.fill(0.0);
    for (columns, block) in blocks(stretches.iter().map(|(_, values)| *values), width) {
        for ((head, out), weights) in out.chunks_exact_mut(dim).enumerate().zip(scores.chunks_exact(tokens)) {
            T::add_rows(rows(block, head), &weights[columns.clone()], out);
        }
    }
}

/// Keys or values, a few tokens at a time, and which columns of a row of scores are theirs.
fn blocks<'a, T: 'a>(
    stretches: impl Iterator<Item = &'a [T]>,
    width: usize,
) -> impl Iterator<Item = (Range<usize>, &'a [T])> {
    let mut column = 0;
    stretches.flat_map(move |tokens| tokens.chunks(BESIDE * width)).map(move |block| {
        let columns = column..column + block.len() / width;
        column = columns.end;
        (columns, block)
    })
}
