//! COCO's detection files, as records: every annotation is asked about.
//!
//! Format: <https://cocodataset.org/#format-data>, object detection.

use std::{collections::HashMap, hash::Hash, io::Read, path::Path, sync::Arc};

use gpt4roi::RegionId;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::DataError,
    outline::Outline,
    records::{
        Dialogue, DialogueRound, Entry, Gathering, Id, Picture, Place, RecordError, RecordOptions, StatedSize,
        question_about_region, read_json, written,
    },
};

/// What is asked about an annotation, unless the options say otherwise.
const QUESTION: &str = "What is <region1>?";

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<Annotation>,
    categories: Option<Vec<Category>>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: Id,
    file_name: String,
    #[serde(default)]
    width: Value,
    #[serde(default)]
    height: Value,
}

#[derive(Deserialize)]
struct Annotation {
    id: Id,
    image_id: Id,
    category_id: Option<Id>,
    /// x, y, width and height in pixels. Some programs leave it out, or empty, beside an outline.
    bbox: Option<Vec<f64>>,
    #[serde(default)]
    segmentation: Outline,
    caption: Option<String>,
    /// 1, or in some programs' files true, where the box is around a crowd and not around one thing.
    iscrowd: Option<Value>,
}

#[derive(Deserialize)]
struct Category {
    id: Id,
    name: String,
}

/// One dialogue for each annotation that is no crowd: the answer is its own `caption`, or else the name of its category;
/// without either it can only be asked about.
pub(crate) fn read(file: &Arc<Path>, reader: impl Read, options: &RecordOptions) -> Result<Vec<Picture>, DataError> {
    let question = question_about_region(options, QUESTION)?;
    let coco: Coco = read_json(file, reader)?;
    let images = by_id(file, "images", coco.images.into_iter().map(|image| image.with_stated_size(file)))?;
    let categories = coco.categories.into_iter().flatten().map(|category| (category.id, category.name));
    let names = by_id(file, "categories", categories)?;
    // By their text, by which predictions name them.
    by_id(file, "annotations", coco.annotations.iter().map(|annotation| (annotation.id.to_string(), ())))?;
    let mut gathering = Gathering::new(file, options);
    for annotation in coco.annotations.into_iter().filter(|annotation| !annotation.is_crowd()) {
        let id = annotation.id.to_string();
        let place = Place { file: file.clone(), entry: Entry::Annotation(id.clone()) };
        let refused = |error| place.clone().error(error);
        let (image, stated_size) = images.get(&annotation.image_id).ok_or_else(|| {
            let got = annotation.image_id.to_string();
            refused(RecordError::Dangling { field: "image_id", expected: "images", got })
        })?;
        let regions = vec![(RegionId(1), annotation.xyxy().map_err(refused)?)];
        let answers = annotation.answer(&names).map_err(refused)?.into_iter().collect();
        let rounds = vec![DialogueRound { question: question.clone(), choices: Vec::new(), answers, said: None }];
        gathering.add(image, Dialogue { id, place, regions, stated_size: stated_size.clone(), rounds });
    }
    Ok(gathering.finish())
}

/// Files that were put together of several may have an id twice, and then nobody knows which is meant.
fn by_id<I: ToString + Eq + Hash, T>(
    file: &Arc<Path>,
    of: &'static str,
    entries: impl Iterator<Item = (I, T)>,
) -> Result<HashMap<I, T>, DataError> {
    let mut all = HashMap::new();
    for (id, entry) in entries {
        let name = id.to_string();
        if all.insert(id, entry).is_some() {
            let entry = if of == "annotations" { Entry::Annotation(name) } else { Entry::Of(of, name) };
            return Err(Place { file: file.clone(), entry }.error(RecordError::RepeatedId { of }));
        }
    }
    Ok(all)
}

impl CocoImage {
    /// Its id, its name, and its size if that is stated.
    fn with_stated_size(self, file: &Arc<Path>) -> (Id, (String, Option<Arc<StatedSize>>)) {
        let place = Place { file: file.clone(), entry: Entry::Image(self.id.to_string()) };
        let stated_size = StatedSize::new(&place, &self.file_name, &self.width, &self.height);
        (self.id, (self.file_name, stated_size))
    }
}

impl Annotation {
    fn is_crowd(&self) -> bool {
        self.iscrowd.as_ref().is_some_and(|flag| flag == 1 || flag == true)
    }

    /// Its box, or else the one around its polygons.
    fn xyxy(&self) -> Result<[f64; 4], RecordError> {
        match (self.bbox.as_deref().unwrap_or_default(), self.segmentation) {
            (&[x, y, width, height], _) => Ok([x, y, x + width, y + height]),
            ([], Outline::Polygons(edges)) => Ok(edges),
            ([], Outline::Missing) => Err(RecordError::NoBox { got: "neither" }),
            ([], Outline::Other) => Err(RecordError::NoBox { got: "no box, and a segmentation of another kind" }),
            (numbers, _) => Err(RecordError::BoxLength { got: numbers.len() }),
        }
    }

    fn answer(&self, names: &HashMap<Id, String>) -> Result<Option<String>, RecordError> {
        match (written(self.caption.clone()), &self.category_id) {
            (Some(caption), _) => Ok(Some(caption)),
            (None, Some(id)) => match names.get(id) {
                Some(name) => Ok(written(Some(name.clone()))),
                None => {
                    let got = id.to_string();
                    Err(RecordError::Dangling { field: "category_id", expected: "categories", got })
                }
            },
            (None, None) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use gpt4roi::ImageSize;

    use super::*;
    use crate::Records;

    /// As labelling programs write it, with what is not needed here.
    const FILE: &str = r#"{
        "info": {"year": 2017}, "licenses": [],
        "images": [
            {"id": 9, "file_name": "cats/nine.jpg", "width": 640, "height": 480},
            {"id": 4, "file_name": "four.jpg", "width": 640, "height": 480},
            {"id": 5, "file_name": "nothing-in-it.jpg"}
        ],
        "annotations": [
            {"id": 100, "image_id": 4, "category_id": 18, "bbox": [10.5, 20, 100, 50], "area": 5000, "iscrowd": 0,
             "segmentation": [[10.5, 20, 110.5, 20, 110.5, 70]]},
            {"id": 101, "image_id": 9, "category_id": 17, "bbox": [0, 0, 5, 5], "caption": "A grey cat asleep."},
            {"id": 102, "image_id": 4, "category_id": 18, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"id": 103, "image_id": 4, "bbox": [1, 2, 3, 4]}
        ],
        "categories": [{"id": 17, "name": "cat", "supercategory": "animal"}, {"id": 18, "name": "dog"}]
    }"#;

    fn open(file: &str, options: &RecordOptions) -> Result<Records, DataError> {
        Records::from_bytes(Path::new("instances.json"), file.as_bytes(), options)
    }

    fn in_folder() -> RecordOptions {
        RecordOptions { images: Some(PathBuf::from("val2017")), ..RecordOptions::default() }
    }

    #[test]
    fn every_annotation_but_crowds_is_asked_about() {
        let records = open(FILE, &in_folder()).unwrap();
        let [four, nine] = records.pictures() else { panic!("{records:?}") };
        assert_eq!(nine.path, Path::new("val2017/cats/nine.jpg"));
        let of = |picture: &Picture| -> Vec<(String, [f64; 4], Vec<String>)> {
            let dialogues = picture.dialogues.iter();
            dialogues.map(|it| (it.id.clone(), it.regions[0].1, it.rounds[0].answers.clone())).collect()
        };
        let labelled = ("100".into(), [10.5, 20.0, 110.5, 70.0], vec!["dog".into()]);
        assert_eq!(of(four), [labelled, ("103".into(), [1.0, 2.0, 4.0, 6.0], vec![])]);
        assert_eq!(of(nine), [("101".into(), [0.0, 0.0, 5.0, 5.0], vec!["A grey cat asleep.".into()])]);
        assert_eq!(nine.dialogues[0].rounds[0].typed(), "What is <region1>?");
    }

    #[test]
    fn a_caption_that_nobody_has_written_is_none() {
        let records = open(&FILE.replace("A grey cat asleep.", " "), &in_folder()).unwrap();
        assert_eq!(records.pictures()[1].dialogues[0].rounds[0].answers, ["cat"]);
    }

    #[test]
    fn without_a_box_it_is_the_one_around_the_polygons() {
        let bare = r#""segmentation": [[30, 12.5, 10, 40, 20, 8], [50, 9, 60, 11, 55, 10]]"#;
        for boxes in [bare.to_owned(), format!(r#"{bare}, "bbox": []"#), format!(r#""bbox": null, {bare}"#)] {
            let records = open(&FILE.replace(r#""bbox": [1, 2, 3, 4]"#, &boxes), &in_folder()).unwrap();
            assert_eq!(records.pictures()[0].dialogues[1].regions, [(RegionId(1), [10.0, 8.0, 60.0, 40.0])]);
        }
        // A box that is there counts, whatever stands beside it.
        for segmentation in [r#"[[9, 9, 0, 0, 5]]"#, r#"{"counts": "PP`1"}"#, "[{}]", "\"\""] {
            let boxes = format!(r#""bbox": [1, 2, 3, 4], "segmentation": {segmentation}"#);
            let records = open(&FILE.replace(r#""bbox": [1, 2, 3, 4]"#, &boxes), &in_folder()).unwrap();
            assert_eq!(records.pictures()[0].dialogues[1].regions, [(RegionId(1), [1.0, 2.0, 4.0, 6.0])]);
        }
        // Nobody asks for that of a crowd.
        let crowd = FILE.replace(r#""bbox": [0, 0, 9, 9], "iscrowd": 1"#, r#""iscrowd": 1"#);
        assert_eq!(open(&crowd, &in_folder()).unwrap().len(), 2);
    }

    #[test]
    fn boxes_are_of_a_picture_of_the_stated_size() {
        let of_nine = |file: &str, width, height| {
            let records = open(file, &in_folder()).unwrap();
            records.pictures()[1].dialogues[0].boxes(ImageSize { width, height }).map(|boxes| boxes.len())
        };
        assert_eq!(of_nine(FILE, 640, 480).unwrap(), 1);
        let half = of_nine(FILE, 320, 240).unwrap_err().to_string();
        let expected =
            "instances.json, image 9: width and height: expected 320×240, the size of cats/nine.jpg, got 640×480";
        assert_eq!(half, expected);
        let turned = of_nine(FILE, 480, 640).unwrap_err().to_string();
        let expected = "instances.json, image 9: width and height: expected 480×640, the size of cats/nine.jpg, got 640×480, \
                        as of a picture that lies on its side: boxes have to be of the one that its EXIF data have turned";
        assert_eq!(turned, expected);
        let stated = r#""file_name": "cats/nine.jpg", "width": 640, "height": 480"#;
        assert!(FILE.contains(stated));
        for other in ["", r#", "width": 640"#, r#", "width": 0, "height": 0"#, r#", "width": null, "height": "480""#] {
            let file = FILE.replace(stated, &format!(r#""file_name": "cats/nine.jpg"{other}"#));
            assert_eq!(of_nine(&file, 320, 240).unwrap(), 1, "{other} states no size");
        }
        let as_floats = FILE.replace(stated, r#""file_name": "cats/nine.jpg", "width": 640.0, "height": 480.0"#);
        assert_eq!((of_nine(&as_floats, 640, 480).unwrap(), of_nine(&as_floats, 64, 48).is_err()), (1, true));
    }

    #[test]
    fn another_question_may_be_asked() {
        let asked = |question: &str| open(FILE, &RecordOptions { question: Some(question.into()), ..in_folder() });
        let records = asked("Describe region 1.").unwrap();
        assert_eq!(records.pictures()[0].dialogues[0].rounds[0].typed(), "Describe <region1>.");
        for question in ["What is it?", "Is <region2> like <region1>?", ""] {
            let expected = format!(
                "setting `question`: expected words that mention <region1> and no other region, got {question}"
            );
            assert_eq!(asked(question).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_file_of_one_line_is_the_same() {
        let line: String = FILE.lines().collect();
        assert_eq!(open(&line, &in_folder()).unwrap().len(), 2);
        // Fields in the order of the alphabet, as some programs write them.
        let sorted = serde_json::from_str::<Value>(FILE).unwrap().to_string();
        assert_eq!(open(&sorted, &in_folder()).unwrap().len(), 2);
    }

    #[test]
    fn what_refers_to_nothing_or_is_missing_is_named() {
        let error = |from: &str, to: &str| {
            assert!(FILE.contains(from));
            open(&FILE.replace(from, to), &in_folder()).unwrap_err().to_string()
        };
        let told = error(r#""image_id": 9"#, r#""image_id": 8"#);
        let expected = "instances.json, annotation 101: image_id: expected the id of one of the file's images, got 8";
        assert!(told.ends_with(expected), "{told}");
        let told = error(r#""category_id": 18, "bbox": [10.5"#, r#""category_id": "x", "bbox": [10.5"#);
        let expected = "annotation 100: category_id: expected the id of one of the file's categories, got x";
        assert!(told.ends_with(expected), "{told}");
        for (boxes, expected) in [
            (r#""bbox": [1, 2, 3]"#, "bbox: expected 4 numbers, x, y, width and height, got 3"),
            (r#""area": 12"#, "bbox: expected x, y, width and height, or polygons as `segmentation`, got neither"),
            (
                r#""bbox": null, "segmentation": []"#,
                "bbox: expected x, y, width and height, or polygons as `segmentation`, got neither",
            ),
            (
                r#""segmentation": {"counts": [272], "size": [2, 4]}"#,
                "bbox: expected x, y, width and height, or polygons as `segmentation`, got no box, and a segmentation of \
                 another kind",
            ),
        ] {
            let told = error(r#""bbox": [1, 2, 3, 4]"#, boxes);
            assert_eq!(told, format!("instances.json, annotation 103: {expected}"));
        }
        for (from, to, expected) in [
            (r#""id": 103"#, r#""id": "100""#, "annotation 100: id: expected one that no other of the file's"),
            (
                r#""id": 103"#,
                r#""id": 100"#,
                "annotation 100: id: expected one that no other of the file's annotations has",
            ),
            (
                r#""id": 4, "file"#,
                r#""id": 9, "file"#,
                "images 9: id: expected one that no other of the file's images has",
            ),
            (r#""id": 18, "name"#, r#""id": 17, "name"#, "categories 17: id: expected one that no other"),
        ] {
            let told = error(from, to);
            assert!(told.contains(expected), "{told}");
        }
        let told = error(r#""annotations""#, r#""annotation""#);
        assert!(told.contains("missing field `annotations`"), "{told}");
    }
}
