//! The arithmetic of GPT4RoI on a CPU: f32 slices in, f32 slices out.
//!
//! Each operation has a forward and a backward function; what a backward needs it recomputes from
//! the forward's inputs, so nothing is remembered between the two. All `unsafe` of the project lives
//! here, behind functions that are safe to call with any arguments: a slice of the wrong length
//! panics.
//!
//! A kernel uses as many threads as the rayon pool it is called from. Inside a pool of one thread it
//! starts no task at all, so data-parallel workers each keep to their own core.

#![allow(unsafe_code)]

#[macro_use]
mod simd;
mod parallel;

mod activation;
mod attention;
mod bias;
mod ceiling;
mod channels_last;
mod conv;
mod cross_entropy;
mod exp;
mod few_queries;
mod gemm;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod half_lanes;
mod half_matrix;
mod half_product;
mod interleave;
mod large_memory;
mod level;
mod linear;
mod mapped_file;
mod norm;
mod panel;
mod q4_k;
mod q6_k;
mod q8_0;
mod quant_block;
mod quant_lanes;
mod quant_matrix;
mod quant_product;
mod quant_rows;
mod remembered;
mod resize;
mod roi_align;
mod rotary;
mod row_panels;
mod shared_bytes;
mod winograd;

#[cfg(test)]
mod test_values;

pub use crate::{
    activation::{gelu, gelu_backward, quick_gelu, quick_gelu_backward, relu, relu_backward, swiglu, swiglu_backward},
    attention::{AttentionShape, Branch, Prefix, Visible, attention, attention_backward, branched_attention},
    bias::{repeat_row, sum_rows},
    ceiling::{multiply_add, read_all},
    channels_last::{Channels, group_norm_relu_channels, resize_channels},
    conv::{Conv3x3Shape, conv3x3, conv3x3_backward_input, conv3x3_backward_weight},
    cross_entropy::{cross_entropy, cross_entropy_backward},
    exp::exp,
    gemm::{MatMut, MatRef, gemm},
    half_matrix::{HalfError, HalfFormat, HalfMatrix},
    large_memory::large_zeros,
    linear::linear,
    mapped_file::MappedFile,
    norm::{
        GroupNormShape, group_norm, group_norm_backward, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward,
    },
    quant_matrix::{QuantError, QuantFormat, QuantMatrix},
    remembered::Remembered,
    resize::{MapSize, resize_bilinear, resize_bilinear_backward},
    roi_align::{RoiAlignShape, roi_align, roi_align_backward, roi_align_channels},
    rotary::{rotary, rotary_backward},
    shared_bytes::SharedBytes,
    winograd::{ConvMaps, Winograd},
};
