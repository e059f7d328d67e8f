//! Which regions gain from a closer look, and how close it should be: names of all objects of rendered scenes, by size.
//!
//! ```console
//! cargo run --release -p gpt4roi-eval --example zoom_study -- SEED SCENES [MODEL KINDS]
//! ```
//!
//! For each way of looking there is a row, for each class of longer sides (pixels of 224) the share of right names.

#![expect(clippy::print_stdout, reason = "an example that prints a table")]

use std::error::Error;

use candle_core::Device;
use gpt4roi::{
    BBox, Chat, Gpt4Roi, Image,
    bbox::ImageSize,
    chat::AskOptions,
    zoom::{Glass, Zoom},
};
use gpt4roi_data::{AnswerKey, Scene, SceneConfig, Scenes, Split};
use gpt4roi_eval::metrics::Tally;
use image::imageops;
use rayon::prelude::*;

const EDGES: [f64; 9] = [24.0, 28.0, 32.0, 36.0, 44.0, 60.0, 90.0, 120.0, 224.0];
const CONTEXTS: [f64; 5] = [1.5, 2.0, 2.5, 3.0, 4.0];

type Row = [Tally; EDGES.len()];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (seed, count, kinds) =
        (number(0, 1)?, number(1, 100)?, number(3, SceneConfig::default().kinds as u64)? as usize);
    let model = match arguments.get(2) {
        Some(path) => Gpt4Roi::open(path, &Device::Cpu)?,
        None => Gpt4Roi::nano(&Device::Cpu)?,
    };
    let scenes = Scenes::new(SceneConfig { kinds, split: Split::Test, seed, ..SceneConfig::default() })?;
    let rows = (0..count).into_par_iter().map(|index| look(&model, &scenes, &scenes.scene(index)));
    let rows = rows.try_reduce(|| vec![Row::default(); 1 + 2 * CONTEXTS.len()], |a, b| Ok(add(a, b)))?;
    let ways = CONTEXTS.iter().flat_map(|context| ["region", "picture"].map(|what| format!("{what} {context}")));
    println!("{:<14}{}", "context", EDGES.map(|edge| format!("{:>12}", format!("<{edge}"))).concat());
    for (way, row) in std::iter::once("off".to_owned()).chain(ways).zip(rows) {
        let cell = |tally: Tally| {
            let share = tally.accuracy();
            format!("{:>6.1} {:<5}", 100.0 * share.accuracy, share.n)
        };
        println!("{way:<14}{}", row.map(cell).concat());
    }
    Ok(())
}

fn add(mut rows: Vec<Row>, more: Vec<Row>) -> Vec<Row> {
    rows.iter_mut().flatten().zip(more.iter().flatten()).for_each(|(tally, more)| tally.merge(*more));
    rows
}

fn look(model: &Gpt4Roi, scenes: &Scenes, scene: &Scene) -> gpt4roi::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let image = Image::from_rgb(scene.image.clone());
    rows.push(names(&mut Chat::new(model, &image)?, scenes, scene, Zoom::Off)?);
    for context in CONTEXTS {
        let glass = Glass { below: f64::INFINITY, context };
        rows.push(names(&mut Chat::new(model, &image)?, scenes, scene, Zoom::Auto(glass))?);
        rows.push(crops(model, scenes, scene, context)?);
    }
    Ok(rows)
}

fn names(chat: &mut Chat<'_>, scenes: &Scenes, scene: &Scene, zoom: Zoom) -> gpt4roi::Result<Row> {
    let mut row = Row::default();
    for object in &scene.objects {
        chat.clear();
        chat.add_region(object.bbox);
        let answer = chat.ask_with("What is <region1>?", &AskOptions { zoom, ..AskOptions::default() })?;
        let key = AnswerKey::Name(scenes.kinds()[object.kind].clone());
        row[class(&object.bbox)].add(key.accepts(&answer.text));
    }
    Ok(row)
}

/// The crop in place of the picture: its patches are what the language model sees.
fn crops(model: &Gpt4Roi, scenes: &Scenes, scene: &Scene, context: f64) -> gpt4roi::Result<Row> {
    let mut row = Row::default();
    let size = ImageSize { width: scene.image.width(), height: scene.image.height() };
    for object in &scene.objects {
        let [x1, y1, x2, y2] = object.bbox.pixels(size);
        let side = ((x2 - x1).max(y2 - y1) * context).min(f64::from(size.width)).ceil();
        let start = |low: f64, high: f64| ((low + high - side) / 2.0).clamp(0.0, f64::from(size.width) - side).floor();
        let (x, y) = (start(x1, x2), start(y1, y2));
        let crop = imageops::crop_imm(&scene.image, x as u32, y as u32, side as u32, side as u32).to_image();
        let bbox = [x1 - x, y1 - y, x2 - x, y2 - y].map(|edge| edge / side);
        let mut chat = Chat::new(model, &Image::from_rgb(crop))?;
        chat.add_region(BBox::from_normalized_clipped(bbox)?);
        let answer = chat.ask("What is <region1>?")?;
        let key = AnswerKey::Name(scenes.kinds()[object.kind].clone());
        row[class(&object.bbox)].add(key.accepts(&answer.text));
    }
    Ok(row)
}

fn class(bbox: &BBox) -> usize {
    let [x1, y1, x2, y2] = bbox.normalized();
    let side = 224.0 * (x2 - x1).max(y2 - y1);
    EDGES.iter().position(|edge| side < *edge).unwrap_or(EDGES.len() - 1)
}
