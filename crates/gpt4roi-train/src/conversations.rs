//! Conversations about a scene, and how well the language model continues them.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use gpt4roi::{Network, tokenizer::Tokenizer};
use gpt4roi_data::{Conversation, Packed, QuestionType, Questions, Scene, pack};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    error::{Result, TrainError},
    init::mix,
    loss::{correct, cross_entropy},
    objective::Metrics,
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

/// A scene and what is said about it.
#[derive(Debug)]
pub struct Talk {
    /// The picture.
    pub scene: Scene,
    /// The conversations.
    pub conversations: Vec<Conversation>,
    /// The same as one sequence.
    pub packed: Packed,
    /// For each token of each box of `packed`, the kind of what the box shows.
    pub kinds: Vec<u32>,
    /// Draws what else is random about this picture.
    pub rng: ChaCha8Rng,
}

impl Conversations {
    /// The conversations about the scene of an index; none if it gives no occasion, or if none of its
    /// questions mentions a region.
    pub fn talk(&self, index: u64) -> Result<Option<Talk>> {
        let (scene, mut rng) = self.subject(index)?;
        let conversations = self.questions.ask(&scene, &mut rng);
        if conversations.iter().all(|conversation| conversation.regions.is_empty()) {
            return Ok(None);
        }
        self.pack(scene, conversations, rng).map(Some)
    }

    /// The same conversations without the picture: only those about regions, whose vectors say what there is to see.
    pub fn talk_of_regions(&self, index: u64) -> Result<Option<Talk>> {
        let (scene, mut rng) = self.subject(index)?;
        let mut conversations = self.questions.ask(&scene, &mut rng);
        conversations.retain(|conversation| !conversation.regions.is_empty());
        if conversations.is_empty() {
            return Ok(None);
        }
        let talk = self.pack(scene, conversations, rng)?;
        Ok(Some(Talk { packed: talk.packed.without_picture(), ..talk }))
    }

    fn subject(&self, index: u64) -> Result<(Scene, ChaCha8Rng)> {
        Ok((self.scenes.scene(index)?, ChaCha8Rng::seed_from_u64(mix(self.seed, index))))
    }

    fn pack(&self, scene: Scene, conversations: Vec<Conversation>, rng: ChaCha8Rng) -> Result<Talk> {
        let packed = pack(&conversations, &self.tokenizer, self.patches, self.region_tokens);
        let packed = packed.map_err(|error| TrainError::Data(error.to_string()))?;
        let kinds = kinds(&packed, &conversations, &scene)?;
        let kinds = kinds.into_iter().flat_map(|kind| std::iter::repeat_n(kind, self.region_tokens)).collect();
        Ok(Talk { scene, conversations, packed, kinds, rng })
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

impl Talk {
    /// The boxes, normalised xyxy.
    ///
    /// # Shapes
    /// → `[N, 4]`
    pub fn boxes(&self, device: &Device) -> candle_core::Result<Tensor> {
        let values: Vec<f32> =
            self.packed.boxes.iter().flat_map(|bbox| bbox.normalized().map(|edge| edge as f32)).collect();
        Tensor::from_vec(values, (self.packed.boxes.len(), 4), device)
    }

    /// The mean cross-entropy of the answers' tokens; where an answer's words begin, one counts `first_token` times.
    ///
    /// # Shapes
    /// image_tokens `[patches, H]`, unless the picture is left out, region_tokens `[boxes·tokens, H]` → a scalar
    pub fn loss(
        &self,
        network: &Network,
        image_tokens: Option<&Tensor>,
        region_tokens: &Tensor,
        first_token: f64,
        metrics: &mut Metrics,
    ) -> Result<Tensor> {
        let (packed, device) = (&self.packed, region_tokens.device());
        let ids = Tensor::from_slice(&packed.ids, packed.ids.len(), device)?;
        let positions = Tensor::from_slice(&packed.positions, packed.positions.len(), device)?;
        let patches: Vec<u32> = packed.patches.clone().map(|place| place as u32).collect();
        let (places, rows): (Vec<u32>, Vec<u32>) =
            packed.regions.iter().map(|&(place, row)| (place, row as u32)).unzip();
        let regions = region_tokens.index_select(&Tensor::from_slice(&rows, rows.len(), device)?, 0)?;
        let image = image_tokens.map(|tokens| (tokens, &patches[..]));
        let parts: Vec<_> = image.into_iter().chain([(&regions, &places[..])]).collect();
        let embeds = network.splice(&ids, &parts)?;
        let hidden = network.llama.forward_packed(&embeds, &positions, &packed.mask)?.squeeze(0)?;
        let predictors: Vec<u32> = packed.predictors.iter().map(|&place| place as u32).collect();
        let hidden = hidden.index_select(&Tensor::from_slice(&predictors, predictors.len(), device)?, 0)?;
        let logits = network.llama.logits(&hidden)?;
        let targets = packed.target_ids();
        self.score(&correct(&logits, &targets)?, metrics);
        Ok(cross_entropy(&logits, &targets, &self.weights(first_token))?)
    }

    /// For each target whether the words of an answer begin with it.
    fn firsts(&self) -> impl Iterator<Item = bool> {
        let places = (0..self.packed.ids.len()).filter(|&place| self.packed.targets[place]);
        places.map(|place| self.packed.answers.binary_search(&place).is_ok())
    }

    /// The targets' weights, which add up to 1.
    fn weights(&self, first_token: f64) -> Vec<f32> {
        let weight = |first| if first { first_token } else { 1.0 };
        let sum: f64 = self.firsts().map(weight).sum();
        self.firsts().map(|first| (weight(first) / sum) as f32).collect()
    }

    /// An answer is right if all its tokens would be predicted, each from the right ones before it:
    /// exactly when greedy decoding would write it.
    fn score(&self, right: &[bool], metrics: &mut Metrics) {
        metrics.add("token_accuracy", right.iter().filter(|&&right| right).count() as f64, right.len() as f64);
        let mut right = right.iter().copied().zip(self.firsts());
        let score = |right: bool| f64::from(u8::from(right));
        for (conversation, branch) in self.conversations.iter().zip(&self.packed.branches) {
            let targets = self.packed.targets[branch.clone()].iter().filter(|&&target| target).count();
            let answer: Vec<(bool, bool)> = right.by_ref().take(targets).collect();
            metrics.add(conversation.question_type.name(), score(answer.iter().all(|(right, _)| *right)), 1.0);
            if conversation.question_type == QuestionType::YesNo {
                // Yes or no, whatever follows.
                let verdict = answer.iter().any(|&(right, first)| right && first);
                metrics.add("verdict", score(verdict), 1.0);
                metrics.add(verdict_about(conversation.regions.len()), score(verdict), 1.0);
            }
        }
    }

    /// The number of tokens that are learned.
    pub fn targets(&self) -> f64 {
        self.packed.predictors.len() as f64
    }
}

/// What a yes-or-no question is about follows from how many regions it mentions.
fn verdict_about(regions: usize) -> &'static str {
    match regions {
        0 => "verdict_presence",
        1 => "verdict_kind",
        _ => "verdict_direction",
    }
}

#[cfg(test)]
mod tests {
    use gpt4roi_data::{QuestionMix, Scenes};

    use super::*;
    use crate::tiny;

    fn conversations() -> Conversations {
        let scenes = Scenes::new(tiny::stage(tiny::patches(), &["aux."]).scenes).unwrap();
        let mix = QuestionMix { count: 6, point: 0.0, dialogue: 0.0, picture: 9.0, ..QuestionMix::default() };
        let questions = Questions::new(mix, scenes.kinds()).unwrap();
        let tokenizer = Arc::new(tiny::tokenizer());
        Conversations { scenes: Arc::new(scenes), questions, tokenizer, seed: 1, patches: 4, region_tokens: 1 }
    }

    fn talk() -> Talk {
        conversations().talk(0).unwrap().unwrap()
    }

    /// Without the picture, what is asked about regions is asked in the same words at the same places.
    #[test]
    fn a_talk_of_regions_leaves_out_the_picture_alone() {
        let conversations = conversations();
        let (with, without) = (talk(), conversations.talk_of_regions(0).unwrap().unwrap());
        let (kept, left_out): (Vec<_>, Vec<_>) =
            (0..with.conversations.len()).partition(|&at| !with.conversations[at].regions.is_empty());
        assert!(!kept.is_empty() && !left_out.is_empty());
        assert_eq!(kept.len(), without.conversations.len());
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
        let talk = talk();
        assert_eq!(talk.kinds.len(), talk.packed.boxes.len());
        for (kind, bbox) in talk.kinds.iter().zip(&talk.packed.boxes) {
            let object = talk.scene.objects.iter().find(|object| object.bbox == *bbox).unwrap();
            assert_eq!(*kind as usize, object.kind);
        }
    }

    #[test]
    fn first_tokens_count_as_told() {
        let talk = talk();
        let firsts: Vec<bool> = talk.firsts().collect();
        assert_eq!(firsts.len() as f64, talk.targets());
        assert_eq!(firsts.iter().filter(|first| **first).count(), talk.conversations.len(), "one round each");
        let weights = talk.weights(3.0);
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let spoken = |place: &usize| talk.packed.targets[place - 1] && talk.packed.targets[place - 2];
        assert!(talk.packed.answers.iter().all(spoken), "`Assistant` and `:` stand before the words");
        let of = |wanted: bool| weights[firsts.iter().position(|first| *first == wanted).unwrap()];
        assert!((of(true) / of(false) - 3.0).abs() < 1e-5);
    }
}
