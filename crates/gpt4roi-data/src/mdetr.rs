//! MDETR's files of RefCOCO, RefCOCO+, RefCOCOg and Flickr30k Entities, as records: every box is to be described, and
//! all that was said of it is right.
//!
//! Format: `finetune_refcoco*_{train,val,…}.json` and `final_flickr_*GT_*.json` as <https://github.com/ashkamath/mdetr>
//! writes them (`scripts/fine-tuning/refexp_coco_format.py`, `scripts/pre-training/flickr_combined.py`). It is COCO's,
//! but for every sentence there is an entry of `images`, with the sentence as its `caption`. A picture with five
//! sentences has five entries of one `file_name`. The sentence is about its one box, or, in Flickr30k Entities, its
//! parts at `tokens_positive` are about boxes.

use std::{collections::HashMap, io::Read, path::Path, sync::Arc};

use gpt4roi::RegionId;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::DataError,
    records::{
        Dialogue, DialogueRound, Entry, Gathering, Id, Picture, Place, RecordError, RecordOptions, StatedSize,
        question_about_region, read_json,
    },
};

/// What is asked about a box, unless the options say otherwise.
const QUESTION: &str = "Describe <region1>.";

#[derive(Deserialize)]
struct Mdetr {
    images: Vec<Sentence>,
    annotations: Vec<Annotation>,
}

/// An entry of `images`.
#[derive(Deserialize)]
struct Sentence {
    id: Id,
    file_name: String,
    caption: String,
    dataset_name: String,
    #[serde(default)]
    width: Value,
    #[serde(default)]
    height: Value,
}

#[derive(Deserialize)]
struct Annotation {
    id: Id,
    image_id: Id,
    /// x, y, width and height in pixels.
    bbox: [f64; 4],
    /// Beginnings and ends of parts of the sentence, in characters from 0.
    #[serde(default)]
    tokens_positive: Vec<[usize; 2]>,
}

/// One dialogue for each box of each picture, with the id of its first annotation.
pub(crate) fn read(file: &Arc<Path>, reader: impl Read, options: &RecordOptions) -> Result<Vec<Picture>, DataError> {
    let question = question_about_region(options, QUESTION)?;
    let mdetr: Mdetr = read_json(file, reader)?;
    let sentences: HashMap<Id, Sentence> = mdetr.images.into_iter().map(|it| (it.id.clone(), it)).collect();
    // Each box with its picture, and where it stands among them.
    let (mut boxes, mut known) = (Vec::<(&str, Dialogue)>::new(), HashMap::new());
    for annotation in mdetr.annotations {
        let id = annotation.id.to_string();
        let place = Place { file: file.clone(), entry: Entry::Annotation(id.clone()) };
        let sentence = sentences.get(&annotation.image_id).ok_or_else(|| {
            let got = annotation.image_id.to_string();
            place.clone().error(RecordError::Dangling { field: "image_id", expected: "images", got })
        })?;
        let said = said(sentence, &annotation.tokens_positive).map_err(|error| place.clone().error(error))?;
        let at = *known.entry((&*sentence.file_name, annotation.bbox.map(f64::to_bits))).or_insert(boxes.len());
        if at == boxes.len() {
            let regions = vec![(RegionId(1), xyxy(annotation.bbox))];
            let question = question.clone();
            let rounds = vec![DialogueRound { question, choices: Vec::new(), answers: Vec::new(), said: None }];
            let dialogue = Dialogue { id, place, regions, stated_size: sentence.stated_size(file), rounds };
            boxes.push((&sentence.file_name, dialogue));
        }
        for round in &mut boxes[at].1.rounds {
            let is_new = |said: &&String| !said.is_empty() && !round.answers.contains(said);
            let new = said.iter().filter(is_new).cloned().collect::<Vec<_>>();
            round.answers.extend(new);
        }
    }
    let mut gathering = Gathering::new(file, options);
    boxes.into_iter().for_each(|(image, dialogue)| gathering.add(image, dialogue));
    Ok(gathering.finish())
}

fn xyxy([x, y, width, height]: [f64; 4]) -> [f64; 4] {
    [x, y, x + width, y + height]
}

impl Sentence {
    fn stated_size(&self, file: &Arc<Path>) -> Option<Arc<StatedSize>> {
        let place = Place { file: file.clone(), entry: Entry::Image(self.id.to_string()) };
        StatedSize::new(&place, &self.file_name, &self.width, &self.height)
    }
}

/// What is said of a box: a referring expression as a whole, of which `tokens_positive` are no more than the nouns, or
/// each phrase that means the box.
fn said(sentence: &Sentence, spans: &[[usize; 2]]) -> Result<Vec<String>, RecordError> {
    match sentence.dataset_name.as_str() {
        "refcoco" | "refcoco+" | "refcocog" => Ok(vec![sentence.caption.trim().to_owned()]),
        "flickr" => spans.iter().map(|&span| phrase(&sentence.caption, span)).collect(),
        other => Err(RecordError::UnknownDataset { got: other.into() }),
    }
}

fn phrase(caption: &str, span: [usize; 2]) -> Result<String, RecordError> {
    let [begin, end] = span;
    let characters = caption.chars().count();
    if begin >= end || end > characters {
        return Err(RecordError::Span { span, characters });
    }
    Ok(caption.chars().skip(begin).take(end - begin).collect::<String>().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use gpt4roi::ImageSize;

    use super::*;
    use crate::{Records, records::Form};

    const REFCOCO: &str = r#"{"info": {}, "licenses": [], "images": [
        {"file_name": "COCO_train2014_000000000009.jpg", "height": 480, "width": 640, "id": 0, "original_id": 9,
         "caption": "the left bowl", "dataset_name": "refcocog", "tokens_negative": [[0, 13]]},
        {"file_name": "COCO_train2014_000000000025.jpg", "height": 480, "width": 640, "id": 1, "original_id": 25,
         "caption": "giraffe ", "dataset_name": "refcocog", "tokens_negative": []},
        {"file_name": "COCO_train2014_000000000009.jpg", "height": 480, "width": 640, "id": 2, "original_id": 9,
         "caption": "a bowl of broccoli", "dataset_name": "refcocog", "tokens_negative": []},
        {"file_name": "COCO_train2014_000000000009.jpg", "height": 480, "width": 640, "id": 3, "original_id": 9,
         "caption": "the left bowl", "dataset_name": "refcocog", "tokens_negative": []},
        {"file_name": "COCO_train2014_000000000009.jpg", "height": 480, "width": 640, "id": 4, "original_id": 9,
         "caption": "right", "dataset_name": "refcocog", "tokens_negative": []}],
        "annotations": [
        {"area": 9.5, "iscrowd": 0, "image_id": 0, "category_id": 51, "id": 10, "bbox": [1.5, 2, 30, 40],
         "original_id": 77, "tokens_positive": [[9, 13]]},
        {"area": 9.5, "iscrowd": 0, "image_id": 1, "category_id": 25, "id": 11, "bbox": [1.5, 2, 30, 40],
         "original_id": 78, "tokens_positive": [[0, 7]]},
        {"area": 9.5, "iscrowd": 0, "image_id": 2, "category_id": 51, "id": 12, "bbox": [1.5, 2, 30, 40],
         "original_id": 77, "tokens_positive": [[2, 6]]},
        {"area": 9.5, "iscrowd": 0, "image_id": 3, "category_id": 51, "id": 13, "bbox": [1.5, 2, 30, 40],
         "original_id": 77, "tokens_positive": [[9, 13]]},
        {"area": 9.5, "iscrowd": 0, "image_id": 4, "category_id": 51, "id": 14, "bbox": [60, 2, 30, 40],
         "original_id": 79, "tokens_positive": []}],
        "categories": [{"id": 51, "name": "bowl", "supercategory": "kitchen"}]}"#;

    const FLICKR: &str = r#"{"info": [], "licenses": [], "images": [
        {"file_name": "36979.jpg", "height": "334", "width": "500", "id": 0, "caption": "A café owner and his dog wait .",
         "dataset_name": "flickr", "tokens_negative": [[0, 31]], "sentence_id": 0, "original_img_id": 36979,
         "tokens_positive_eval": [[[0, 12]], [[17, 24]]]},
        {"file_name": "36979.jpg", "height": "334", "width": "500", "id": 1, "caption": "Man with dog .",
         "dataset_name": "flickr", "tokens_negative": [[0, 14]], "sentence_id": 1, "original_img_id": 36979,
         "tokens_positive_eval": [[[0, 3]], [[9, 12]]]}],
        "annotations": [
        {"area": 4, "iscrowd": 0, "image_id": 0, "category_id": 1, "id": 0, "bbox": [1, 2, 3, 4],
         "tokens_positive": [[0, 12], [17, 20]]},
        {"area": 4, "iscrowd": 0, "image_id": 0, "category_id": 1, "id": 1, "bbox": [5, 6, 7, 8],
         "tokens_positive": [[17, 24]]},
        {"area": 4, "iscrowd": 0, "image_id": 1, "category_id": 1, "id": 2, "bbox": [1, 2, 3, 4],
         "tokens_positive": [[0, 3]]}],
        "categories": [{"supercategory": "object", "id": 1, "name": "object"}]}"#;

    fn open(file: &str) -> Result<Records, DataError> {
        let options = RecordOptions { images: Some("pictures".into()), ..RecordOptions::default() };
        Records::from_bytes(Path::new("mdetr.json"), file.as_bytes(), &options)
    }

    fn described(records: &Records) -> Vec<(&str, &str, [f64; 4], Vec<&str>)> {
        let dialogues =
            records.pictures().iter().flat_map(|it| it.dialogues.iter().map(move |dialogue| (it, dialogue)));
        let described = dialogues.map(|(picture, dialogue)| {
            let answers = dialogue.rounds[0].answers.iter().map(String::as_str).collect();
            (picture.name.as_str(), dialogue.id.as_str(), dialogue.regions[0].1, answers)
        });
        described.collect()
    }

    #[test]
    fn all_expressions_of_a_box_are_right() {
        let records = open(REFCOCO).unwrap();
        assert_eq!(records.form(), Form::Mdetr);
        let [bowls, giraffe] = ["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"];
        let expected = [
            (bowls, "10", [1.5, 2.0, 31.5, 42.0], vec!["the left bowl", "a bowl of broccoli"]),
            (bowls, "14", [60.0, 2.0, 90.0, 42.0], vec!["right"]),
            (giraffe, "11", [1.5, 2.0, 31.5, 42.0], vec!["giraffe"]),
        ];
        assert_eq!(described(&records), expected);
        assert_eq!(records.pictures()[0].path, Path::new("pictures/COCO_train2014_000000000009.jpg"));
        assert_eq!(records.pictures()[0].dialogues[0].rounds[0].typed(), "Describe <region1>.");
    }

    #[test]
    fn phrases_of_all_sentences_are_right() {
        let records = open(FLICKR).unwrap();
        let expected = [
            ("36979.jpg", "0", [1.0, 2.0, 4.0, 6.0], vec!["A café owner", "his", "Man"]),
            ("36979.jpg", "1", [5.0, 6.0, 12.0, 14.0], vec!["his dog"]),
        ];
        assert_eq!(described(&records), expected);
    }

    #[test]
    fn boxes_are_of_a_picture_of_the_stated_size() {
        let records = open(FLICKR).unwrap();
        let boxes = |width, height| records.pictures()[0].dialogues[1].boxes(ImageSize { width, height });
        assert_eq!(boxes(500, 334).unwrap().len(), 1);
        let error = boxes(1000, 668).unwrap_err().to_string();
        let expected = "mdetr.json, image 0: width and height: expected 1000×668, the size of 36979.jpg, got 500×334";
        assert_eq!(error, expected);
    }

    #[test]
    fn fields_may_stand_in_any_order() {
        let sorted = serde_json::from_str::<serde_json::Value>(REFCOCO).unwrap().to_string();
        assert!(sorted.starts_with(r#"{"annotations""#));
        assert_eq!(open(&sorted).unwrap().form(), Form::Mdetr);
        let empty = r#"{"categories": [], "images": [], "annotations": []}"#;
        assert_eq!(open(empty).unwrap().form(), Form::Coco, "nothing tells what it is");
    }

    #[test]
    fn what_is_not_as_described_is_named() {
        let error = |file: &str, from: &str, to: &str| {
            assert!(file.contains(from));
            open(&file.replace(from, to)).unwrap_err().to_string()
        };
        let told = error(FLICKR, "[[0, 3]]}],", "[[0, 15]]}],");
        assert_eq!(
            told,
            "mdetr.json, annotation 2: tokens_positive: expected characters 0 to 14, the caption's, got [0, 15]"
        );
        let told = error(FLICKR, r#""image_id": 1"#, r#""image_id": 5"#);
        assert_eq!(told, "mdetr.json, annotation 2: image_id: expected the id of one of the file's images, got 5");
        let told = error(FLICKR, r#""dataset_name": "flickr""#, r#""dataset_name": "mixed""#);
        assert_eq!(
            told,
            "mdetr.json, annotation 0: dataset_name: expected refcoco, refcoco+, refcocog or flickr, got mixed"
        );
        let told = error(FLICKR, r#""caption": "Man"#, r#""captions": "Man"#);
        assert!(told.contains("missing field `caption`"), "{told}");
    }
}
