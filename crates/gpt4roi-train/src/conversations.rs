//! Lessons from scenes: what is asked about them, and which kind each region shows.

use std::sync::Arc;

use gpt4roi::{Image, tokenizer::Tokenizer};
use gpt4roi_data::{Conversation, Packed, QuestionType, Questions, Scene, Transcript, pack};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    error::{Result, TrainError},
    init::mix,
    lesson::{Counted, Lesson, Lessons, Sight},
    scenes::SceneSource,
};

/// Asks about scenes, and turns questions and answers into ids.
pub struct Conversations {
    /// The pictures.
    pub scenes: Arc<dyn SceneSource>,
    /// What is asked about them.
    pub questions: Questions,
    /// Text to ids.
    pub tokenizer: Arc<Tokenizer>,
    /// Decides which questions are asked of a scene.
    pub seed: u64,
    /// Patches of one picture.
    pub patches: usize,
    /// Tokens of one region.
    pub region_tokens: usize,
}

impl std::fmt::Debug for Conversations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversations").field("questions", &self.questions).finish_non_exhaustive()
    }
}

impl Lessons for Conversations {
    /// The conversations about the scene of an index; none if it gives no occasion, or if none of its
    /// questions mentions a region.
    fn lesson(&self, index: u64) -> Result<Option<Lesson>> {
        let asked = self.ask(index)?;
        if asked.conversations.iter().all(|conversation| conversation.regions.is_empty()) {
            return Ok(None);
        }
        self.pack(asked).map(Some)
    }
}

/// A scene, what is asked about it, and what draws the rest of its lesson.
struct Asked {
    scene: Scene,
    conversations: Vec<Conversation>,
    rng: ChaCha8Rng,
}

impl Conversations {
    /// The same lesson without the picture: only conversations about regions, whose vectors say what there is to see.
    pub fn lesson_of_regions(&self, index: u64) -> Result<Option<Lesson>> {
        let mut asked = self.ask(index)?;
        asked.conversations.retain(|conversation| !conversation.regions.is_empty());
        if asked.conversations.is_empty() {
            return Ok(None);
        }
        let lesson = self.pack(asked)?;
        Ok(Some(Lesson { packed: lesson.packed.without_picture(), ..lesson }))
    }

    fn ask(&self, index: u64) -> Result<Asked> {
        let (scene, mut rng) = (self.scenes.scene(index)?, ChaCha8Rng::seed_from_u64(mix(self.seed, index)));
        let conversations = self.questions.ask(&scene, &mut rng);
        Ok(Asked { scene, conversations, rng })
    }

    fn pack(&self, asked: Asked) -> Result<Lesson> {
        let Asked { scene, conversations, rng } = asked;
        let transcripts: Vec<Transcript> = conversations.iter().map(Transcript::from).collect();
        let packed = pack(&transcripts, &self.tokenizer, self.patches, self.region_tokens);
        let packed = packed.map_err(|error| TrainError::Data(error.to_string()))?;
        let kinds = kinds(&packed, &conversations, &scene)?;
        let kinds = kinds.into_iter().flat_map(|kind| std::iter::repeat_n(kind, self.region_tokens)).collect();
        let counted = conversations.iter().map(counted).collect();
        let picture = Sight::Drawn(Image::from_rgb(scene.image));
        Ok(Lesson { picture, packed, counted, kinds, whole: true, rng })
    }
}

/// For each box, the kind of the object that it belongs to.
fn kinds(packed: &Packed, conversations: &[Conversation], scene: &Scene) -> Result<Vec<u32>> {
    let object = |bbox| {
        let regions = conversations.iter().flat_map(|conversation| &conversation.regions);
        let (_, _, object) = regions.into_iter().find(|(_, other, _)| other == bbox)?;
        Some(scene.objects.get(*object)?.kind as u32)
    };
    let all = packed.boxes.iter().map(|bbox| object(bbox).ok_or_else(|| TrainError::Data("a box of no object".into())));
    all.collect()
}

/// Questions of a type are counted together; what a yes-or-no question is about follows from how many regions it
/// mentions.
fn counted(conversation: &Conversation) -> Counted {
    let name = conversation.question_type.name();
    match (conversation.question_type, conversation.regions.len()) {
        (QuestionType::YesNo, 0) => Counted::Verdict(name, "verdict_presence"),
        (QuestionType::YesNo, 1) => Counted::Verdict(name, "verdict_kind"),
        (QuestionType::YesNo, _) => Counted::Verdict(name, "verdict_direction"),
        _ => Counted::Conversation(name),
    }
}

#[cfg(test)]
mod tests {
    use gpt4roi_data::{QuestionMix, Scenes};

    use super::*;
    use crate::tiny;

    fn conversations() -> Conversations {
        let scenes = Scenes::new(tiny::scenes()).unwrap();
        let mix = QuestionMix { count: 6, point: 0.0, dialogue: 0.0, picture: 9.0, ..QuestionMix::default() };
        let questions = Questions::new(mix, scenes.kinds()).unwrap();
        let tokenizer = Arc::new(tiny::tokenizer());
        Conversations { scenes: Arc::new(scenes), questions, tokenizer, seed: 1, patches: 4, region_tokens: 1 }
    }

    /// Without the picture, what is asked about regions is asked in the same words at the same places.
    #[test]
    fn a_lesson_of_regions_leaves_out_the_picture_alone() {
        let conversations = conversations();
        let asked = conversations.ask(0).unwrap().conversations;
        let with = conversations.lesson(0).unwrap().unwrap();
        let without = conversations.lesson_of_regions(0).unwrap().unwrap();
        let (kept, left_out): (Vec<_>, Vec<_>) = (0..asked.len()).partition(|&at| !asked[at].regions.is_empty());
        assert!(!kept.is_empty() && !left_out.is_empty());
        assert_eq!(kept.len(), without.counted.len());
        assert_eq!(with.packed.prefix(), without.packed.prefix() + 4);
        for (at, branch) in kept.iter().zip(&without.packed.branches) {
            let same = with.packed.branches[*at].clone();
            assert_eq!(with.packed.ids[same.clone()], without.packed.ids[branch.clone()]);
            assert_eq!(with.packed.positions[same], without.packed.positions[branch.clone()]);
        }
        let region = tiny::tokenizer().special().bbox;
        assert!(without.packed.regions.iter().all(|(place, _)| without.packed.ids[*place as usize] == region));
        assert_eq!(without.kinds.len(), without.packed.boxes.len());
    }

    #[test]
    fn each_box_has_the_kind_of_its_object() {
        let conversations = conversations();
        let (scene, lesson) = (conversations.ask(0).unwrap().scene, conversations.lesson(0).unwrap().unwrap());
        assert_eq!(lesson.kinds.len(), lesson.packed.boxes.len());
        for (kind, bbox) in lesson.kinds.iter().zip(&lesson.packed.boxes) {
            let object = scene.objects.iter().find(|object| object.bbox == *bbox).unwrap();
            assert_eq!(*kind as usize, object.kind);
        }
    }
}
