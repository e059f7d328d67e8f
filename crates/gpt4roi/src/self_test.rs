//! A question that every installation can be asked: the same picture, the same region, the same words.

use image::{Rgb, RgbImage};

use crate::{
    bbox::BBox,
    chat::{AskOptions, Chat},
    error::Result,
    image::Image,
    model::Gpt4Roi,
};

/// The question; its region is the disk.
pub const QUESTION: &str = "What is <region1>?";

const SIDE: u32 = 224;
const RADIUS: f32 = 40.0;
const CENTRE: (f32, f32) = (80.0, 96.0);

/// Asks what the red disk of a drawn picture is, greedily, and returns the answer.
///
/// # Errors
/// If the model fails.
pub fn self_test(model: &Gpt4Roi) -> Result<String> {
    let image = picture();
    let mut chat = Chat::new(model, &image)?;
    let (x, y) = (f64::from(CENTRE.0), f64::from(CENTRE.1));
    let radius = f64::from(RADIUS);
    chat.add_region(BBox::from_pixels([x - radius, y - radius, x + radius, y + radius], image.size())?);
    Ok(chat.ask_with(QUESTION, &AskOptions { max_new_tokens: 32, ..AskOptions::default() })?.text)
}

/// A red disk over a meadow, below a sky.
fn picture() -> Image {
    let color = |x: u32, y: u32| {
        let (dx, dy) = (x as f32 + 0.5 - CENTRE.0, y as f32 + 0.5 - CENTRE.1);
        if dx.hypot(dy) < RADIUS {
            Rgb([214, 32, 38])
        } else if y < SIDE * 2 / 3 {
            Rgb([120, 180, 240])
        } else {
            Rgb([70, 150, 60])
        }
    };
    Image::from_rgb(RgbImage::from_fn(SIDE, SIDE, color))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_embedded_model_answers_the_same_every_time() {
        let model = Gpt4Roi::nano(&Device::Cpu).unwrap();
        let answer = self_test(&model).unwrap();
        assert!(!answer.is_empty());
        assert_eq!(self_test(&model).unwrap(), answer);
    }
}
