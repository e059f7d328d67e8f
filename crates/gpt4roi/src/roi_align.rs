//! RoIAlign: an even grid of bilinear samples out of a feature map, whatever the box's size.
//!
//! The convention is that of mmcv 1.4.7 with `aligned=True`: pixel centres lie at half integers,
//! boxes are not widened to a minimum size, samples further than one pixel outside are zero.

use candle_core::{Result, Tensor};

/// Pools boxes out of one level.
///
/// # Shapes
/// map `[1, C, H, W]`; boxes `[N, 4]` xyxy in pixels of the model's picture, multiplied by
/// `spatial_scale` to reach the map → `[N, C, size, size]`
pub fn roi_align(
    map: &Tensor,
    boxes: &Tensor,
    spatial_scale: f64,
    size: usize,
    sampling_ratio: usize,
) -> Result<Tensor> {
    let _ = (map, boxes, spatial_scale, size, sampling_ratio);
    candle_core::bail!("roi_align is being written")
}
