//! Numbered, coloured boxes on a picture.

use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};

/// Colours that people with any kind of colour vision can tell apart, by Okabe and Ito, without
/// their black and yellow, which drown in dark and in bright pictures.
const PALETTE: [[u8; 3]; 6] =
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [204, 121, 167], [213, 94, 0], [0, 114, 178]];

/// Digits, five rows of three dots each, the highest bit left.
const DIGITS: [[u8; 5]; 10] = [
    [0b111, 0b101, 0b101, 0b101, 0b111],
    [0b010, 0b110, 0b010, 0b010, 0b111],
    [0b111, 0b001, 0b111, 0b100, 0b111],
    [0b111, 0b001, 0b011, 0b001, 0b111],
    [0b101, 0b101, 0b111, 0b001, 0b001],
    [0b111, 0b100, 0b111, 0b001, 0b111],
    [0b111, 0b100, 0b111, 0b101, 0b111],
    [0b111, 0b001, 0b010, 0b010, 0b010],
    [0b111, 0b101, 0b111, 0b101, 0b111],
    [0b111, 0b101, 0b111, 0b001, 0b111],
];

/// Accepts a file name whose ending names a format that can be written.
pub(crate) fn check_path(file: &Path) -> Result<(), &'static str> {
    match ImageFormat::from_path(file) {
        Ok(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) => Ok(()),
        _ => Err("expected a file name that ends in .png, .jpg or .webp"),
    }
}

/// A copy of the picture with each region's box and number.
///
/// Boxes are xyxy in pixels. Lines and digits grow with the picture.
pub(crate) fn annotated(picture: &RgbImage, boxes: &[(u32, [f64; 4])]) -> RgbImage {
    let mut canvas = picture.clone();
    let unit = (picture.width().min(picture.height()) / 160).max(1) as i64;
    for &(number, xyxy) in boxes {
        let color = Rgb(PALETTE[(number as usize).saturating_sub(1) % PALETTE.len()]);
        let [x1, y1, x2, y2] = xyxy.map(|edge| edge.round() as i64);
        frame(&mut canvas, [x1, y1, x2, y2], 2 * unit, color);
        tag(&mut canvas, [x1, y1], number, unit, color);
    }
    canvas
}

/// Four bars on the inner side of a box's edges.
fn frame(canvas: &mut RgbImage, [x1, y1, x2, y2]: [i64; 4], width: i64, color: Rgb<u8>) {
    fill(canvas, [x1, y1, x2, y1 + width], color);
    fill(canvas, [x1, y2 - width, x2, y2], color);
    fill(canvas, [x1, y1, x1 + width, y2], color);
    fill(canvas, [x2 - width, y1, x2, y2], color);
}

/// The number, dark or light as the colour demands, on a field of that colour. It stands above the
/// box if there is room, so that it covers nothing of a small region, else in its upper left corner.
fn tag(canvas: &mut RgbImage, [x, y]: [i64; 2], number: u32, unit: i64, color: Rgb<u8>) {
    let digits: Vec<usize> = number.to_string().bytes().map(|digit| usize::from(digit - b'0')).collect();
    let dot = 2 * unit;
    let (width, height) = ((4 * digits.len() as i64 + 1) * dot, 7 * dot);
    let x = x.min(i64::from(canvas.width()) - width).max(0);
    let y = if y >= height { y - height } else { y };
    fill(canvas, [x, y, x + width, y + height], color);
    let ink = if brightness(color) > 110.0 { Rgb([0, 0, 0]) } else { Rgb([255, 255, 255]) };
    for (place, digit) in digits.into_iter().enumerate() {
        for (row, dots) in DIGITS[digit].into_iter().enumerate() {
            for column in (0..3).filter(|column| dots >> (2 - column) & 1 == 1) {
                let left = x + (4 * place as i64 + 1 + column) * dot;
                let top = y + (row as i64 + 1) * dot;
                fill(canvas, [left, top, left + dot, top + dot], ink);
            }
        }
    }
}

/// Rec. 601 luma, 0..255.
fn brightness(Rgb([r, g, b]): Rgb<u8>) -> f64 {
    0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)
}

/// A rectangle, as far as it lies in the picture.
fn fill(canvas: &mut RgbImage, [x1, y1, x2, y2]: [i64; 4], color: Rgb<u8>) {
    let (width, height) = (i64::from(canvas.width()), i64::from(canvas.height()));
    for y in y1.clamp(0, height)..y2.clamp(0, height) {
        for x in x1.clamp(0, width)..x2.clamp(0, width) {
            canvas.put_pixel(x as u32, y as u32, color);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_gets_its_colour_inside_and_its_number_above() {
        let picture = RgbImage::from_pixel(100, 100, Rgb([10, 20, 30]));
        let drawn = annotated(&picture, &[(1, [20.0, 40.0, 60.0, 80.0])]);
        let orange = Rgb(PALETTE[0]);
        for (x, y) in [(20, 40), (59, 79), (21, 60), (58, 60), (40, 41), (40, 78)] {
            assert_eq!(drawn.get_pixel(x, y), &orange, "{x},{y}");
        }
        for (x, y) in [(19, 60), (60, 60), (40, 60), (40, 80)] {
            assert_eq!(drawn.get_pixel(x, y), picture.get_pixel(x, y), "{x},{y}");
        }
        // Dots are 2 pixels; the tag is 10 × 14 and ends where the box begins. The one's stem is its
        // middle column: two dots from the left, rows one to five.
        assert_eq!(drawn.get_pixel(20, 26), &orange);
        assert_eq!(drawn.get_pixel(24, 28), &Rgb([0, 0, 0]));
        assert_eq!(drawn.get_pixel(25, 37), &Rgb([0, 0, 0]));
        assert_eq!(drawn.get_pixel(22, 28), &orange);
    }

    #[test]
    fn nothing_is_drawn_outside() {
        let picture = RgbImage::new(12, 9);
        for xyxy in [[0.0, 0.0, 12.0, 9.0], [-50.0, -50.0, 500.0, 500.0], [11.9, 8.9, 12.0, 9.0], [3.0, 3.0, 3.2, 3.2]]
        {
            assert_eq!(annotated(&picture, &[(12, xyxy), (4_000_000_000, xyxy)]).dimensions(), (12, 9));
        }
        assert_eq!(annotated(&RgbImage::new(1, 1), &[(1, [0.0, 0.0, 1.0, 1.0])]).dimensions(), (1, 1));
    }

    #[test]
    fn only_formats_that_can_be_written() {
        for good in ["a.png", "b/c.JPG", "d.jpeg", "e.webp"] {
            assert!(check_path(Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["a", "a.gif", "a.txt", "png", ""] {
            assert!(check_path(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
