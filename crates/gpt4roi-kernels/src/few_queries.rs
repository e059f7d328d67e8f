//! Attention of a few queries, as in a step of decoding.
//!
//! Such a step waits for memory. So keys and values are read in the order in which they lie, a few tokens at a time, and of
//! these one head after the other, which all queries look at while it is at hand.

use std::ops::Range;

use crate::{
    attention::{AttentionShape, Branch, Prefix, softmax_parts},
    parallel::{map_indices, threads},
    remembered::{Remembered, StridedRows},
};

/// So many queries are a few: from here on it costs more to look at 16-bit numbers again for each of them than to widen
/// them once.
pub(crate) const FEW: usize = 8;

/// Tokens that are read side by side.
const BESIDE: usize = 8;

/// [`branched_attention`](crate::branched_attention) of a few queries, whose number is that of the shape.
///
/// # Shapes
/// q and out `[queries, heads·D]`
pub(crate) fn attend_few<T: Remembered>(
    q: &[f32],
    prefix: Prefix<'_, T>,
    branches: &[Branch<'_, T>],
    shape: AttentionShape,
    out: &mut [f32],
) {
    let width = shape.width();
    let stretches = stretches(prefix, branches, width);
    let channels = shape.heads.div_ceil(threads()) * shape.head_dim;
    let parts: Vec<Range<usize>> =
        (0..width).step_by(channels).map(|start| start..(start + channels).min(width)).collect();
    let attended = map_indices(parts.len(), |part| attend_heads(q, parts[part].clone(), &stretches, shape));
    for (part, attended) in parts.into_iter().zip(attended) {
        for (out, row) in out.chunks_exact_mut(width).zip(attended.chunks_exact(part.len())) {
            out[part.clone()].copy_from_slice(row);
        }
    }
}

/// Tokens that lie next to each other, and the queries that look at them.
struct Stretch<'a, T> {
    keys: &'a [T],
    values: &'a [T],
    /// Where they begin in a row of scores.
    column: usize,
    queries: Range<usize>,
}

/// What all queries see, then what those of each branch do.
fn stretches<'a, T>(prefix: Prefix<'a, T>, branches: &[Branch<'a, T>], width: usize) -> Vec<Stretch<'a, T>> {
    let (mut first, column) = (0, prefix.keys.len() / width);
    let own = branches.iter().map(|branch| {
        let queries = first..first + branch.queries;
        first = queries.end;
        Stretch { keys: branch.keys, values: branch.values, column, queries }
    });
    let own: Vec<_> = own.collect();
    [Stretch { keys: prefix.keys, values: prefix.values, column: 0, queries: 0..first }]
        .into_iter()
        .chain(own)
        .collect()
}

/// The heads whose channels these are.
///
/// # Shapes
/// → `[queries, channels]`
fn attend_heads<T: Remembered>(
    q: &[f32],
    channels: Range<usize>,
    stretches: &[Stretch<'_, T>],
    shape: AttentionShape,
) -> Vec<f32> {
    let (dim, width, shared) = (shape.head_dim, shape.width(), shape.keys);
    let tokens = |stretch: &Stretch<'_, T>| stretch.keys.len() / width;
    let columns = stretches.iter().map(|stretch| stretch.column + tokens(stretch)).max().unwrap_or(0);
    let row = |head: usize, query: usize| ((head - channels.start) / dim * shape.queries + query) * columns;
    let heads = || channels.clone().step_by(dim);
    let mut scores = vec![0.0; channels.len() / dim * shape.queries * columns];
    for stretch in stretches {
        for (place, keys) in blocks(stretch.keys, stretch.column, width) {
            for head in heads() {
                let keys = StridedRows::new(keys, head..head + dim, width);
                for query in stretch.queries.clone() {
                    let scores = &mut scores[row(head, query)..][place.clone()];
                    T::score(keys, &q[query * width + head..][..dim], scores);
                }
            }
        }
    }
    for own in &stretches[1..] {
        for (query, seen) in own.queries.clone().zip(tokens(own) - own.queries.len() + 1..) {
            for head in heads() {
                let scores = &mut scores[row(head, query)..][..columns];
                softmax_parts(scores, 0..shared, shared..shared + seen, shape.scale());
            }
        }
    }
    let mut out = vec![0.0; shape.queries * channels.len()];
    for stretch in stretches {
        for (place, values) in blocks(stretch.values, stretch.column, width) {
            for head in heads() {
                let values = StridedRows::new(values, head..head + dim, width);
                for query in stretch.queries.clone() {
                    let out = &mut out[query * channels.len() + head - channels.start..][..dim];
                    T::add_rows(values, &scores[row(head, query)..][place.clone()], out);
                }
            }
        }
    }
    out
}

/// Some tokens at a time, and where they stand in a row of scores.
fn blocks<T>(tokens: &[T], column: usize, width: usize) -> impl Iterator<Item = (Range<usize>, &[T])> {
    tokens.chunks(BESIDE * width).enumerate().map(move |(block, tokens)| {
        let start = column + block * BESIDE;
        (start..start + tokens.len() / width, tokens)
    })
}
