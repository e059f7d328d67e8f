//! Scenes as files, so that people and other programs can look at them.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
};

use gpt4roi::{convert::IfExists, prompt::Piece};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    error::DataError,
    questions::{Conversation, Questions},
    scenes::{SceneObject, Scenes},
};

/// The folder of the pictures, beside the annotations.
const IMAGES: &str = "images";

/// How many scenes were written, with how many objects and conversations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Pictures.
    pub scenes: usize,
    /// Annotations.
    pub objects: usize,
    /// Lines of `questions.jsonl`.
    pub conversations: usize,
}

/// What is left of a scene when its picture is written.
type Rendered = (Vec<SceneObject>, Vec<Conversation>);

/// Writes the scenes 0 to `count` into a folder, which is made if need be:
///
/// * `images/000000.png` …
/// * `annotations.json` in COCO's detection format: boxes are `[x, y, width, height]` in pixels,
///   category ids are the kinds' indices from 1. An annotation also has `visible`, the share of the
///   object that can be seen.
/// * `questions.jsonl`: a conversation per line, which [`Records::open`](crate::Records::open) reads; regions are
///   `<region1>` in its questions, with boxes `[x1, y1, x2, y2]` in pixels and the id of their annotation.
///
/// # Errors
/// If there are no scenes to write; if one of these files exists and is to stay, before anything is written; if
/// one can't be written.
pub fn write_scenes(
    dir: &Path,
    scenes: &Scenes,
    questions: &Questions,
    count: u64,
    if_exists: IfExists,
) -> Result<Written, DataError> {
    if count == 0 {
        return Err(DataError::Setting { setting: "count", expected: "at least 1".into(), got: "0".into() });
    }
    let images = dir.join(IMAGES);
    if if_exists == IfExists::Refuse {
        refuse_to_write_over(dir, &images, count)?;
    }
    fs::create_dir_all(&images).map_err(|source| DataError::File { path: images.clone(), source })?;
    let rendered: Vec<Rendered> = (0..count)
        .into_par_iter()
        .map(|index| {
            let scene = scenes.scene(index);
            let path = images.join(file_name(index));
            scene.image.save(&path).map_err(|source| DataError::Picture { path, source })?;
            let asked = questions.ask(&scene, &mut scenes.question_rng(index));
            Ok((scene.objects, asked))
        })
        .collect::<Result<_, DataError>>()?;
    write_file(&dir.join("annotations.json"), [annotations(scenes, &rendered)])?;
    write_file(&dir.join("questions.jsonl"), lines(scenes, &rendered))?;
    Ok(Written {
        scenes: rendered.len(),
        objects: rendered.iter().map(|(objects, _)| objects.len()).sum(),
        conversations: rendered.iter().map(|(_, asked)| asked.len()).sum(),
    })
}

/// People keep their own labels under the same names.
fn refuse_to_write_over(dir: &Path, images: &Path, count: u64) -> Result<(), DataError> {
    let lists = ["annotations.json", "questions.jsonl"].map(|name| dir.join(name));
    let mut written = lists.into_iter().chain((0..count).map(|index| images.join(file_name(index))));
    match written.find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(DataError::Exists { path }),
        None => Ok(()),
    }
}

fn file_name(index: u64) -> String {
    format!("{index:06}.png")
}

/// Writes values, one a line.
fn write_file(path: &Path, values: impl IntoIterator<Item = Value>) -> Result<(), DataError> {
    let write = || {
        let mut file = BufWriter::new(fs::File::create(path)?);
        for value in values {
            writeln!(file, "{value}")?;
        }
        file.flush()
    };
    write().map_err(|source| DataError::File { path: path.into(), source })
}

fn annotations(scenes: &Scenes, rendered: &[Rendered]) -> Value {
    let side = scenes.config().size;
    let images = (0..rendered.len() as u64)
        .map(|index| json!({"id": index + 1, "file_name": file_name(index), "width": side, "height": side}));
    let categories = scenes.kinds().iter().enumerate();
    let categories =
        categories.map(|(kind, facts)| json!({"id": kind + 1, "name": facts.name, "supercategory": facts.category}));
    let mut boxes: Vec<Value> = Vec::new();
    for (index, (objects, _)) in rendered.iter().enumerate() {
        for object in objects {
            let [x1, y1, x2, y2] = object.bbox.pixels(scenes.image_size());
            let (width, height) = (x2 - x1, y2 - y1);
            boxes.push(json!({
                "id": boxes.len() + 1,
                "image_id": index + 1,
                "category_id": object.kind + 1,
                "bbox": [x1, y1, width, height],
                "area": width * height,
                "iscrowd": 0,
                "visible": object.visible,
            }));
        }
    }
    json!({
        "info": {"description": "GPT4RoI scenes", "settings": scenes.config()},
        "images": images.collect::<Vec<_>>(),
        "categories": categories.collect::<Vec<_>>(),
        "annotations": boxes,
    })
}

fn lines(scenes: &Scenes, rendered: &[Rendered]) -> Vec<Value> {
    let mut lines = Vec::new();
    let mut annotations = 0;
    for (index, (objects, asked)) in rendered.iter().enumerate() {
        lines.extend(asked.iter().map(|conversation| line(scenes, index, annotations, conversation)));
        annotations += objects.len();
    }
    lines
}

/// One conversation; `annotations` is how many annotations the scenes before have.
fn line(scenes: &Scenes, index: usize, annotations: usize, conversation: &Conversation) -> Value {
    let words = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Region(id) => id.to_string(),
    };
    let rounds = conversation
        .rounds
        .iter()
        .map(|round| json!({"question": round.question.iter().map(words).collect::<String>(), "answer": round.answer}));
    let regions = conversation.regions.iter().map(|(id, bbox, object)| {
        json!({"id": id.0, "bbox": bbox.pixels(scenes.image_size()), "annotation_id": annotations + object + 1})
    });
    let mut line = json!({
        "image": format!("{IMAGES}/{}", file_name(index as u64)),
        "image_id": index + 1,
        "question_type": conversation.question_type,
        "regions": regions.collect::<Vec<_>>(),
        "rounds": rounds.collect::<Vec<_>>(),
    });
    if let Some(point) = conversation.point {
        line["point"] = json!([point.x * f64::from(scenes.config().size), point.y * f64::from(scenes.config().size)]);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dialogue, DialogueRound, QuestionMix, RecordOptions, Records, SceneConfig};

    #[test]
    fn files_agree_with_the_scenes() {
        let scenes =
            Scenes::new(SceneConfig { kinds: 12, seed: 5, ..SceneConfig::default() }).expect("settings are sound");
        let questions = Questions::new(QuestionMix::default(), scenes.kinds()).expect("settings are sound");
        let dir = tempfile::tempdir().expect("a folder");
        let written = write_scenes(dir.path(), &scenes, &questions, 3, IfExists::Refuse).expect("writes");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("was written");
        let coco: Value = serde_json::from_str(&read("annotations.json")).expect("JSON");
        let annotations = coco["annotations"].as_array().expect("a list");
        assert_eq!((written.scenes, written.objects), (3, annotations.len()));
        let scene = scenes.scene(0);
        let [x1, y1, x2, y2] = scene.objects[0].bbox.pixels(scene.size());
        assert_eq!(annotations[0]["bbox"], json!([x1, y1, x2 - x1, y2 - y1]));
        assert_eq!(annotations[0]["category_id"], json!(scene.objects[0].kind + 1));
        let picture = image::open(dir.path().join("images/000000.png")).expect("a picture");
        assert_eq!(picture.to_rgb8(), scene.image);
        let lines: Vec<Value> =
            read("questions.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), written.conversations);
        // Every region of a question is one of the boxes of its picture.
        for line in &lines {
            for region in line["regions"].as_array().expect("a list") {
                let id = region["annotation_id"].as_u64().expect("a number") as usize;
                assert_eq!(annotations[id - 1]["image_id"], line["image_id"]);
            }
        }
    }

    #[test]
    fn files_that_lie_there_stay_unless_they_are_to_be_replaced() {
        let scenes = Scenes::new(SceneConfig::default()).expect("settings are sound");
        let questions = Questions::new(QuestionMix::default(), scenes.kinds()).expect("settings are sound");
        for name in ["annotations.json", "questions.jsonl", "images/000000.png"] {
            let dir = tempfile::tempdir().expect("a folder");
            fs::create_dir(dir.path().join("images")).expect("a folder");
            fs::write(dir.path().join(name), "mine").expect("writes");
            let write = |count, if_exists| write_scenes(dir.path(), &scenes, &questions, count, if_exists);
            let error = write(1, IfExists::Refuse).expect_err("it would be written over").to_string();
            assert!(error.contains(name) && error.contains("exists already"), "{error}");
            assert_eq!(fs::read(dir.path().join(name)).expect("it is there"), b"mine");
            assert!(write(0, IfExists::Replace).is_err(), "no scenes are none to write");
            assert_eq!(write(1, IfExists::Replace).expect("writes").scenes, 1);
            assert_ne!(fs::read(dir.path().join(name)).expect("it is there"), b"mine");
        }
    }

    #[test]
    fn records_are_read_as_they_were_asked() {
        let scenes =
            Scenes::new(SceneConfig { kinds: 12, seed: 5, ..SceneConfig::default() }).expect("settings are sound");
        let questions = Questions::new(QuestionMix::default(), scenes.kinds()).expect("settings are sound");
        let dir = tempfile::tempdir().expect("a folder");
        write_scenes(dir.path(), &scenes, &questions, 3, IfExists::Refuse).expect("writes");
        let records = Records::open(&dir.path().join("questions.jsonl"), &RecordOptions::default()).expect("reads");
        assert_eq!(records.len(), 3);
        for (index, picture) in (0..).zip(records.pictures()) {
            let scene = scenes.scene(index);
            assert_eq!(*picture.open().expect("a picture").rgb(), scene.image);
            let asked = questions.ask(&scene, &mut scenes.question_rng(index));
            assert_eq!(picture.dialogues.len(), asked.len());
            picture.dialogues.iter().zip(&asked).for_each(|(read, asked)| is_the_same(read, asked, &scenes));
        }
    }

    fn is_the_same(read: &Dialogue, asked: &Conversation, scenes: &Scenes) {
        let boxes = read.boxes(scenes.image_size()).expect("inside the picture");
        assert_eq!(boxes.len(), asked.regions.len());
        for ((id, bbox), (expected, exact, _)) in boxes.iter().zip(&asked.regions) {
            assert_eq!(id, expected);
            assert!(bbox.iou(exact) > 1.0 - 1e-9, "{bbox:?} for {exact:?}");
        }
        assert_eq!(read.rounds.len(), asked.rounds.len());
        for (read, asked) in read.rounds.iter().zip(&asked.rounds) {
            let question = asked.question.clone();
            let asked_again = DialogueRound { question, choices: Vec::new(), answers: Vec::new(), said: None };
            assert_eq!(read.typed(), asked_again.typed());
            let mentions = |question: &[Piece]| -> Vec<Piece> {
                question.iter().filter(|piece| matches!(piece, Piece::Region(_))).cloned().collect()
            };
            assert_eq!(mentions(&read.question), mentions(&asked.question));
            assert_eq!(read.answers, asked.answer.clone().into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let scenes = Scenes::new(SceneConfig::default()).expect("settings are sound");
        let questions = Questions::new(QuestionMix::default(), scenes.kinds()).expect("settings are sound");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error =
            write_scenes(file.path(), &scenes, &questions, 1, IfExists::Refuse).expect_err("a file is no folder");
        assert!(error.to_string().contains("images"), "{error}");
    }
}
