//! The kernels as operations of the tensor engine, with their gradients: CPU, f32.
//!
//! Arguments are made contiguous before an operation is applied. A gradient is computed only for an
//! argument that something trainable stands behind, so frozen weights cost nothing.

use std::{
    marker::PhantomData,
    ops::{Deref, Range},
    sync::Arc,
};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, WithDType,
};
use gpt4roi_kernels::{
    self as kernels, AttentionShape, Conv3x3Shape, GroupNormShape, HalfMatrix, MapSize, MatMut, MatRef, QuantMatrix,
    RoiAlignShape,
};

use crate::{
    channels_last,
    layers::{AttentionMask, Tail},
};

/// Whether the kernels can take all of these.
pub(crate) fn serve(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32)
}

/// Whether the kernels can let these queries look at these keys and values.
pub(crate) fn serve_branches(q: &Tensor, remembered: &[&Tensor]) -> bool {
    let halves = |tensor: &&Tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F16;
    serve(&[q]) && (serve(remembered) || remembered.iter().all(halves))
}

/// The values of a contiguous tensor, locked for reading.
pub(crate) struct Values<S, T> {
    storage: S,
    place: Range<usize>,
    number: PhantomData<T>,
}

pub(crate) fn values(tensor: &Tensor) -> Result<Values<impl Deref<Target = Storage>, f32>> {
    numbers(tensor)
}

fn numbers<T: WithDType>(tensor: &Tensor) -> Result<Values<impl Deref<Target = Storage>, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(all) if all.as_slice::<T>().is_ok() => {
            Ok(Values { storage, place: place(layout)?, number: PhantomData })
        }
        _ => {
            candle_core::bail!("expected {:?} on the CPU, got {:?} on {:?}", T::DTYPE, tensor.dtype(), tensor.device())
        }
    }
}

impl<S: Deref<Target = Storage>, T: WithDType> Deref for Values<S, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(all) => all.as_slice().map_or(&[], |all| &all[self.place.clone()]),
            _ => &[],
        }
    }
}

pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    Ok(&storage.as_slice::<f32>()?[place(layout)?])
}

fn place(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

fn fresh(like: &Tensor) -> Vec<f32> {
    vec![0.0; like.elem_count()]
}

fn shaped(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

fn shaped_if_tracked(values: Vec<f32>, like: &Tensor) -> Result<Option<Tensor>> {
    like.track_op().then(|| shaped(values, like)).transpose()
}

fn done(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// x·Wᵀ + b.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Linear),
        None => x.apply_op2(&weight, Linear),
    }
}

struct Linear;

impl Linear {
    fn forward(x: (&[f32], &Shape), weight: (&[f32], &Shape), bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (output, input) = weight.1.dims2()?;
        let mut shape = x.1.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == input => *last = output,
            _ => candle_core::bail!("linear: expected [.., {input}], got {:?}", x.1),
        }
        let rows = x.0.len() / input;
        let mut y = vec![0.0; rows * output];
        match bias {
            Some(bias) if bias.len() != output => {
                candle_core::bail!("linear: expected a bias of {output} values, got {}", bias.len())
            }
            Some(bias) => kernels::repeat_row(bias, &mut y),
            None => {}
        }
        kernels::linear(x.0, weight.0, (input, output), &mut y);
        done(y, shape)
    }

    fn backward(x: &Tensor, weight: &Tensor, grad: &[f32]) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (output, input) = weight.dims2()?;
        let rows = x.elem_count() / input;
        let grad = MatRef::new(grad, rows, output);
        let grad_x = match x.track_op() {
            true => {
                let mut out = fresh(x);
                let weight = values(weight)?;
                kernels::gemm(1.0, grad, MatRef::new(&weight, output, input), 0.0, MatMut::new(&mut out, rows, input));
                Some(shaped(out, x)?)
            }
            false => None,
        };
        let grad_weight = match weight.track_op() {
            true => {
                let mut out = fresh(weight);
                let x = values(x)?;
                let target = MatMut::new(&mut out, output, input);
                kernels::gemm(1.0, grad.transposed(), MatRef::new(&x, rows, input), 0.0, target);
                Some(shaped(out, weight)?)
            }
            false => None,
        };
        Ok((grad_x, grad_weight))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::forward((slice(x, lx)?, lx.shape()), (slice(w, lw)?, lw.shape()), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Self::backward(x, w, &values(&grad.contiguous()?)?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::forward((slice(x, lx)?, lx.shape()), (slice(w, lw)?, lw.shape()), Some(slice(b, lb)?))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients3> {
        let grad = grad.contiguous()?;
        let grad = values(&grad)?;
        let (grad_x, grad_w) = Self::backward(x, w, &grad)?;
        let grad_b = match b.track_op() {
            true => {
                let mut out = fresh(b);
                kernels::sum_rows(&grad, &mut out);
                Some(shaped(out, b)?)
            }
            false => None,
        };
        Ok((grad_x, grad_w, grad_b))
    }
}

/// Weights `[rows, columns]` in a layout of the kernels' own.
pub(crate) trait Packed: Send + Sync {
    /// Rows and columns.
    fn dims(&self) -> (usize, usize);
    /// y = x·Wᵀ.
    fn product(&self, x: &[f32], y: &mut [f32]);
    /// grad_x = grad·W.
    fn product_backward(&self, grad: &[f32], grad_x: &mut [f32]);
    /// The weights of one row.
    fn row(&self, row: usize, out: &mut [f32]);
}

macro_rules! packed {
    ($matrix:ty) => {
        impl Packed for $matrix {
            fn dims(&self) -> (usize, usize) {
                (self.rows(), self.columns())
            }

            fn product(&self, x: &[f32], y: &mut [f32]) {
                self.product(x, y);
            }

            fn product_backward(&self, grad: &[f32], grad_x: &mut [f32]) {
                self.product_backward(grad, grad_x);
            }

            fn row(&self, row: usize, out: &mut [f32]) {
                self.row(row, out);
            }
        }
    };
}

packed!(HalfMatrix);
packed!(QuantMatrix);

/// x·Wᵀ with packed weights, which stay as they are. Where products round activations, as those with quantised weights
/// do, gradients pass as if nothing had been rounded.
pub(crate) fn packed_linear<W: Packed + 'static>(x: &Tensor, weight: &Arc<W>) -> Result<Tensor> {
    x.contiguous()?.apply_op1(PackedLinear(weight.clone()))
}

struct PackedLinear<W>(Arc<W>);

impl<W: Packed> CustomOp1 for PackedLinear<W> {
    fn name(&self) -> &'static str {
        "packed_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, (rows, columns)) = (slice(x, layout)?, self.0.dims());
        let mut shape = layout.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == columns => *last = rows,
            _ => candle_core::bail!("linear: expected [.., {columns}], got {:?}", layout.shape()),
        }
        let mut y = vec![0.0; shape.iter().product()];
        self.0.product(x, &mut y);
        done(y, shape)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (grad, mut grad_x) = (grad.contiguous()?, fresh(x));
        self.0.product_backward(&values(&grad)?, &mut grad_x);
        Ok(Some(shaped(grad_x, x)?))
    }
}

/// The rows of packed weights with these numbers.
pub(crate) fn packed_rows(weight: &impl Packed, ids: &Tensor) -> Result<Tensor> {
    let ids: Vec<u32> = ids.to_vec1()?;
    let (rows, columns) = weight.dims();
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        candle_core::bail!("embedding: row {id} of {rows}");
    }
    let mut out = vec![0.0; ids.len() * columns];
    for (id, out) in ids.iter().zip(out.chunks_exact_mut(columns.max(1))) {
        weight.row(*id as usize, out);
    }
    Tensor::from_vec(out, (ids.len(), columns), &candle_core::Device::Cpu)
}

type Gradients3 = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// The last dimension normalised, scaled, shifted.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check_rows("layer_norm", x, weight)?;
    check_rows("layer_norm", x, bias)?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps: eps as f32 })
}

/// The last dimension of `x` must be that of a vector of weights.
fn check_rows(op: &str, x: &Tensor, weight: &Tensor) -> Result<()> {
    let size = weight.dims1()?;
    if x.dims().last() != Some(&size) || size == 0 {
        candle_core::bail!("{op}: expected [.., {size}], got {:?}", x.shape())
    }
    Ok(())
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut y = vec![0.0; lx.shape().elem_count()];
        kernels::layer_norm(slice(x, lx)?, slice(w, lw)?, slice(b, lb)?, self.eps, &mut y);
        done(y, lx.shape())
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients3> {
        let grad = grad.contiguous()?;
        let (xs, ws, grad) = (values(x)?, values(w)?, values(&grad)?);
        let (mut grad_x, mut grad_w, mut grad_b) = (fresh(x), fresh(w), fresh(b));
        kernels::layer_norm_backward(&xs, &ws, self.eps, &grad, &mut grad_x, &mut grad_w, &mut grad_b);
        Ok((shaped_if_tracked(grad_x, x)?, shaped_if_tracked(grad_w, w)?, shaped_if_tracked(grad_b, b)?))
    }
}

/// The last dimension over its root mean square, scaled.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check_rows("rms_norm", x, weight)?;
    x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 })
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = vec![0.0; lx.shape().elem_count()];
        kernels::rms_norm(slice(x, lx)?, slice(w, lw)?, self.eps, &mut y);
        done(y, lx.shape())
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (xs, ws, grad) = (values(x)?, values(w)?, values(&grad)?);
        let (mut grad_x, mut grad_w) = (fresh(x), fresh(w));
        kernels::rms_norm_backward(&xs, &ws, self.eps, &grad, &mut grad_x, &mut grad_w);
        Ok((shaped_if_tracked(grad_x, x)?, shaped_if_tracked(grad_w, w)?))
    }
}

/// A function of single values, by its kernels.
struct Elementwise {
    name: &'static str,
    forward: fn(&[f32], &mut [f32]),
    backward: fn(&[f32], &[f32], &mut [f32]),
}

impl CustomOp1 for Elementwise {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = vec![0.0; lx.shape().elem_count()];
        (self.forward)(slice(x, lx)?, &mut y);
        done(y, lx.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let mut grad_x = fresh(x);
        (self.backward)(&values(x)?, &values(&grad)?, &mut grad_x);
        Ok(Some(shaped(grad_x, x)?))
    }
}

pub(crate) fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    let (forward, backward) = (kernels::quick_gelu as _, kernels::quick_gelu_backward as _);
    x.contiguous()?.apply_op1(Elementwise { name: "quick-gelu", forward, backward })
}

pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    let (forward, backward) = (kernels::gelu as _, kernels::gelu_backward as _);
    x.contiguous()?.apply_op1(Elementwise { name: "gelu", forward, backward })
}

pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    let (forward, backward) = (kernels::relu as _, kernels::relu_backward as _);
    x.contiguous()?.apply_op1(Elementwise { name: "relu", forward, backward })
}

/// silu(gate)·up.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        candle_core::bail!("swiglu: gate is {:?}, up is {:?}", gate.shape(), up.shape())
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, Swiglu)
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, lg: &Layout, up: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = vec![0.0; lg.shape().elem_count()];
        kernels::swiglu(slice(gate, lg)?, slice(up, lu)?, &mut y);
        done(y, lg.shape())
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (mut grad_gate, mut grad_up) = (fresh(gate), fresh(up));
        let (gates, ups, grad) = (values(gate)?, values(up)?, values(&grad)?);
        kernels::swiglu_backward(&gates, &ups, &grad, &mut grad_gate, &mut grad_up);
        Ok((shaped_if_tracked(grad_gate, gate)?, shaped_if_tracked(grad_up, up)?))
    }
}

/// Softmax attention on `[B, T, heads·D]`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: &AttentionMask) -> Result<Tensor> {
    let ((batch, queries, width), (key_batch, keys, key_width)) = (q.dims3()?, k.dims3()?);
    if k.shape() != v.shape() || (batch, width) != (key_batch, key_width) || heads == 0 || width % heads != 0 {
        candle_core::bail!("attention: {heads} heads over q {:?}, k {:?}, v {:?}", q.shape(), k.shape(), v.shape())
    }
    let suits = match mask {
        AttentionMask::Full => true,
        AttentionMask::Causal => queries <= keys,
        AttentionMask::Branches { prefix, starts } => {
            queries == keys
                && starts.len() == keys
                && starts.iter().enumerate().skip(*prefix).all(|(i, start)| (*prefix..=i).contains(start))
        }
    };
    if !suits {
        candle_core::bail!("attention: {mask:?} does not suit {queries} queries and {keys} keys")
    }
    let shape = AttentionShape { batch, queries, keys, heads, head_dim: width / heads };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, Attention { shape, mask: mask.clone() })
}

struct Attention {
    shape: AttentionShape,
    mask: AttentionMask,
}

impl Attention {
    fn visible(&self, query: usize) -> (Range<usize>, Range<usize>) {
        self.mask.visible(query, self.shape.queries, self.shape.keys)
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = vec![0.0; lq.shape().elem_count()];
        let (q, k, v) = (slice(q, lq)?, slice(k, lk)?, slice(v, lv)?);
        kernels::attention(q, k, v, self.shape, &|query| self.visible(query), &mut out);
        done(out, lq.shape())
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Gradients3> {
        let grad = grad.contiguous()?;
        let (mut grad_q, mut grad_k, mut grad_v) = (fresh(q), fresh(k), fresh(v));
        kernels::attention_backward(
            &values(q)?,
            &values(k)?,
            &values(v)?,
            self.shape,
            &|query| self.visible(query),
            &values(out)?,
            &values(&grad)?,
            &mut grad_q,
            &mut grad_k,
            &mut grad_v,
        );
        Ok((shaped_if_tracked(grad_q, q)?, shaped_if_tracked(grad_k, k)?, shaped_if_tracked(grad_v, v)?))
    }
}

/// Attention behind a shared prefix; inference only, so it is no operation with a gradient.
pub(crate) fn branched_attention(
    q: &Tensor,
    prefix: Option<&(Tensor, Tensor)>,
    tails: &[Tail],
    heads: usize,
) -> Result<Tensor> {
    match tails.first().map(|tail| tail.keys.dtype()) {
        Some(DType::F16) => attend_branches::<half::f16>(q, prefix, tails, heads),
        _ => attend_branches::<f32>(q, prefix, tails, heads),
    }
}

fn attend_branches<T: WithDType + kernels::Remembered>(
    q: &Tensor,
    prefix: Option<&(Tensor, Tensor)>,
    tails: &[Tail],
    heads: usize,
) -> Result<Tensor> {
    let contiguous = |(k, v): (&Tensor, &Tensor)| Ok((k.contiguous()?, v.contiguous()?));
    let q = q.contiguous()?;
    let prefix = prefix.map(|(k, v)| contiguous((k, v))).transpose()?;
    let own = tails.iter().map(|tail| contiguous((&tail.keys, &tail.values))).collect::<Result<Vec<_>>>()?;

    let locked = |(k, v)| Ok((numbers::<T>(k)?, numbers::<T>(v)?));
    let prefix = prefix.as_ref().map(|(k, v)| locked((k, v))).transpose()?;
    let own = own.iter().map(|(k, v)| locked((k, v))).collect::<Result<Vec<_>>>()?;
    let prefix = match &prefix {
        Some((keys, values)) => kernels::Prefix { keys, values },
        None => kernels::Prefix { keys: &[], values: &[] },
    };
    let branches: Vec<_> = own
        .iter()
        .zip(tails)
        .map(|((keys, values), tail)| kernels::Branch { keys, values, queries: tail.queries })
        .collect();
    let mut out = fresh(&q);
    kernels::branched_attention(&values(&q)?, prefix, &branches, heads, q.dim(2)? / heads, &mut out);
    shaped(out, &q)
}

/// The turn by the angles of `cos` and `sin`, both `[T, D/2]`.
pub(crate) fn rotary(x: &Tensor, heads: usize, cos: Tensor, sin: Tensor) -> Result<Tensor> {
    let (_, length, width) = x.dims3()?;
    let (tokens, half) = cos.dims2()?;
    if cos.shape() != sin.shape() || tokens != length || width != 2 * half * heads {
        candle_core::bail!("rotary: {heads} heads over {:?}, angles {:?}", x.shape(), cos.shape())
    }
    x.contiguous()?.apply_op1(Rotary { cos: cos.contiguous()?, sin: sin.contiguous()?, half, heads })
}

struct Rotary {
    cos: Tensor,
    sin: Tensor,
    half: usize,
    heads: usize,
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = vec![0.0; lx.shape().elem_count()];
        let (cos, sin) = (values(&self.cos)?, values(&self.sin)?);
        kernels::rotary(slice(x, lx)?, &cos, &sin, self.half, self.heads, &mut y);
        done(y, lx.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let mut grad_x = fresh(x);
        let (cos, sin) = (values(&self.cos)?, values(&self.sin)?);
        kernels::rotary_backward(&values(&grad)?, &cos, &sin, self.half, self.heads, &mut grad_x);
        Ok(Some(shaped(grad_x, x)?))
    }
}

/// The sum of the rows' losses.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    let targets: Arc<[u32]> = targets.to_vec1::<u32>()?.into();
    if targets.len() != rows {
        candle_core::bail!("cross_entropy: {rows} rows of logits, {} targets", targets.len())
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= classes) {
        candle_core::bail!("cross_entropy: target {target} among {classes} classes")
    }
    logits.contiguous()?.apply_op1(CrossEntropy { targets })
}

struct CrossEntropy {
    targets: Arc<[u32]>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let losses = kernels::cross_entropy(slice(logits, layout)?, &self.targets);
        done(vec![losses.iter().sum::<f64>() as f32], ())
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut grad_logits = fresh(logits);
        let scale = grad.to_scalar::<f32>()?;
        kernels::cross_entropy_backward(&values(logits)?, &self.targets, scale, &mut grad_logits);
        Ok(Some(shaped(grad_logits, logits)?))
    }
}

/// Each group of channels normalised, each channel scaled and shifted.
pub(crate) fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let (_, channels, height, width) = x.dims4()?;
    if weight.dims() != [channels] || bias.dims() != [channels] || groups == 0 || channels % groups != 0 {
        let shapes = (x.shape(), weight.shape(), bias.shape());
        candle_core::bail!("group_norm: {groups} groups, x, weight and bias {shapes:?}")
    }
    let shape = GroupNormShape { channels, groups, area: height * width };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, GroupNorm { shape, eps: eps as f32 })
}

struct GroupNorm {
    shape: GroupNormShape,
    eps: f32,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut y = vec![0.0; lx.shape().elem_count()];
        kernels::group_norm(slice(x, lx)?, slice(w, lw)?, slice(b, lb)?, self.shape, self.eps, &mut y);
        done(y, lx.shape())
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients3> {
        let grad = grad.contiguous()?;
        let (xs, ws, grad) = (values(x)?, values(w)?, values(&grad)?);
        let (mut grad_x, mut grad_w, mut grad_b) = (fresh(x), fresh(w), fresh(b));
        kernels::group_norm_backward(&xs, &ws, self.shape, self.eps, &grad, &mut grad_x, &mut grad_w, &mut grad_b);
        Ok((shaped_if_tracked(grad_x, x)?, shaped_if_tracked(grad_w, w)?, shaped_if_tracked(grad_b, b)?))
    }
}

/// The 3×3 convolution with zero padding.
pub(crate) fn conv3x3(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (batch, input, height, width) = x.dims4()?;
    let output = weight.dim(0)?;
    if weight.dims() != [output, input, 3, 3] || bias.is_some_and(|bias| bias.dims() != [output]) {
        candle_core::bail!(
            "conv3x3: x {:?}, weight {:?}, bias {:?}",
            x.shape(),
            weight.shape(),
            bias.map(Tensor::shape)
        )
    }
    let op = Conv3x3(Conv3x3Shape { batch, input, output, height, width });
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op),
        None => x.apply_op2(&weight, op),
    }
}

struct Conv3x3(Conv3x3Shape);

impl Conv3x3 {
    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let Conv3x3Shape { batch, output, height, width, .. } = self.0;
        let mut y = vec![0.0; batch * output * height * width];
        kernels::conv3x3(x, weight, bias, self.0, &mut y);
        done(y, (batch, output, height, width))
    }

    fn backward(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, grad: &Tensor) -> Result<Gradients3> {
        let grad = grad.contiguous()?;
        let grad = values(&grad)?;
        let grad_x = match x.track_op() {
            true => {
                let mut out = fresh(x);
                kernels::conv3x3_backward_input(&values(weight)?, &grad, self.0, &mut out);
                Some(shaped(out, x)?)
            }
            false => None,
        };
        let bias = bias.filter(|bias| bias.track_op());
        if !weight.track_op() && bias.is_none() {
            return Ok((grad_x, None, None));
        }
        let (mut grad_weight, mut grad_bias) = (fresh(weight), bias.map(fresh));
        kernels::conv3x3_backward_weight(&values(x)?, &grad, self.0, &mut grad_weight, grad_bias.as_deref_mut());
        let grad_bias = bias.zip(grad_bias).map(|(bias, values)| shaped(values, bias)).transpose()?;
        Ok((grad_x, shaped_if_tracked(grad_weight, weight)?, grad_bias))
    }
}

impl CustomOp2 for Conv3x3 {
    fn name(&self) -> &'static str {
        "conv3x3"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(w, lw)?, None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (grad_x, grad_w, _) = self.backward(x, w, None, grad)?;
        Ok((grad_x, grad_w))
    }
}

impl CustomOp3 for Conv3x3 {
    fn name(&self) -> &'static str {
        "conv3x3"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(w, lw)?, Some(slice(b, lb)?))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients3> {
        self.backward(x, w, Some(b), grad)
    }
}

/// Bilinear resizing with aligned corners.
pub(crate) fn resize_bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h * w * height * width == 0 {
        candle_core::bail!("resize_bilinear: {:?} to {height}×{width}", x.shape())
    }
    let (from, to) = (MapSize { height: h, width: w }, MapSize { height, width });
    x.contiguous()?.apply_op1(Resize { from, to })
}

struct Resize {
    from: MapSize,
    to: MapSize,
}

impl CustomOp1 for Resize {
    fn name(&self) -> &'static str {
        "resize-bilinear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, _, _) = lx.shape().dims4()?;
        let mut y = vec![0.0; batch * channels * self.to.height * self.to.width];
        kernels::resize_bilinear(slice(x, lx)?, self.from, self.to, &mut y);
        done(y, (batch, channels, self.to.height, self.to.width))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let mut grad_x = fresh(x);
        kernels::resize_bilinear_backward(&values(&grad)?, self.from, self.to, &mut grad_x);
        Ok(Some(shaped(grad_x, x)?))
    }
}

/// `[N, C, size, size]` out of a map `[1, C, H, W]`.
pub(crate) fn roi_align(
    map: &Tensor,
    boxes: Vec<[f32; 4]>,
    spatial_scale: f64,
    size: usize,
    sampling_ratio: usize,
) -> Result<Tensor> {
    let (_, channels, height, width) = map.dims4()?;
    let spatial_scale = spatial_scale as f32;
    let shape = RoiAlignShape { channels, height, width, size, sampling_ratio, spatial_scale };
    if channels_last::lies_by_place(map) {
        return channels_last::roi_align(map, &boxes, shape);
    }
    map.contiguous()?.apply_op1(RoiAlign { boxes, shape })
}

struct RoiAlign {
    boxes: Vec<[f32; 4]>,
    shape: RoiAlignShape,
}

impl CustomOp1 for RoiAlign {
    fn name(&self) -> &'static str {
        "roi-align"
    }

    fn cpu_fwd(&self, map: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let RoiAlignShape { channels, size, .. } = self.shape;
        let mut out = vec![0.0; self.boxes.len() * channels * size * size];
        kernels::roi_align(slice(map, layout)?, &self.boxes, self.shape, &mut out);
        done(out, (self.boxes.len(), channels, size, size))
    }

    fn bwd(&self, map: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let mut grad_map = fresh(map);
        kernels::roi_align_backward(&values(&grad)?, &self.boxes, self.shape, &mut grad_map);
        Ok(Some(shaped(grad_map, map)?))
    }
}

/// A level with a quarter of its channels from the coarser neighbour and a quarter from the finer.
pub(crate) fn scale_shuffle(own: &Tensor, coarser: &Tensor, finer: &Tensor) -> Result<Tensor> {
    let size = |x: &Tensor| -> Result<_> {
        let (batch, channels, height, width) = x.dims4()?;
        Ok(((batch, channels), MapSize { height, width }))
    };
    let ((dims, own_size), (coarser_dims, coarser_size), (finer_dims, finer_size)) =
        (size(own)?, size(coarser)?, size(finer)?);
    if (coarser_dims, finer_dims) != (dims, dims) || own.elem_count() * coarser.elem_count() * finer.elem_count() == 0 {
        let shapes = (own.shape(), coarser.shape(), finer.shape());
        candle_core::bail!("scale_shuffle: own, coarser and finer level are {shapes:?}")
    }
    let op = ScaleShuffle { batch: dims.0, channels: dims.1, own: own_size, coarser: coarser_size, finer: finer_size };
    own.contiguous()?.apply_op3(&coarser.contiguous()?, &finer.contiguous()?, op)
}

struct ScaleShuffle {
    batch: usize,
    channels: usize,
    own: MapSize,
    coarser: MapSize,
    finer: MapSize,
}

impl ScaleShuffle {
    fn quarter(&self) -> usize {
        self.channels / 4
    }

    fn keep(&self) -> usize {
        self.channels - 2 * self.quarter()
    }

    /// The values of some channels of one batch element.
    fn place(&self, batch: usize, first: usize, channels: usize, size: MapSize) -> Range<usize> {
        let area = size.height * size.width;
        let start = (batch * self.channels + first) * area;
        start..start + channels * area
    }

    /// For one batch element, where each part stands: in its level, in the result, and its level's size.
    fn parts(&self, batch: usize) -> [(Range<usize>, Range<usize>, MapSize); 3] {
        let (keep, quarter) = (self.keep(), self.quarter());
        let target = |first, channels| self.place(batch, first, channels, self.own);
        [
            (target(0, keep), target(0, keep), self.own),
            (self.place(batch, keep + quarter, quarter, self.coarser), target(keep, quarter), self.coarser),
            (self.place(batch, keep, quarter, self.finer), target(keep + quarter, quarter), self.finer),
        ]
    }
}

impl CustomOp3 for ScaleShuffle {
    fn name(&self) -> &'static str {
        "scale-shuffle"
    }

    fn cpu_fwd(
        &self,
        own: &CpuStorage,
        lo: &Layout,
        coarser: &CpuStorage,
        lc: &Layout,
        finer: &CpuStorage,
        lf: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let levels = [slice(own, lo)?, slice(coarser, lc)?, slice(finer, lf)?];
        let mut out = vec![0.0; lo.shape().elem_count()];
        for batch in 0..self.batch {
            for (level, (source, target, size)) in levels.iter().zip(self.parts(batch)) {
                match size == self.own {
                    true => out[target].copy_from_slice(&level[source]),
                    false => kernels::resize_bilinear(&level[source], size, self.own, &mut out[target]),
                }
            }
        }
        done(out, lo.shape())
    }

    fn bwd(&self, own: &Tensor, coarser: &Tensor, finer: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients3> {
        let grad = grad.contiguous()?;
        let grad = values(&grad)?;
        let mut grads = [fresh(own), fresh(coarser), fresh(finer)];
        for batch in 0..self.batch {
            for (level, (source, target, size)) in grads.iter_mut().zip(self.parts(batch)) {
                match size == self.own {
                    true => level[source].copy_from_slice(&grad[target]),
                    false => kernels::resize_bilinear_backward(&grad[target], size, self.own, &mut level[source]),
                }
            }
        }
        let [grad_own, grad_coarser, grad_finer] = grads;
        Ok((
            shaped_if_tracked(grad_own, own)?,
            shaped_if_tracked(grad_coarser, coarser)?,
            shaped_if_tracked(grad_finer, finer)?,
        ))
    }
}
