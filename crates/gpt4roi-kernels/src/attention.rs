//! Softmax attention over `[batch, tokens, heads·D]`, read and written in place of the heads.
//!
//! Queries are taken in blocks. A block scores only the keys that one of its queries may see; within
//! the block the mask sets single probabilities to zero.

use std::ops::Range;

use crate::{
    exp::exp1,
    few_queries::{FEW, attend_few},
    gemm::{MatMut, MatRef, gemm_serial},
    parallel::map_indices,
    remembered::{Remembered, StridedRows},
    simd::{max, sum2},
};

/// Queries that are scored together.
const BLOCK: usize = 64;

/// For query i, the keys it may see: two ranges that do not overlap, in ascending order.
pub type Visible<'a> = &'a (dyn Fn(usize) -> (Range<usize>, Range<usize>) + Sync);

/// The dimensions of one attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens that ask, per sequence.
    pub queries: usize,
    /// Tokens that answer, per sequence.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
}

impl AttentionShape {
    pub(crate) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn check(&self, q: &[f32], k: &[f32], v: &[f32], out: &[f32]) {
        let (queries, keys) = (self.batch * self.queries * self.width(), self.batch * self.keys * self.width());
        assert_eq!((q.len(), k.len(), v.len(), out.len()), (queries, keys, keys, queries), "{self:?}");
    }

    /// Where the head of one batch element begins in a tensor of so many tokens.
    fn offset(&self, task: usize, tokens: usize) -> usize {
        task / self.heads * tokens * self.width() + task % self.heads * self.head_dim
    }

    /// Some rows of one head.
    fn rows<'a>(&self, x: &'a [f32], task: usize, tokens: usize, rows: Range<usize>) -> MatRef<'a> {
        let start = self.offset(task, tokens) + rows.start * self.width();
        MatRef::strided(x.get(start..).unwrap_or_default(), (rows.len(), self.head_dim), (self.width(), 1))
    }

    /// Puts what each head computed, `[tokens, D]`, side by side.
    fn merge(&self, heads: &[Vec<f32>], tokens: usize, out: &mut [f32]) {
        for (task, head) in heads.iter().enumerate() {
            let out = &mut out[self.offset(task, tokens)..];
            for (row, values) in head.chunks_exact(self.head_dim).enumerate() {
                out[row * self.width()..][..self.head_dim].copy_from_slice(values);
            }
        }
    }
}

/// softmax(q·kᵀ / √D)·v for each head, over the keys that the mask leaves.
///
/// # Shapes
/// q and out `[batch, queries, heads·D]`, k and v `[batch, keys, heads·D]`
///
/// # Panics
/// If the lengths do not fit, or `visible` names a key that does not exist.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], shape: AttentionShape, visible: Visible<'_>, out: &mut [f32]) {
    shape.check(q, k, v, out);
    if out.is_empty() {
        return;
    }
    let heads = map_indices(shape.batch * shape.heads, |task| attend(q, k, v, shape, visible, task));
    shape.merge(&heads, shape.queries, out);
}

/// One head: `[queries, D]`.
fn attend(q: &[f32], k: &[f32], v: &[f32], shape: AttentionShape, visible: Visible<'_>, task: usize) -> Vec<f32> {
    let dim = shape.head_dim;
    let mut out = vec![0.0; shape.queries * dim];
    let mut scores = Vec::new();
    for start in (0..shape.queries).step_by(BLOCK) {
        let block = Block::new(start..(start + BLOCK).min(shape.queries), shape, visible);
        let columns = block.score(q, k, shape, task, &mut scores);
        block.softmax(&mut scores, shape.scale(), visible);
        let target = &mut out[start * dim..block.queries.end * dim];
        let mut beta = 0.0;
        for (seen, column) in block.parts() {
            let weights = MatRef::strided(&scores[column..], (block.queries.len(), seen.len()), (columns, 1));
            let values = shape.rows(v, task, shape.keys, seen);
            gemm_serial(1.0, weights, values, beta, MatMut::new(target, block.queries.len(), dim));
            beta = 1.0;
        }
    }
    out
}

/// A sequence that goes on behind a prefix which it shares with others.
#[derive(Clone, Copy, Debug)]
pub struct Branch<'a, T> {
    /// Keys of its own tokens, `[tokens, heads·D]`.
    pub keys: &'a [T],
    /// Values of its own tokens, `[tokens, heads·D]`.
    pub values: &'a [T],
    /// So many of its tokens ask, the last ones.
    pub queries: usize,
}

/// The keys and values that all branches see.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'a, T> {
    /// `[tokens, heads·D]`
    pub keys: &'a [T],
    /// `[tokens, heads·D]`
    pub values: &'a [T],
}

/// [`attention`] of many sequences that begin alike: each query sees the whole prefix, and of its own
/// branch the tokens up to itself. The prefix is read once for all branches, wherever it lies; their
/// queries are scored against it in one product.
///
/// # Shapes
/// q and out `[Σ queries, heads·D]`, the queries of one branch after those of the other
///
/// # Panics
/// If the lengths do not fit, or a branch has more queries than tokens.
pub fn branched_attention<T: Remembered>(
    q: &[f32],
    prefix: Prefix<'_, T>,
    branches: &[Branch<'_, T>],
    heads: usize,
    head_dim: usize,
    out: &mut [f32],
) {
    let width = heads * head_dim;
    let queries = branches.iter().map(|branch| branch.queries).sum();
    assert_eq!((q.len(), out.len()), (queries * width, queries * width), "{queries} queries of width {width}");
    if out.is_empty() {
        return;
    }
    let shape = AttentionShape { batch: 1, queries, keys: prefix.keys.len() / width, heads, head_dim };
    let tokens = |branch: &Branch<'_, T>| branch.keys.len() / width;
    assert_eq!((prefix.keys.len(), prefix.values.len()), (shape.keys * width, shape.keys * width), "a prefix in part");
    for branch in branches {
        let own = tokens(branch) * width;
        assert_eq!((branch.keys.len(), branch.values.len()), (own, own), "a branch in part");
        assert!(branch.queries <= tokens(branch), "{} queries, {} tokens", branch.queries, tokens(branch));
    }
    if queries <= FEW {
        return attend_few(q, prefix, branches, shape, out);
    }
    let merged = map_indices(heads, |head| attend_branches(q, prefix, branches, shape, head));
    shape.merge(&merged, queries, out);
}

/// One head: `[Σ queries, D]`.
///
/// A row of scores holds the prefix, then what is left for the longest branch.
fn attend_branches<T: Remembered>(
    q: &[f32],
    prefix: Prefix<'_, T>,
    branches: &[Branch<'_, T>],
    shape: AttentionShape,
    head: usize,
) -> Vec<f32> {
    let mut room = Vec::new();
    let (dim, width, shared) = (shape.head_dim, shape.width(), shape.keys);
    let longest = branches.iter().map(|branch| branch.keys.len() / width).max().unwrap_or(0);
    let columns = shared + longest;
    let mut scores = vec![0.0; shape.queries * columns];
    let mut out = vec![0.0; shape.queries * dim];
    let of_head = |x| StridedRows::new(x, head * dim..(head + 1) * dim, width);

    if shared > 0 {
        let keys = T::widened(of_head(prefix.keys), &mut room).transposed();
        let target = MatMut::strided(&mut scores, (shape.queries, shared), columns);
        gemm_serial(1.0, shape.rows(q, head, shape.queries, 0..shape.queries), keys, 0.0, target);
    }
    let mut first = 0;
    for branch in branches.iter().filter(|branch| branch.queries > 0) {
        let (own, rows) = (branch.keys.len() / width, first..first + branch.queries);
        let keys = T::widened(of_head(branch.keys), &mut room).transposed();
        let scores = &mut scores[first * columns..rows.end * columns];
        let target = MatMut::strided(&mut scores[shared..], (rows.len(), own), columns);
        gemm_serial(1.0, shape.rows(q, head, shape.queries, rows.clone()), keys, 0.0, target);
        for (row, seen) in scores.chunks_exact_mut(columns).zip(own - rows.len() + 1..) {
            softmax_parts(row, 0..shared, shared..shared + seen, shape.scale());
        }
        let weights = MatRef::strided(&scores[shared..], (rows.len(), own), (columns, 1));
        let target = MatMut::new(&mut out[first * dim..rows.end * dim], rows.len(), dim);
        gemm_serial(1.0, weights, T::widened(of_head(branch.values), &mut room), 0.0, target);
        first = rows.end;
    }
    if shared > 0 {
        let weights = MatRef::strided(&scores, (shape.queries, shared), (columns, 1));
        let values = T::widened(of_head(prefix.values), &mut room);
        gemm_serial(1.0, weights, values, 1.0, MatMut::new(&mut out, shape.queries, dim));
    }
    out
}

/// The gradients of [`attention`]; all three are written.
///
/// # Panics
/// If the lengths do not fit.
#[allow(clippy::too_many_arguments)] // The operands and their gradients; a struct would only rename them.
pub fn attention_backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: AttentionShape,
    visible: Visible<'_>,
    out: &[f32],
    grad: &[f32],
    grad_q: &mut [f32],
    grad_k: &mut [f32],
    grad_v: &mut [f32],
) {
    shape.check(q, k, v, out);
    shape.check(grad, grad_k, grad_v, grad_q);
    if grad_k.is_empty() || out.is_empty() {
        return;
    }
    let heads = map_indices(shape.batch * shape.heads, |task| {
        attend_backward(Operands { q, k, v, out, grad }, shape, visible, task)
    });
    let mut queries = Vec::with_capacity(heads.len());
    let (mut keys, mut values) = (queries.clone(), queries.clone());
    for head in heads {
        queries.push(head.q);
        keys.push(head.k);
        values.push(head.v);
    }
    shape.merge(&queries, shape.queries, grad_q);
    shape.merge(&keys, shape.keys, grad_k);
    shape.merge(&values, shape.keys, grad_v);
}

/// What the backward reads.
#[derive(Clone, Copy)]
struct Operands<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    grad: &'a [f32],
}

/// The gradients of one head, each `[tokens, D]`.
struct HeadGradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn attend_backward(from: Operands<'_>, shape: AttentionShape, visible: Visible<'_>, task: usize) -> HeadGradients {
    let (dim, width, scale) = (shape.head_dim, shape.width(), shape.scale());
    let zeros = |tokens: usize| vec![0.0; tokens * dim];
    let mut grads = HeadGradients { q: zeros(shape.queries), k: zeros(shape.keys), v: zeros(shape.keys) };
    let (mut weights, mut grad_scores) = (Vec::new(), Vec::new());
    for start in (0..shape.queries).step_by(BLOCK) {
        let block = Block::new(start..(start + BLOCK).min(shape.queries), shape, visible);
        let rows = block.queries.len();
        let columns = block.score(from.q, from.k, shape, task, &mut weights);
        block.softmax(&mut weights, scale, visible);
        block.score(from.grad, from.v, shape, task, &mut grad_scores);

        // d score = p·(d p − Σ p·d p), and the sum is out·d out.
        let first = shape.offset(task, shape.queries) + start * width;
        for (row, (grads, weights)) in
            grad_scores.chunks_exact_mut(columns).zip(weights.chunks_exact(columns)).enumerate()
        {
            let place = first + row * width;
            softmax_backward(&from.out[place..][..dim], &from.grad[place..][..dim], weights, scale, grads);
        }

        let query = shape.rows(from.q, task, shape.queries, block.queries.clone());
        let grad = shape.rows(from.grad, task, shape.queries, block.queries.clone());
        let mut beta = 0.0;
        for (seen, column) in block.parts() {
            let part = |x| MatRef::strided(x, (rows, seen.len()), (columns, 1));
            let (weights, grad_scores) = (part(&weights[column..]), part(&grad_scores[column..]));
            let keys = seen.start * dim..seen.end * dim;
            let grad_query = &mut grads.q[start * dim..block.queries.end * dim];
            let key = shape.rows(from.k, task, shape.keys, seen.clone());
            gemm_serial(1.0, grad_scores, key, beta, MatMut::new(grad_query, rows, dim));
            let (grad_key, grad_value) = (&mut grads.k[keys.clone()], &mut grads.v[keys]);
            gemm_serial(1.0, grad_scores.transposed(), query, 1.0, MatMut::new(grad_key, seen.len(), dim));
            gemm_serial(1.0, weights.transposed(), grad, 1.0, MatMut::new(grad_value, seen.len(), dim));
            beta = 1.0;
        }
    }
    grads
}

/// Some consecutive queries and the keys that any of them sees.
struct Block {
    queries: Range<usize>,
    shared: Range<usize>,
    own: Range<usize>,
}

impl Block {
    fn new(queries: Range<usize>, shape: AttentionShape, visible: Visible<'_>) -> Self {
        let none = shape.keys..0;
        let (mut shared, mut own) = (none.clone(), none);
        for query in queries.clone() {
            let (a, b) = visible(query);
            for (hull, part) in [(&mut shared, a), (&mut own, b)] {
                if !part.is_empty() {
                    *hull = hull.start.min(part.start)..hull.end.max(part.end);
                }
            }
        }
        if own.start < shared.end {
            shared = shared.start.min(own.start)..shared.end.max(own.end);
            own = 0..0;
        }
        let empty_if_unset = |range: Range<usize>| if range.is_empty() { 0..0 } else { range };
        Self { queries, shared: empty_if_unset(shared), own: empty_if_unset(own) }
    }

    /// The stretches of keys, each with the column at which its scores begin.
    fn parts(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        [(self.shared.clone(), 0), (self.own.clone(), self.shared.len())]
            .into_iter()
            .filter(|(keys, _)| !keys.is_empty())
    }

    /// Writes q·kᵀ of the block, a row per query, and returns the length of a row.
    fn score(&self, q: &[f32], k: &[f32], shape: AttentionShape, task: usize, scores: &mut Vec<f32>) -> usize {
        let (rows, columns) = (self.queries.len(), self.shared.len() + self.own.len());
        scores.resize(rows * columns, 0.0);
        let query = shape.rows(q, task, shape.queries, self.queries.clone());
        for (seen, column) in self.parts() {
            let keys = shape.rows(k, task, shape.keys, seen.clone()).transposed();
            let target = MatMut::strided(&mut scores[column..], (rows, seen.len()), columns);
            gemm_serial(1.0, query, keys, 0.0, target);
        }
        columns
    }

    /// Turns scores into probabilities; what a query does not see gets none.
    fn softmax(&self, scores: &mut [f32], scale: f32, visible: Visible<'_>) {
        let columns = self.shared.len() + self.own.len();
        if columns == 0 {
            return;
        }
        for (query, row) in self.queries.clone().zip(scores.chunks_exact_mut(columns)) {
            let (a, b) = visible(query);
            softmax_parts(row, self.columns(a), self.columns(b), scale);
        }
    }

    /// The columns of a range of keys.
    fn columns(&self, keys: Range<usize>) -> Range<usize> {
        if keys.is_empty() {
            return 0..0;
        }
        let start = if !self.own.is_empty() && keys.start >= self.own.start {
            keys.start - self.own.start + self.shared.len()
        } else {
            keys.start - self.shared.start
        };
        start..start + keys.len()
    }
}

wide! {
    /// Softmax over two stretches of a row together; zero elsewhere.
    pub(crate) fn softmax_parts(row: &mut [f32], a: Range<usize>, b: Range<usize>, scale: f32) {
        let (highest_a, highest_b) = (max(&row[a.clone()]), max(&row[b.clone()]));
        let highest = if highest_b > highest_a { highest_b } else { highest_a };
        let mut sum = 0.0;
        for part in [a.clone(), b.clone()] {
            sum += exponentials(&mut row[part], highest, scale);
        }
        let share = 1.0 / sum;
        for part in [a.clone(), b.clone()] {
            row[part].iter_mut().for_each(|p| *p *= share);
        }
        let (first, second) = if a.start <= b.start || b.is_empty() { (a, b) } else { (b, a) };
        let second = if second.is_empty() { row.len()..row.len() } else { second };
        row[..first.start].fill(0.0);
        row[first.end..second.start].fill(0.0);
        row[second.end..].fill(0.0);
    }
}

/// e^((x − highest)·scale) in place, and the sum.
#[inline(always)]
fn exponentials(x: &mut [f32], highest: f32, scale: f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = x.as_chunks_mut::<16>();
    for chunk in chunks {
        for (x, lane) in chunk.iter_mut().zip(&mut lanes) {
            *x = exp1((*x - highest) * scale);
            *lane += *x;
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for x in rest {
        *x = exp1((*x - highest) * scale);
        sum += *x;
    }
    sum
}

wide! {
    /// From the gradient of a row's probabilities to that of its unscaled scores.
    fn softmax_backward(out: &[f32], grad_out: &[f32], weights: &[f32], scale: f32, grads: &mut [f32]) {
        let along = sum2(out, grad_out, |o, g| o * g);
        for (grad, &weight) in grads.iter_mut().zip(weights) {
            *grad = weight * (*grad - along) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::test_values::{assert_close, assert_gradient, values};
    use proptest::prelude::*;

    /// Query by query, in f64.
    fn reference(q: &[f32], k: &[f32], v: &[f32], shape: AttentionShape, visible: Visible<'_>) -> Vec<f32> {
        let (width, dim) = (shape.width(), shape.head_dim);
        let mut out = vec![0.0; q.len()];
        for (batch, query, head) in (0..shape.batch)
            .flat_map(|b| (0..shape.queries).flat_map(move |i| (0..shape.heads).map(move |head| (b, i, head))))
        {
            let at = |x: &[f32], tokens: usize, token: usize, d: usize| {
                f64::from(x[(batch * tokens + token) * width + head * dim + d])
            };
            let (a, b) = visible(query);
            let weights: Vec<(usize, f64)> = a
                .chain(b)
                .map(|key| {
                    let score = |d| at(q, shape.queries, query, d) * at(k, shape.keys, key, d);
                    (key, ((0..dim).map(score).sum::<f64>() / (dim as f64).sqrt()).exp())
                })
                .collect();
            let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
            for d in 0..dim {
                let mixed: f64 = weights.iter().map(|&(key, weight)| weight * at(v, shape.keys, key, d)).sum();
                out[(batch * shape.queries + query) * width + head * dim + d] = (mixed / total) as f32;
            }
        }
        out
    }

    #[track_caller]
    fn check(shape: AttentionShape, visible: Visible<'_>, seed: u64) {
        let (queries, keys) = (shape.batch * shape.queries * shape.width(), shape.batch * shape.keys * shape.width());
        let (q, k, v) = (values(queries, seed), values(keys, seed ^ 1), values(keys, seed ^ 2));
        let mut out = vec![f32::NAN; queries];
        attention(&q, &k, &v, shape, visible, &mut out);
        assert_close(&out, &reference(&q, &k, &v, shape, visible), 1e-5);

        let grad = values(queries, seed ^ 3);
        let (mut gq, mut gk, mut gv) = (vec![f32::NAN; queries], vec![f32::NAN; keys], vec![f32::NAN; keys]);
        attention_backward(&q, &k, &v, shape, visible, &out, &grad, &mut gq, &mut gk, &mut gv);
        let last = |length: usize| length - length.min(5)..length;
        assert_gradient(&q, &grad, &gq, last(queries), |q| reference(q, &k, &v, shape, visible));
        assert_gradient(&k, &grad, &gk, last(keys), |k| reference(&q, k, &v, shape, visible));
        assert_gradient(&v, &grad, &gv, last(keys), |v| reference(&q, &k, v, shape, visible));
    }

    /// What one branch sees, as a sequence of its own.
    fn alone(q: &[f32], prefix: Prefix<'_, f32>, branch: &Branch<'_, f32>, heads: usize, head_dim: usize) -> Vec<f32> {
        let (keys, values) = ([prefix.keys, branch.keys].concat(), [prefix.values, branch.values].concat());
        let (tokens, queries) = (keys.len() / (heads * head_dim), branch.queries);
        let shape = AttentionShape { batch: 1, queries, keys: tokens, heads, head_dim };
        reference(q, &keys, &values, shape, &|i| (0..tokens - queries + i + 1, tokens..tokens))
    }

    #[track_caller]
    fn check_branches(shared: usize, branches: &[(usize, usize)], heads: usize, head_dim: usize, seed: u64) {
        let width = heads * head_dim;
        let (keys, values) = (values(shared * width, seed), values(shared * width, seed ^ 1));
        let prefix = Prefix { keys: &keys, values: &values };
        let own = |i: usize, tokens| crate::test_values::values(tokens * width, seed ^ (i as u64 + 2) << 8);
        let tails: Vec<_> = branches
            .iter()
            .enumerate()
            .map(|(i, &(earlier, new))| (own(i, earlier + new), own(i + 100, earlier + new)))
            .collect();
        let branches: Vec<_> = tails
            .iter()
            .zip(branches)
            .map(|((keys, values), &(_, queries))| Branch { keys, values, queries })
            .collect();
        let q = own(1000, branches.iter().map(|branch| branch.queries).sum());

        let mut out = vec![f32::NAN; q.len()];
        branched_attention(&q, prefix, &branches, heads, head_dim, &mut out);
        check_half(&q, prefix, &branches, heads, head_dim);
        let mut first = 0;
        for branch in &branches {
            let rows = first..first + branch.queries * width;
            assert_close(&out[rows.clone()], &alone(&q[rows.clone()], prefix, branch, heads, head_dim), 1e-5);
            first = rows.end;
        }
    }

    /// Keys and values in 16 bits give exactly what their numbers give in 32.
    #[track_caller]
    fn check_half(q: &[f32], prefix: Prefix<'_, f32>, branches: &[Branch<'_, f32>], heads: usize, head_dim: usize) {
        let half = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
        let wide = |x: &[f16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        let narrow = [prefix.keys, prefix.values].map(half);
        let rounded = narrow.each_ref().map(|x| wide(x));
        let own: Vec<_> = branches.iter().map(|branch| [branch.keys, branch.values].map(half)).collect();
        let own_rounded: Vec<_> = own.iter().map(|own| own.each_ref().map(|x| wide(x))).collect();
        let (mut out, mut expected) = (vec![f32::NAN; q.len()], vec![f32::NAN; q.len()]);
        let queries = branches.iter().map(|branch| branch.queries);
        let tails = own.iter().zip(queries.clone());
        let tails: Vec<_> = tails.map(|([keys, values], queries)| Branch { keys, values, queries }).collect();
        branched_attention(q, Prefix { keys: &narrow[0], values: &narrow[1] }, &tails, heads, head_dim, &mut out);
        let tails = own_rounded.iter().zip(queries);
        let tails: Vec<_> = tails.map(|([keys, values], queries)| Branch { keys, values, queries }).collect();
        let prefix = Prefix { keys: &rounded[0], values: &rounded[1] };
        branched_attention(q, prefix, &tails, heads, head_dim, &mut expected);
        assert_close(&out, &expected, 1e-6);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn full_attention_agrees_with_its_definition(
            (batch, queries, keys, heads, head_dim) in (1usize..3, 1usize..80, 1usize..80, 1usize..4, 1usize..9),
            seed: u64
        ) {
            check(AttentionShape { batch, queries, keys, heads, head_dim }, &|_| (0..keys, keys..keys), seed);
        }

        #[test]
        fn causal_attention_agrees_with_its_definition(queries in 1usize..140, earlier in 0usize..20, seed: u64) {
            let keys = earlier + queries;
            let shape = AttentionShape { batch: 1, queries, keys, heads: 2, head_dim: 4 };
            check(shape, &|i| (0..earlier + i + 1, keys..keys), seed);
        }

        #[test]
        fn branched_attention_agrees_with_its_definition(
            prefix in 0usize..100, branch in 1usize..90, count in 1usize..4, seed: u64
        ) {
            let length = prefix + branch * count;
            let shape = AttentionShape { batch: 1, queries: length, keys: length, heads: 1, head_dim: 4 };
            let visible = |i: usize| match i.checked_sub(prefix) {
                Some(within) => (0..prefix, prefix + within / branch * branch..i + 1),
                None => (0..i + 1, length..length),
            };
            check(shape, &visible, seed);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// From one token each, as in a step of decoding, to whole questions; with and without a prefix.
        #[test]
        fn branches_attend_as_if_each_were_alone(
            shared in 0usize..90,
            branches in prop::collection::vec((0usize..40, 1usize..12), 1..6),
            (heads, head_dim) in (1usize..4, 1usize..9),
            seed: u64
        ) {
            check_branches(shared, &branches, heads, head_dim, seed);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// A step of decoding, with and without a prefix, beside a branch that asks nothing.
        #[test]
        fn one_query_attends_to_prefix_and_branch(
            shared in 0usize..90,
            (earlier, idle) in (0usize..40, 0usize..3),
            (heads, head_dim) in (1usize..5, 1usize..40),
            seed: u64
        ) {
            check_branches(shared, &[(idle, 0), (earlier, 1)], heads, head_dim, seed);
        }
    }

    /// Five heads on three threads: two, two and one.
    #[test]
    fn the_heads_of_one_query_are_shared_out_among_threads() {
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| check_branches(30, &[(20, 1)], 5, 64, 7));
        }
    }

    #[test]
    fn a_branch_may_ask_nothing() {
        check_branches(5, &[(3, 1), (2, 0), (0, 2)], 2, 4, 7);
    }

    #[test]
    fn a_broken_branch_leaves_the_others_whole() {
        let ones = [1.0; 4];
        let branch = |keys| Branch { keys, values: &ones[..2], queries: 1 };
        let prefix = Prefix { keys: &ones, values: &ones };
        let mut out = [0.0; 4];
        branched_attention(&ones, prefix, &[branch(&[f32::NAN; 2]), branch(&ones[..2])], 1, 2, &mut out);
        assert!(out[0].is_nan() && out[1].is_nan());
        assert_eq!(out[2..], [1.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "2 queries, 1 tokens")]
    fn more_queries_than_tokens_are_refused() {
        let prefix = Prefix::<f32> { keys: &[], values: &[] };
        let branch = Branch { keys: &[1.0], values: &[1.0], queries: 2 };
        branched_attention(&[1.0; 2], prefix, &[branch], 1, 1, &mut [0.0; 2]);
    }

    #[test]
    fn what_is_no_number_is_not_hidden() {
        let shape = AttentionShape { batch: 1, queries: 2, keys: 2, heads: 1, head_dim: 1 };
        let mut out = [0.0; 2];
        attention(&[1.0, 1.0], &[1.0, f32::NAN], &[1.0, 1.0], shape, &|i| (0..i + 1, 2..2), &mut out);
        assert_eq!(out[0], 1.0);
        assert!(out[1].is_nan());
    }
}
