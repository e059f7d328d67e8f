//! Predictions as captions of a COCO file's annotations, for programs that show or correct them.

use std::{collections::HashMap, ffi::OsString, fs, path::Path};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    byte_order_mark,
    predictions::{self, Prediction, Said},
};

/// Writes a COCO file again, with the prediction about an annotation as its `caption`, and how sure the model is as its
/// `caption_probability`. Everything else stays as it is.
pub(crate) fn write(coco: &Path, predictions: &Path, out: &Path) -> anyhow::Result<()> {
    let named = |path: &Path| path.display().to_string();
    let file = fs::read(coco).with_context(|| named(coco))?;
    let mut file: Value = serde_json::from_slice(byte_order_mark::without(&file)).with_context(|| named(coco))?;
    add(&mut file, &predictions::read(predictions)?);
    // What is there already is replaced by a whole file only: it may have been corrected by hand.
    let mut part = OsString::from(out);
    part.push(".part");
    fs::write(&part, format!("{file}\n")).and_then(|()| fs::rename(&part, out)).with_context(|| named(out))
}

fn add(coco: &mut Value, predictions: &[Prediction]) {
    let said: HashMap<&str, &Said> = predictions.iter().map(|line| (line.id.as_str(), &line.said)).collect();
    let annotations = coco.get_mut("annotations").and_then(Value::as_array_mut);
    for annotation in annotations.into_iter().flatten().filter_map(Value::as_object_mut) {
        let id = match annotation.get("id") {
            Some(Value::String(id)) => id.clone(),
            Some(id) => id.to_string(),
            None => continue,
        };
        if let Some(said) = said.get(id.as_str()) {
            annotation.insert("caption".into(), json!(said.prediction));
            annotation.insert("caption_probability".into(), json!(said.probability));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_join_the_annotations_that_were_asked_about() {
        let mut coco = json!({
            "info": {"year": 2017},
            "annotations": [
                {"id": 1, "bbox": [10.52, 2, 3, 4], "caption": "An old one."},
                {"id": "b", "bbox": [1, 2, 3, 4]},
                {"id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1},
            ],
        });
        let line = |id: &str, said: &str| {
            json!({
                "id": id, "round": 1, "image": "a.png", "regions": [], "question": "What?",
                "prediction": said, "probability": 0.5,
            })
        };
        let predictions = [line("1", "A cat."), line("b", "A dog.")].map(|it| serde_json::from_value(it).unwrap());
        add(&mut coco, &predictions);
        let expected = json!({
            "info": {"year": 2017},
            "annotations": [
                {"id": 1, "bbox": [10.52, 2, 3, 4], "caption": "A cat.", "caption_probability": 0.5},
                {"id": "b", "bbox": [1, 2, 3, 4], "caption": "A dog.", "caption_probability": 0.5},
                {"id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1},
            ],
        });
        assert_eq!(coco, expected);
    }
}
