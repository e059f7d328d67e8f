//! RoIAlign: an even grid of bilinear samples out of a feature map, whatever the box's size.
//!
//! The convention is that of mmcv 1.4.7 with `aligned=True`: pixel centres lie at half integers,
//! boxes are not widened to a minimum size, samples further than one pixel outside are zero.

use candle_core::{DType, Result, Tensor};

use crate::{composed, ops};

/// Pools boxes out of one level. The gradient reaches the map, and no box.
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
    let edges = boxes.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let edges = edges.iter().map(|edges| <[f32; 4]>::try_from(edges.as_slice()));
    let Ok(edges) = edges.collect::<std::result::Result<Vec<_>, _>>() else {
        candle_core::bail!("roi_align: expected boxes [N, 4], got {:?}", boxes.shape())
    };
    let (batch, _, _, _) = map.dims4()?;
    if batch != 1 || map.elem_count() == 0 || size == 0 || sampling_ratio == 0 {
        candle_core::bail!(
            "roi_align: expected a map [1, C, H, W], bins and samples, got {:?}, {size} and {sampling_ratio}",
            map.shape()
        )
    }
    match ops::serve(&[map]) {
        true => ops::roi_align(map, edges, spatial_scale, size, sampling_ratio),
        false => composed::roi_align(map, &edges, spatial_scale, size, sampling_ratio),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn map(side: usize) -> Var {
        let values: Vec<f32> = (0..side * side).map(|i| i as f32).collect();
        Var::from_vec(values, (1, 1, side, side), &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// A map whose value is 4·row + column, so that every sample inside has a value one can see.
    /// The picture is twice as large as the map. Box (2, 2, 6, 6) reaches from 0.5 to 2.5 on the map of
    /// pixel centres; its four bins are one pixel wide and centred at 1 and 2.
    #[test]
    fn bins_average_around_their_centres() {
        let boxes = Tensor::new(&[[2f32, 2.0, 6.0, 6.0]], &Device::Cpu).unwrap();
        let pooled = roi_align(&map(4), &boxes, 0.5, 2, 2).unwrap();
        assert_eq!(pooled.dims(), [1, 1, 2, 2]);
        assert_eq!(flat(&pooled), [5.0, 6.0, 9.0, 10.0]);
    }

    /// One sample at (1.25, 1.5): a share of 3/8 for each of the two upper neighbours, 1/8 for the lower.
    #[test]
    fn the_gradient_goes_to_the_neighbours_of_each_sample() {
        let map = map(4);
        let boxes = Tensor::new(&[[1.5f32, 1.25, 2.5, 2.25]], &Device::Cpu).unwrap();
        let grads = roi_align(&map, &boxes, 1.0, 1, 1).unwrap().sum_all().unwrap().backward().unwrap();
        let mut expected = [0.0; 16];
        (expected[5], expected[6], expected[9], expected[10]) = (0.375, 0.375, 0.125, 0.125);
        assert_eq!(flat(grads.get(&map).unwrap()), expected);
    }

    #[test]
    fn no_boxes_give_no_regions() {
        let boxes = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(roi_align(&map(4), &boxes, 1.0, 7, 2).unwrap().dims(), [0, 1, 7, 7]);
    }

    #[test]
    fn boxes_of_another_shape_are_refused() {
        let boxes = Tensor::zeros((2, 5), DType::F32, &Device::Cpu).unwrap();
        assert!(roi_align(&map(4), &boxes, 1.0, 7, 2).is_err());
        let boxes = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(roi_align(&map(4), &boxes, 1.0, 0, 2).is_err());
        assert!(roi_align(&map(4), &boxes, 1.0, 7, 0).is_err());
    }
}
