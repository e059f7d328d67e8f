//! All-Seeing's files for region captioning, as records: every box is to be described.
//!
//! Format: `refcocog_{val,test}_coco_format.json` and `vg_test_coco_format.json` as
//! <https://github.com/OpenGVLab/all-seeing> reads them (`all-seeing/eval_caption.py`, `all-seeing/utils/collator.py`).
//! For every box there is an entry of `images`, whose box has edges, where COCO's have a corner and a size; its
//! captions are `annotations` without boxes, as pycocoevalcap wants them.

use std::{collections::HashMap, io::Read, path::Path, sync::Arc};

use gpt4roi::RegionId;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::DataError,
    records::{
        Dialogue, DialogueRound, Entry, Gathering, Id, Picture, Place, RecordError, RecordOptions, StatedSize,
        question_about_region, read_json, written,
    },
};

/// What is asked about a box, unless the options say otherwise.
const QUESTION: &str = "Describe <region1>.";

#[derive(Deserialize)]
struct AllSeeing {
    images: Vec<Boxed>,
    annotations: Vec<Caption>,
}

/// An entry of `images`.
#[derive(Deserialize)]
struct Boxed {
    id: Id,
    image: String,
    /// Left, top, right and bottom in pixels.
    bbox: [f64; 4],
    #[serde(default)]
    width: Value,
    #[serde(default)]
    height: Value,
}

#[derive(Deserialize)]
struct Caption {
    id: Id,
    image_id: Id,
    caption: String,
}

/// One dialogue for each box, with all its captions.
pub(crate) fn read(file: &Arc<Path>, reader: impl Read, options: &RecordOptions) -> Result<Vec<Picture>, DataError> {
    let question = question_about_region(options, QUESTION)?;
    let AllSeeing { images, annotations } = read_json(file, reader)?;
    let mut answers: HashMap<Id, Vec<String>> = images.iter().map(|image| (image.id.clone(), Vec::new())).collect();
    for Caption { id, image_id, caption } in annotations {
        let of_box = answers.get_mut(&image_id).ok_or_else(|| {
            let place = Place { file: file.clone(), entry: Entry::Annotation(id.to_string()) };
            place.error(RecordError::Dangling { field: "image_id", expected: "images", got: image_id.to_string() })
        })?;
        of_box.extend(written(Some(caption)));
    }
    let mut gathering = Gathering::new(file, options);
    for Boxed { id, image, bbox, width, height } in images {
        let answers = answers.get(&id).cloned().unwrap_or_default();
        let id = id.to_string();
        let place = Place { file: file.clone(), entry: Entry::Image(id.clone()) };
        let rounds = vec![DialogueRound { question: question.clone(), choices: Vec::new(), answers, said: None }];
        let (regions, stated_size) = (vec![(RegionId(1), bbox)], StatedSize::new(&place, &image, &width, &height));
        gathering.add(&image, Dialogue { id, place, regions, stated_size, rounds });
    }
    Ok(gathering.finish())
}

#[cfg(test)]
mod tests {
    use gpt4roi::ImageSize;

    use super::*;
    use crate::{Records, records::Form};

    const FILE: &str = r#"{"images": [
        {"id": 5, "image": "train2014/b.jpg", "bbox": [1.5, 2, 30, 40]},
        {"id": 6, "image": "train2014/a.jpg", "bbox": [0, 0, 9, 9]},
        {"id": 7, "image": "train2014/b.jpg", "bbox": [3, 4, 50, 60]}],
        "annotations": [
        {"id": 0, "image_id": 7, "caption": "a cat"}, {"id": 1, "image_id": 5, "caption": "the dog"},
        {"id": 2, "image_id": 5, "caption": "a dog on the left"}]}"#;

    fn open(file: &str) -> Result<Records, DataError> {
        let options = RecordOptions { images: Some("data".into()), ..RecordOptions::default() };
        Records::from_bytes(Path::new("refcocog.json"), file.as_bytes(), &options)
    }

    #[test]
    fn every_box_has_its_captions() {
        let records = open(FILE).unwrap();
        assert_eq!(records.form(), Form::AllSeeing);
        let [b, a] = records.pictures() else { panic!("{records:?}") };
        assert_eq!(b.path, Path::new("data/train2014/b.jpg"));
        let [dog, cat] = b.dialogues.as_slice() else { panic!("{b:?}") };
        assert_eq!((dog.id.as_str(), dog.place.to_string().as_str()), ("5", "refcocog.json, image 5"));
        assert_eq!(dog.regions, [(RegionId(1), [1.5, 2.0, 30.0, 40.0])]);
        assert_eq!(dog.rounds[0].typed(), "Describe <region1>.");
        assert_eq!(dog.rounds[0].answers, ["the dog", "a dog on the left"]);
        assert_eq!(cat.rounds[0].answers, ["a cat"]);
        assert_eq!(a.dialogues[0].rounds[0].answers.len(), 0);
        assert_eq!(dog.stated_size, None);
    }

    #[test]
    fn boxes_are_of_a_picture_of_the_stated_size() {
        let records = open(&FILE.replace(r#""id": 6,"#, r#""id": 6, "height": 30, "width": 40,"#)).unwrap();
        let boxes = |width, height| records.pictures()[1].dialogues[0].boxes(ImageSize { width, height });
        assert_eq!(boxes(40, 30).unwrap().len(), 1);
        assert!(
            boxes(80, 60).unwrap_err().to_string().starts_with("refcocog.json, image 6: width and height: expected")
        );
    }

    #[test]
    fn a_caption_of_no_box_is_named() {
        let error = open(&FILE.replace(r#""image_id": 7"#, r#""image_id": 8"#)).unwrap_err().to_string();
        let expected = "refcocog.json, annotation 0: image_id: expected the id of one of the file's images, got 8";
        assert_eq!(error, expected);
        let error = open(&FILE.replace("0, 0, 9, 9", "0, 0, 9")).unwrap_err().to_string();
        assert!(error.contains("refcocog.json, line 3: column "), "{error}");
    }
}
