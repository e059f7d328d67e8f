//! Lessons from people's own pictures.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use gpt4roi::{
    BBox, Config, ImageSize, RegionId,
    mention::{self, Part},
    prompt::{Piece, Round},
    tokenizer::Tokenizer,
};
use gpt4roi_data::{
    DataError, Packed, Transcript, pack,
    records::{Dialogue, Picture, RecordOptions, Records},
};
use rand::seq::index::sample;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Result, TrainError},
    init::mix,
    lesson::{Counted, Lesson, Lessons},
    trainer::first_picture,
};

/// Files with conversations about pictures, in any of the forms that [`Records::open`] knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordsConfig {
    /// The files, relative to the working directory. A picture that is in several of them is one picture.
    pub files: Vec<PathBuf>,
    /// The folder of the pictures, if it is not each file's own.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// What is asked about every region of files that have labels and no questions.
    #[serde(default)]
    pub question: Option<String>,
    /// Which split is learned, of files that have several.
    #[serde(default)]
    pub split: Option<String>,
    /// So many conversations about one picture are learned at once; of more, others are drawn each time.
    #[serde(default = "dialogues_per_picture")]
    pub dialogues_per_picture: usize,
}

fn dialogues_per_picture() -> usize {
    20
}

/// Every picture about which there is an answer, once per epoch, each time in another order.
pub struct RecordLessons {
    pictures: Vec<Picture>,
    /// Whether any question is about a region.
    about_regions: bool,
    dialogues_per_picture: usize,
    tokenizer: Arc<Tokenizer>,
    seed: u64,
    patches: usize,
    region_tokens: usize,
    max_positions: usize,
    point_reach: Option<f64>,
}

impl RecordLessons {
    /// Reads the files; pictures are opened when it is their turn.
    ///
    /// # Errors
    /// If a file can't be read or holds what is no record, or if there is no answer in any of them.
    pub fn open(files: &RecordsConfig, config: &Config, tokenizer: Arc<Tokenizer>, seed: u64) -> Result<Self> {
        let pictures = learnable(pictures(files)?);
        if pictures.is_empty() {
            return Err(TrainError::Data(format!("no answer in any of {:?}: nothing to learn", files.files)));
        }
        let dialogues = || pictures.iter().flat_map(|picture| &picture.dialogues);
        Ok(Self {
            about_regions: dialogues().any(is_about_regions),
            dialogues_per_picture: files.dialogues_per_picture,
            tokenizer,
            seed,
            patches: config.vision.patches(),
            region_tokens: config.region.tokens,
            max_positions: config.llama.max_position_embeddings,
            point_reach: config.region.point_reach,
            pictures,
        })
    }

    /// How many pictures there are to learn from.
    pub fn pictures(&self) -> usize {
        self.pictures.len()
    }

    /// The picture of an index: a permutation of all of them per epoch, which needs no memory of what was before.
    fn picture(&self, index: u64) -> &Picture {
        let (at, count) = (index.wrapping_sub(first_picture(self.seed)), self.pictures.len() as u64);
        &self.pictures[shuffled(at % count, count, mix(self.seed, at / count)) as usize]
    }

    fn pack(&self, dialogues: &[&Dialogue], size: ImageSize) -> Result<Packed> {
        let transcripts = dialogues.iter().map(|dialogue| self.transcript(dialogue, size));
        let transcripts = transcripts.collect::<Result<Vec<_>>>()?;
        let packed = pack(&transcripts, &self.tokenizer, self.patches, self.region_tokens);
        let packed = packed.map_err(|error| match error {
            DataError::Prompt { index, source } => refusal(dialogues[index], &source.to_string()),
            error => TrainError::Data(error.to_string()),
        })?;
        for (dialogue, branch) in dialogues.iter().zip(&packed.branches) {
            let tokens = packed.prefix() + branch.len();
            if tokens > self.max_positions {
                let message = format!("{tokens} tokens, expected at most {}, the model's", self.max_positions);
                return Err(refusal(dialogue, &message));
            }
        }
        Ok(packed)
    }

    /// The rounds up to the first that nobody has answered. Coordinates in a question become regions, as they do
    /// wherever a question is asked.
    fn transcript(&self, dialogue: &Dialogue, size: ImageSize) -> Result<Transcript> {
        let mut transcript = Transcript { rounds: Vec::new(), boxes: dialogue.boxes(size).map_err(data)? };
        for round in &dialogue.rounds {
            let Some(answer) = round.answers.first() else { break };
            let question = self.question(&round.typed(), size, &mut transcript.boxes);
            let question = question.map_err(|message| refusal(dialogue, &message))?;
            transcript.rounds.push(Round { question, answer: Some(answer.clone()) });
        }
        Ok(transcript)
    }

    fn question(
        &self,
        typed: &str,
        size: ImageSize,
        boxes: &mut Vec<(RegionId, BBox)>,
    ) -> std::result::Result<Vec<Piece>, String> {
        let declared: Vec<RegionId> = boxes.iter().map(|(id, _)| *id).collect();
        let parts = mention::parse(typed, &declared, size).map_err(|error| error.to_string())?;
        let mut piece = |part| {
            let bbox = match part {
                Part::Text(text) => return Ok(Piece::Text(text)),
                Part::Mention(id) => return Ok(Piece::Region(id)),
                Part::Box(bbox) => bbox,
                Part::Point(point) => {
                    let reach =
                        self.point_reach.ok_or("a point, of which this model learns nothing; expected a box")?;
                    let edges = [point.x - reach, point.y - reach, point.x + reach, point.y + reach];
                    BBox::from_normalized_clipped(edges).map_err(|error| error.to_string())?
                }
            };
            let id = lowest_free(boxes);
            boxes.push((id, bbox));
            Ok(Piece::Region(id))
        };
        parts.into_iter().map(&mut piece).collect()
    }
}

impl std::fmt::Debug for RecordLessons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordLessons").field("pictures", &self.pictures.len()).finish_non_exhaustive()
    }
}

impl Lessons for RecordLessons {
    fn lesson(&self, index: u64) -> Result<Option<Lesson>> {
        let (picture, mut rng) = (self.picture(index), ChaCha8Rng::seed_from_u64(mix(self.seed, index)));
        let image = picture.open().map_err(data)?;
        let dialogues = some(&picture.dialogues, self.dialogues_per_picture, &mut rng);
        let packed = self.pack(&dialogues, image.size())?;
        let counted = vec![Counted::Answers; dialogues.len()];
        let whole = !self.about_regions || !packed.boxes.is_empty();
        Ok(Some(Lesson { image, packed, counted, kinds: Vec::new(), whole, rng }))
    }
}

/// The pictures of all files, each once.
fn pictures(files: &RecordsConfig) -> Result<Vec<Picture>> {
    let (images, question, split) = (files.images.clone(), files.question.clone(), files.split.clone());
    let options = RecordOptions { images, question, split };
    let (mut pictures, mut known) = (Vec::<Picture>::new(), HashMap::new());
    for file in &files.files {
        for picture in Records::open(file, &options).map_err(data)?.pictures() {
            let at = *known.entry(picture.path.clone()).or_insert(pictures.len());
            match pictures.get_mut(at) {
                Some(same) => same.dialogues.extend_from_slice(&picture.dialogues),
                None => pictures.push(picture.clone()),
            }
        }
    }
    Ok(pictures)
}

/// What has an answer to begin with.
fn learnable(mut pictures: Vec<Picture>) -> Vec<Picture> {
    let answered = |dialogue: &Dialogue| dialogue.rounds.first().is_some_and(|round| !round.answers.is_empty());
    pictures.iter_mut().for_each(|picture| picture.dialogues.retain(answered));
    pictures.retain(|picture| !picture.dialogues.is_empty());
    pictures
}

fn is_about_regions(dialogue: &Dialogue) -> bool {
    !dialogue.regions.is_empty() || dialogue.rounds.iter().any(|round| has_coordinates(&round.typed()))
}

/// Whether a question without mentions has coordinates in it. Where they lie depends on the picture; that they are
/// coordinates does not, and those that lie outside of it are an error.
fn has_coordinates(typed: &str) -> bool {
    let smallest = ImageSize { width: 1, height: 1 };
    let is_place = |part: &Part| matches!(part, Part::Box(_) | Part::Point(_));
    mention::parse(typed, &[], smallest).map_or(true, |parts| parts.iter().any(is_place))
}

/// At most so many, in their order.
fn some<'a>(dialogues: &'a [Dialogue], most: usize, rng: &mut ChaCha8Rng) -> Vec<&'a Dialogue> {
    let mut chosen = sample(rng, dialogues.len(), most.min(dialogues.len())).into_vec();
    chosen.sort_unstable();
    chosen.into_iter().map(|at| &dialogues[at]).collect()
}

/// Where `at` comes in a permutation of 0 to `count` that `key` decides: a Feistel network over the next power of
/// four, walked until it is back below `count`.
fn shuffled(at: u64, count: u64, key: u64) -> u64 {
    const ROUNDS: u64 = 4;
    let half = (u64::BITS - count.saturating_sub(1).leading_zeros()).div_ceil(2);
    let mask = (1 << half) - 1;
    let permute = |at: u64| {
        let halves = (at >> half, at & mask);
        let (left, right) = (0..ROUNDS)
            .fold(halves, |(left, right), round| (right, left ^ (mix(key.wrapping_add(round), right) & mask)));
        left << half | right
    };
    let mut at = permute(at);
    while at >= count {
        at = permute(at);
    }
    at
}

/// As coordinates are numbered on the command line.
fn lowest_free(boxes: &[(RegionId, BBox)]) -> RegionId {
    let taken = |id: &u32| boxes.iter().any(|(other, _)| other.0 == *id);
    RegionId((1..).find(|id| !taken(id)).unwrap_or(u32::MAX))
}

fn refusal(dialogue: &Dialogue, message: &str) -> TrainError {
    TrainError::Data(format!("{}: {message}", dialogue.place))
}

fn data(error: DataError) -> TrainError {
    TrainError::Data(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use serde_json::{Value, json};

    use super::*;
    use crate::tiny;

    /// A folder with some small pictures and files of these lines.
    fn folder(files: &[&[Value]]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            tiny::picture(28).rgb().save(folder.path().join(name)).unwrap();
        }
        let write = |(number, lines): (usize, &&[Value])| {
            let path = folder.path().join(format!("{number}.jsonl"));
            std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
            path
        };
        let paths = files.iter().enumerate().map(write).collect();
        (folder, paths)
    }

    fn lessons(files: &[PathBuf], most: usize) -> Result<RecordLessons> {
        let files = RecordsConfig {
            files: files.to_vec(),
            images: None,
            question: None,
            split: None,
            dialogues_per_picture: most,
        };
        let tokenizer = Arc::new(tiny::tokenizer());
        RecordLessons::open(&files, &tiny::config(tokenizer.vocab_size()), tokenizer, 3)
    }

    fn said(image: &str, question: &str, answer: &str) -> Value {
        json!({"image": image, "rounds": [{"question": question, "answer": answer}]})
    }

    fn error_of(line: Value) -> String {
        let (_folder, files) = folder(&[&[line]]);
        let lessons = lessons(&files, 20).unwrap();
        lessons.lesson(first_picture(3)).unwrap_err().to_string()
    }

    #[test]
    fn every_epoch_is_a_permutation_and_another_one() {
        for count in 1..40 {
            let order = |key| (0..count).map(|at| shuffled(at, count, key)).collect::<Vec<_>>();
            assert_eq!(order(5).into_iter().collect::<BTreeSet<_>>(), (0..count).collect(), "of {count}");
            assert!(count < 8 || order(5) != order(6), "of {count}");
        }
    }

    #[test]
    fn each_picture_goes_by_once_per_epoch() {
        let lines = ["a.png", "b.png", "c.png"].map(|name| said(name, "What is it?", "A cat."));
        let (_folder, files) = folder(&[&lines]);
        let lessons = lessons(&files, 20).unwrap();
        let name = |at| lessons.picture(first_picture(3) + at).name.clone();
        for epoch in 0..4 {
            let names: BTreeSet<String> = (3 * epoch..3 * epoch + 3).map(name).collect();
            assert_eq!(names.len(), 3);
        }
    }

    #[test]
    fn files_share_their_pictures_and_only_answers_are_learned() {
        let first =
            [said("a.png", "What is it?", "A cat."), json!({"image": "b.png", "rounds": [{"question": "Hm?"}]})];
        let round = |question: &str, answer: Value| json!({"question": question, "answer": answer});
        let rounds = [round("Is it a cat?", json!("Yes.")), round("Why?", Value::Null), round("So?", json!("Well."))];
        let second = [json!({"image": "a.png", "rounds": rounds})];
        let (_folder, files) = folder(&[&first, &second]);
        let lessons = lessons(&files, 20).unwrap();
        assert_eq!(lessons.pictures(), 1, "nobody has answered what is asked about b");
        let lesson = lessons.lesson(first_picture(3)).unwrap().unwrap();
        assert_eq!(lesson.packed.branches.len(), 2);
        assert_eq!(lesson.packed.answers.len(), 2, "the second conversation ends where the answers do");
        assert!(lesson.whole, "no question of any picture is about a region");
        let error = RecordLessons::open(
            &RecordsConfig { files: Vec::new(), images: None, question: None, split: None, dialogues_per_picture: 1 },
            &tiny::config(8),
            Arc::new(tiny::tokenizer()),
            1,
        );
        assert!(error.unwrap_err().to_string().contains("nothing to learn"));
    }

    #[test]
    fn of_many_conversations_others_are_learned_each_time() {
        let lines: Vec<Value> = (0..9).map(|number| said("a.png", &format!("Is it {number}?"), "No.")).collect();
        let (_folder, files) = folder(&[&lines]);
        let lessons = lessons(&files, 3).unwrap();
        let ids = |at| lessons.lesson(first_picture(3) + at).unwrap().unwrap().packed.ids;
        assert_eq!(lessons.lesson(first_picture(3)).unwrap().unwrap().packed.branches.len(), 3);
        assert_eq!(ids(0), ids(0));
        assert!((1..5).any(|at| ids(at) != ids(0)), "always the same three of nine");
    }

    #[test]
    fn coordinates_in_a_question_are_regions() {
        let region = json!([{"id": 1, "bbox": [0, 0, 14, 28]}]);
        let rounds = json!([{"question": "Is <region1> left of [0.5, 0.0, 1.0, 0.5]?", "answer": "Yes."}]);
        let line = json!({"image": "a.png", "regions": region, "rounds": rounds});
        let (_folder, files) = folder(&[&[line, said("b.png", "What is it?", "A cat.")]]);
        let lessons = lessons(&files, 20).unwrap();
        for at in 0..2 {
            let index = first_picture(3) + at;
            let lesson = lessons.lesson(index).unwrap().unwrap();
            if lessons.picture(index).name == "b.png" {
                assert!(lesson.packed.boxes.is_empty() && !lesson.whole, "other pictures have regions");
            } else {
                let expected = [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5]];
                assert_eq!(lesson.packed.boxes, expected.map(|xyxy| BBox::from_normalized(xyxy).unwrap()));
                assert!(lesson.whole);
            }
        }
    }

    #[test]
    fn coordinates_alone_tell_pictures_with_regions_from_others() {
        for (question, expected) in [
            ("What is in [0.1, 0.2, 0.6, 0.9]?", true),
            ("What is in [10, 20, 60, 90]?", true),
            ("What is at (0.5, 0.6)?", true),
            ("Is it a cat (or a dog), from 1990?", false),
        ] {
            assert_eq!(has_coordinates(question), expected, "{question}");
        }
    }

    #[test]
    fn what_cannot_be_learned_is_named_by_its_place() {
        let region = |bbox: [i32; 4]| json!([{"id": 1, "bbox": bbox}]);
        let asked = json!([{"question": "What is <region1>?", "answer": "A cat."}]);
        for (line, expected) in [
            (said("a.png", "What is it?", &"a very long story ".repeat(900)), "tokens, expected at most 2048"),
            (
                json!({"image": "a.png", "regions": region([0, 0, 40, 9]), "rounds": asked}),
                "region 1: bbox: x2: expected",
            ),
            (said("lost.png", "What is it?", "A cat."), "lost.png"),
        ] {
            let error = error_of(line);
            assert!(error.contains("0.jsonl, line 1") && error.contains(expected), "{error}, not {expected}");
        }
        assert!(lessons(&[Path::new("nowhere.jsonl").into()], 1).unwrap_err().to_string().contains("nowhere.jsonl"));
    }
}
