//! Lessons from people's own pictures.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use gpt4roi::{
    BBox, Config, Image, ImageSize, RegionId,
    image::DEFAULT_MAX_PIXELS,
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
    lesson::{Counted, Lesson, Lessons, Sight},
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
    pictures: Vec<Arc<Picture>>,
    without_picture: usize,
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
    /// Reads the files, and of every picture the header, and renders every conversation, so that a lost picture, a box
    /// outside of its picture, or a conversation that is too long for the model does not end a run that has begun. The
    /// pictures themselves are opened when it is their turn. In a conversation one stands as so many patches; where it
    /// stands as none, what is learned are texts, and the pictures need not even be there.
    ///
    /// # Errors
    /// If a file can't be read or holds what is no record; if there is no answer in any of them; if a picture can't be
    /// read, coordinates lie outside of one, or a conversation can't be rendered or has more tokens than the model has
    /// positions.
    pub fn open(
        files: &RecordsConfig,
        config: &Config,
        patches: usize,
        tokenizer: Arc<Tokenizer>,
        seed: u64,
    ) -> Result<Self> {
        if files.files.is_empty() {
            return Err(TrainError::Data("`records.files`: expected at least one file, got none".into()));
        }
        let (pictures, without_picture) = pictures(files)?;
        let pictures = learnable(pictures);
        if pictures.is_empty() {
            let files: Vec<_> = files.files.iter().map(|file| file.display().to_string()).collect();
            return Err(TrainError::Data(format!("no answer in any of {}: nothing to learn", files.join(", "))));
        }
        let dialogues = || pictures.iter().flat_map(|picture| &picture.dialogues);
        let lessons = Self {
            about_regions: dialogues().any(is_about_regions),
            dialogues_per_picture: files.dialogues_per_picture,
            tokenizer,
            seed,
            patches,
            region_tokens: config.region.tokens,
            max_positions: config.llama.max_position_embeddings,
            point_reach: config.region.point_reach,
            pictures: pictures.into_iter().map(Arc::new).collect(),
            without_picture,
        };
        lessons.check()?;
        Ok(lessons)
    }

    /// How many pictures there are to learn from.
    pub fn pictures(&self) -> usize {
        self.pictures.len()
    }

    /// How many conversations of the files are about no picture, so that nothing is learned of them.
    pub fn without_picture(&self) -> usize {
        self.without_picture
    }

    /// Holds all records against their pictures and against the model.
    fn check(&self) -> Result<()> {
        const TOLD: usize = 5;
        let mut problems = self.pictures.iter().flat_map(|picture| self.problems(picture));
        let first: Vec<String> = problems.by_ref().take(TOLD).collect();
        match first.is_empty() {
            true => Ok(()),
            false => Err(TrainError::Records { more: problems.count(), first }),
        }
    }

    /// What is wrong with a picture, or with what is said about it.
    fn problems(&self, picture: &Picture) -> Vec<String> {
        let size = match self.size(picture) {
            Ok(size) => size,
            Err(error) => return vec![error.to_string()],
        };
        let problems = picture.dialogues.iter().filter_map(|dialogue| self.pack(&[dialogue], size).err());
        let mut problems: Vec<String> = problems.collect();
        // All boxes may be of a picture of another size, for one reason.
        problems.dedup();
        problems
    }

    /// The size of a picture, of which no more than the header is read. Where things lie in one that nobody sees plays
    /// no part, so that it has the size that is stated, or is large enough for everything.
    fn size(&self, picture: &Picture) -> std::result::Result<ImageSize, DataError> {
        const ANY: ImageSize = ImageSize { width: 1 << 24, height: 1 << 24 };
        if self.patches > 0 {
            return size(picture);
        }
        let stated = picture.dialogues.iter().find_map(|dialogue| dialogue.stated_size.as_ref());
        Ok(stated.map_or(ANY, |stated| stated.size))
    }

    /// The picture of an index: a permutation of all of them per epoch, which needs no memory of what was before.
    fn picture(&self, index: u64) -> &Arc<Picture> {
        let (at, count) = (index.wrapping_sub(first_picture(self.seed)), self.pictures.len() as u64);
        &self.pictures[shuffled(at % count, count, mix(self.seed, at / count)) as usize]
    }

    /// Conversations about one picture as one sequence. Each of them stands there as if it were alone, so that what can
    /// be packed by itself can be packed with any others.
    fn pack(&self, dialogues: &[&Dialogue], size: ImageSize) -> std::result::Result<Packed, String> {
        let transcripts = dialogues.iter().map(|dialogue| self.transcript(dialogue, size));
        let transcripts = transcripts.collect::<std::result::Result<Vec<_>, _>>()?;
        let packed = pack(&transcripts, &self.tokenizer, self.patches, self.region_tokens);
        let packed = packed.map_err(|error| match error {
            DataError::Prompt { index, source } => refusal(dialogues[index], &source.to_string()),
            error => error.to_string(),
        })?;
        for (dialogue, branch) in dialogues.iter().zip(&packed.branches) {
            let tokens = packed.prefix() + branch.len();
            if tokens > self.max_positions {
                let (most, patches) = (self.max_positions, self.patches);
                let message = format!(
                    "expected at most {most} tokens, as many as the model reads, the picture's {patches} among them, \
                     got {tokens}"
                );
                return Err(refusal(dialogue, &message));
            }
        }
        Ok(packed)
    }

    /// The rounds up to the first that nobody has answered. Coordinates in a question become regions, as they do
    /// wherever a question is asked.
    fn transcript(&self, dialogue: &Dialogue, size: ImageSize) -> std::result::Result<Transcript, String> {
        let boxes = dialogue.boxes(size).map_err(|error| error.to_string())?;
        let mut transcript = Transcript { rounds: Vec::new(), boxes };
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
        let dialogues = some(&picture.dialogues, self.dialogues_per_picture, &mut rng);
        let packed = self.pack(&dialogues, self.size(picture).map_err(data)?).map_err(TrainError::Data)?;
        let counted = vec![Counted::Answers; dialogues.len()];
        let whole = !self.about_regions || !packed.boxes.is_empty();
        let picture = Sight::InFile(picture.clone());
        Ok(Some(Lesson { picture, packed, counted, kinds: Vec::new(), whole, rng }))
    }
}

/// The pictures of all files, each once, and how many conversations are about none.
fn pictures(files: &RecordsConfig) -> Result<(Vec<Picture>, usize)> {
    let (images, question, split) = (files.images.clone(), files.question.clone(), files.split.clone());
    let options = RecordOptions { images, question, split };
    let (mut pictures, mut known, mut without_picture) = (Vec::<Picture>::new(), HashMap::new(), 0);
    for file in &files.files {
        let records = Records::open(file, &options).map_err(data)?;
        without_picture += records.without_picture();
        for picture in records.pictures() {
            let at = *known.entry(picture.path.clone()).or_insert(pictures.len());
            match pictures.get_mut(at) {
                Some(same) => same.dialogues.extend_from_slice(&picture.dialogues),
                None => pictures.push(picture.clone()),
            }
        }
    }
    Ok((pictures, without_picture))
}

/// What has an answer to begin with.
fn learnable(mut pictures: Vec<Picture>) -> Vec<Picture> {
    let answered = |dialogue: &Dialogue| dialogue.rounds.first().is_some_and(|round| !round.answers.is_empty());
    pictures.iter_mut().for_each(|picture| picture.dialogues.retain(answered));
    pictures.retain(|picture| !picture.dialogues.is_empty());
    pictures
}

/// The size of a picture, of which no more than the header is read.
fn size(picture: &Picture) -> std::result::Result<ImageSize, DataError> {
    Image::size_of_file(&picture.path, DEFAULT_MAX_PIXELS).map_err(|source| DataError::OwnPicture {
        place: picture.dialogues.first().map_or_else(|| picture.name.clone(), |dialogue| dialogue.place.to_string()),
        source,
    })
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

fn refusal(dialogue: &Dialogue, message: &str) -> String {
    format!("{}: {message}", dialogue.place)
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
        lessons_for(&tiny::config(tiny::tokenizer().vocab_size()), files, most)
    }

    fn lessons_for(config: &Config, files: &[PathBuf], most: usize) -> Result<RecordLessons> {
        lessons_of_patches(config.vision.patches(), config, files, most)
    }

    fn lessons_of_patches(patches: usize, config: &Config, files: &[PathBuf], most: usize) -> Result<RecordLessons> {
        let files = RecordsConfig {
            files: files.to_vec(),
            images: None,
            question: None,
            split: None,
            dialogues_per_picture: most,
        };
        RecordLessons::open(&files, config, patches, Arc::new(tiny::tokenizer()), 3)
    }

    fn said(image: &str, question: &str, answer: &str) -> Value {
        json!({"image": image, "rounds": [{"question": question, "answer": answer}]})
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
    }

    #[test]
    fn without_an_answer_there_is_nothing_to_learn() {
        let line = [json!({"image": "b.png", "rounds": [{"question": "Hm?"}]})];
        let (_folder, files) = folder(&[&line, &line]);
        let told = |files: &[PathBuf]| lessons(files, 20).unwrap_err().to_string();
        let [one, other] = [&files[0], &files[1]].map(|file| file.display());
        assert_eq!(told(&files), format!("data: no answer in any of {one}, {other}: nothing to learn"));
        assert_eq!(told(&[]), "data: `records.files`: expected at least one file, got none");
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

    /// An octopus is asked about at these places, one a line, in pictures of 28×28 pixels.
    fn asked_about(places: &[(&str, [i32; 4])]) -> Vec<Value> {
        let rounds = json!([{"question": "What is <region1>?", "answer": "An octopus."}]);
        let line = |&(image, bbox): &(&str, [i32; 4])| {
            let region = json!({"id": 1, "bbox": bbox});
            json!({"image": image, "regions": [region], "rounds": rounds})
        };
        places.iter().map(line).collect()
    }

    #[test]
    fn what_does_not_fit_its_picture_is_found_before_the_first_lesson() {
        let inside = ("a.png", [0, 0, 9, 9]);
        for (line, expected) in [
            (
                asked_about(&[("b.png", [0, 0, 40, 9])])[0].clone(),
                "region 1: bbox: x2: expected 0 to 28 (pixels), got 40",
            ),
            (said("b.png", "What is in [0, 0, 9, 40]?", "A cat."), "y2: expected 0 to 28 (pixels), got 40"),
            (said("lost.png", "What is it?", "A cat."), "lost.png"),
        ] {
            let (_folder, files) = folder(&[&[asked_about(&[inside])[0].clone(), line]]);
            let error = lessons(&files, 1).unwrap_err().to_string();
            assert!(error.contains("0.jsonl, line 2") && error.contains(expected), "{error}, not {expected}");
            assert!(
                error.starts_with("expected records that fit their pictures and the model, got problems: 1\n"),
                "{error}"
            );
        }
        assert!(lessons(&[Path::new("nowhere.jsonl").into()], 1).unwrap_err().to_string().contains("nowhere.jsonl"));
    }

    /// What they are about is not looked at, so that it may be lost, or lie elsewhere.
    #[test]
    fn texts_need_no_picture() {
        let (_folder, files) = folder(&[&[
            asked_about(&[("lost.png", [0, 0, 4000, 9])])[0].clone(),
            said("lost.png", "What is in [0, 0, 9, 4000], and in [0.5, 0.5, 0.9, 0.9]?", "A cat."),
        ]]);
        let config = tiny::config(tiny::tokenizer().vocab_size());
        let lessons = lessons_of_patches(0, &config, &files, 2).unwrap();
        let lesson = lessons.lesson(first_picture(3)).unwrap().unwrap();
        assert_eq!((lesson.packed.patches.len(), lesson.packed.boxes.len()), (0, 1 + 2));
        assert_eq!(lesson.packed.answers.len(), 2);
        assert!(lesson.picture.open().unwrap_err().to_string().contains("lost.png"));
    }

    #[test]
    fn of_many_problems_the_first_are_told_and_the_others_counted() {
        let mut places = vec![("a.png", [0, 0, 40, 9]); 6];
        places.push(("a.png", [0, 0, 9, 9]));
        places.push(("lost.png", [0, 0, 9, 9]));
        places.push(("lost.png", [0, 0, 40, 9]));
        let (_folder, files) = folder(&[&asked_about(&places)]);
        let error = lessons(&files, 1).unwrap_err().to_string();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), 1 + 5 + 1, "{error}");
        // Six boxes, and a picture, which is lost once.
        assert_eq!(lines[0], "expected records that fit their pictures and the model, got problems: 7");
        for (line, number) in lines[1..6].iter().zip(1..) {
            assert!(line.contains(&format!("0.jsonl, line {number}: region 1")), "{error}");
        }
        assert_eq!(lines[6], "  and 2 more");
    }

    #[test]
    fn a_picture_of_another_size_than_stated_is_told_once() {
        let (folder, _) = folder(&[]);
        let labels = folder.path().join("labels.json");
        let annotation = |id: u32| json!({"id": id, "image_id": 1, "bbox": [2, 2, 9, 9], "caption": "A cat."});
        let image = json!({"id": 1, "file_name": "a.png", "width": 56, "height": 56});
        let file = json!({"images": [image], "annotations": [annotation(1), annotation(2)]});
        std::fs::write(&labels, file.to_string()).unwrap();
        let error = lessons(std::slice::from_ref(&labels), 1).unwrap_err().to_string();
        let expected = format!(
            "expected records that fit their pictures and the model, got problems: 1\n  {}, image 1: width and height: \
             expected 28×28, the size of a.png, got 56×56",
            labels.display()
        );
        assert_eq!(error, expected);
        // Of texts alone the picture is not looked at, and has the size that is stated.
        let config = tiny::config(tiny::tokenizer().vocab_size());
        let lesson = lessons_of_patches(0, &config, &[labels], 1).unwrap().lesson(first_picture(3)).unwrap().unwrap();
        assert_eq!(
            lesson.packed.boxes,
            [BBox::from_normalized([2, 2, 11, 11].map(|edge| f64::from(edge) / 56.0)).unwrap()]
        );
    }

    /// A photograph that lies on its side is held against its boxes as it is seen upright.
    #[test]
    fn boxes_are_held_against_the_upright_picture() {
        let (folder, files) = folder(&[&asked_about(&[("turned.png", [0, 0, 5, 7])])]);
        // 7×5 pixels that are to be turned by a quarter.
        let turned = include_bytes!("../../gpt4roi/tests/data/pictures/turned-6.png");
        std::fs::write(folder.path().join("turned.png"), turned).unwrap();
        let lesson = lessons(&files, 1).unwrap().lesson(first_picture(3)).unwrap().unwrap();
        assert_eq!(lesson.packed.boxes, [BBox::from_normalized([0.0, 0.0, 1.0, 1.0]).unwrap()]);
    }

    /// The limit is that of a conversation, not of all that stand in one sequence: the longest of three may just fit.
    #[test]
    fn what_is_too_long_for_the_model_is_found_before_the_first_lesson() {
        let lines = ["A cat.", "A very long story of a cat.", "No."].map(|answer| said("a.png", "What is it?", answer));
        let (_folder, files) = folder(&[&lines]);
        let mut config = tiny::config(tiny::tokenizer().vocab_size());
        let packed = lessons_for(&config, &files, 3).unwrap().lesson(first_picture(3)).unwrap().unwrap().packed;
        let longest = packed.prefix() + packed.branches[1].len();
        assert!(longest < packed.ids.len());

        config.llama.max_position_embeddings = longest;
        assert!(lessons_for(&config, &files, 3).is_ok());
        config.llama.max_position_embeddings = longest - 1;
        let error = lessons_for(&config, &files, 3).unwrap_err().to_string();
        let (most, patches) = (longest - 1, packed.patches.len());
        let expected = format!(
            "line 2: expected at most {most} tokens, as many as the model reads, the picture's {patches} among them, \
             got {longest}"
        );
        assert!(
            error.starts_with("expected records that fit their pictures and the model, got problems: 1\n"),
            "{error}"
        );
        assert!(error.contains("0.jsonl") && error.ends_with(&expected), "{error}, not {expected}");
    }
}
