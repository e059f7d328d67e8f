//! Visual Genome's region descriptions, as records: every region is to be described.
//!
//! Format: `region_descriptions.json` of <https://homes.cs.washington.edu/~ranjay/visualgenome/api.html>.

use std::{io::Read, path::Path, sync::Arc};

use gpt4roi::RegionId;
use serde::Deserialize;

use crate::{
    error::DataError,
    records::{
        Dialogue, DialogueRound, Entry, Gathering, Id, Picture, Place, RecordOptions, question_about_region, read_json,
        written,
    },
};

/// What is asked about a region, unless the options say otherwise.
const QUESTION: &str = "Describe <region1>.";

/// A picture.
#[derive(Deserialize)]
struct Described {
    regions: Vec<Region>,
}

/// A box in pixels with the words of an annotator.
#[derive(Deserialize)]
struct Region {
    region_id: Id,
    image_id: Id,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    phrase: String,
}

/// One dialogue for each region, about the picture `<image_id>.jpg`.
pub(crate) fn read(file: &Arc<Path>, reader: impl Read, options: &RecordOptions) -> Result<Vec<Picture>, DataError> {
    let question = question_about_region(options, QUESTION)?;
    let described: Vec<Described> = read_json(file, reader)?;
    let mut gathering = Gathering::new(file, options);
    for region in described.into_iter().flat_map(|picture| picture.regions) {
        let id = region.region_id.to_string();
        let place = Place { file: file.clone(), entry: Entry::Region(id.clone()) };
        let Region { x, y, width, height, phrase, .. } = region;
        let regions = vec![(RegionId(1), [x, y, x + width, y + height])];
        let (question, answers) = (question.clone(), written(Some(phrase)).into_iter().collect());
        let rounds = vec![DialogueRound { question, choices: Vec::new(), answers, said: None }];
        let dialogue = Dialogue { id, place, regions, stated_size: None, rounds };
        gathering.add(&format!("{}.jpg", region.image_id), dialogue);
    }
    Ok(gathering.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Records;

    const FILE: &str = r#"[
        {"id": 1, "regions": [
            {"region_id": 1382, "width": 82, "height": 139, "image_id": 1, "phrase": "the clock is green", "y": 57, "x": 421},
            {"region_id": 1383, "width": 182, "height": 39, "image_id": 1, "phrase": "a tall post", "y": 5, "x": 1}
        ]},
        {"id": 2, "regions": [
            {"region_id": 9, "width": 10, "height": 10, "image_id": 2, "phrase": "a red car", "y": 0, "x": 0}
        ]}
    ]"#;

    fn open(file: &str) -> Result<Records, DataError> {
        let options = RecordOptions { images: Some("VG_100K".into()), ..RecordOptions::default() };
        Records::from_bytes(Path::new("region_descriptions.json"), file.as_bytes(), &options)
    }

    #[test]
    fn every_region_is_described() {
        let records = open(FILE).unwrap();
        let [one, two] = records.pictures() else { panic!("{records:?}") };
        assert_eq!((one.path.as_path(), two.path.as_path()), (Path::new("VG_100K/1.jpg"), Path::new("VG_100K/2.jpg")));
        assert_eq!((one.dialogues.len(), two.dialogues.len()), (2, 1));
        let clock = &one.dialogues[0];
        assert_eq!((clock.id.as_str(), clock.regions[0].1), ("1382", [421.0, 57.0, 503.0, 196.0]));
        assert_eq!(clock.rounds[0].typed(), "Describe <region1>.");
        assert_eq!(clock.rounds[0].answers, ["the clock is green"]);
        assert_eq!(clock.place.to_string(), "region_descriptions.json, region 1382");
    }

    #[test]
    fn a_phrase_that_nobody_has_written_is_none() {
        let records = open(&FILE.replace("a tall post", " ")).unwrap();
        let answers = records.pictures()[0].dialogues.iter().map(|dialogue| dialogue.rounds[0].answers.len());
        assert_eq!(answers.collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn a_list_of_something_else_is_refused() {
        let error = open(&FILE.replace("\"phrase\"", "\"words\"")).unwrap_err().to_string();
        assert!(error.contains("line 3: column ") && error.contains("missing field `phrase`"), "{error}");
        let error = open(r#"[{"image": "a.png", "rounds": []}]"#).unwrap_err().to_string();
        assert!(error.contains("missing field `regions`"), "{error}");
    }
}
