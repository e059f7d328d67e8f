//! A picture and what is to be learned from it, whoever asked: what a stage of conversations needs of its source.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use gpt4roi::{Image, Network, llama::Llama};
use gpt4roi_data::{Packed, records::Picture};
use rand_chacha::ChaCha8Rng;

use crate::{
    error::{Result, TrainError},
    loss::{correct, cross_entropy},
    objective::Metrics,
};

/// A source of lessons.
pub trait Lessons: Send + Sync {
    /// The lesson of an index; none if there is nothing to learn from it.
    ///
    /// It is always the same one, whichever thread asks and however often training was interrupted.
    ///
    /// # Errors
    /// If it can't be made.
    fn lesson(&self, index: u64) -> Result<Option<Lesson>>;
}

/// A picture and what is said about it.
#[derive(Debug)]
pub struct Lesson {
    /// The picture.
    pub picture: Sight,
    /// All conversations about it as one sequence.
    pub packed: Packed,
    /// How the answers of each branch of `packed` are counted.
    pub counted: Vec<Counted>,
    /// For each token of each box of `packed`, the kind of what the box shows; empty where nobody has told.
    pub kinds: Vec<u32>,
    /// Whether it can be learned from with all of the network: some lessons are about no region. If none of a source's
    /// lessons is about one, they all count as whole.
    pub whole: bool,
    /// Draws what else is random about this picture.
    pub rng: ChaCha8Rng,
}

/// A picture that need not be in memory before somebody looks at it: who learns texts alone never does.
#[derive(Debug)]
pub enum Sight {
    /// One that was drawn.
    Drawn(Image),
    /// One in a file.
    InFile(Arc<Picture>),
}

impl Sight {
    /// The picture itself.
    ///
    /// # Errors
    /// If its file can't be read.
    pub fn open(&self) -> Result<Image> {
        match self {
            Self::Drawn(image) => Ok(image.clone()),
            Self::InFile(picture) => picture.open().map_err(|error| TrainError::Data(error.to_string())),
        }
    }
}

/// Under which name right answers are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// A conversation is right if all of its answers are.
    Conversation(&'static str),
    /// The same, and whether yes or no is right, whatever follows, about what.
    Verdict(&'static str, &'static str),
    /// Each answer for itself, as `exact`.
    Answers,
}

impl Lesson {
    /// The boxes, normalised xyxy.
    ///
    /// # Shapes
    /// → `[N, 4]`
    pub fn boxes(&self, device: &Device) -> candle_core::Result<Tensor> {
        let values: Vec<f32> =
            self.packed.boxes.iter().flat_map(|bbox| bbox.normalized().map(|edge| edge as f32)).collect();
        Tensor::from_vec(values, (self.packed.boxes.len(), 4), device)
    }

    /// The number of tokens that are learned.
    pub fn targets(&self) -> f64 {
        self.packed.predictors.len() as f64
    }

    /// The mean cross-entropy of the answers' tokens; where an answer's words begin, one counts `first_token` times.
    ///
    /// # Shapes
    /// image_tokens `[patches, H]`, unless the picture is left out; region_tokens `[boxes·tokens, H]`, unless there
    /// are no boxes → a scalar
    pub fn loss(
        &self,
        network: &Network,
        image_tokens: Option<&Tensor>,
        region_tokens: Option<&Tensor>,
        first_token: f64,
        metrics: &mut Metrics,
    ) -> Result<Tensor> {
        let (packed, device) = (&self.packed, network.llama.device());
        let ids = Tensor::from_slice(&packed.ids, packed.ids.len(), device)?;
        let patches: Vec<u32> = packed.patches.clone().map(|place| place as u32).collect();
        let (places, rows): (Vec<u32>, Vec<u32>) =
            packed.regions.iter().map(|&(place, row)| (place, row as u32)).unzip();
        let rows = Tensor::from_slice(&rows, rows.len(), device)?;
        let regions = region_tokens.map(|tokens| tokens.index_select(&rows, 0)).transpose()?;
        let image = image_tokens.map(|tokens| (tokens, &patches[..]));
        let parts: Vec<_> = image.into_iter().chain(regions.as_ref().map(|regions| (regions, &places[..]))).collect();
        self.loss_behind(&network.llama, &network.splice(&ids, &parts)?, first_token, metrics)
    }

    /// The same, of what the language model reads.
    ///
    /// # Shapes
    /// embeds `[1, T, H]` → a scalar
    pub fn loss_behind(
        &self,
        llama: &Llama,
        embeds: &Tensor,
        first_token: f64,
        metrics: &mut Metrics,
    ) -> Result<Tensor> {
        let (packed, device) = (&self.packed, llama.device());
        let positions = Tensor::from_slice(&packed.positions, packed.positions.len(), device)?;
        let hidden = llama.forward_packed(embeds, &positions, &packed.mask)?.squeeze(0)?;
        let predictors: Vec<u32> = packed.predictors.iter().map(|&place| place as u32).collect();
        let hidden = hidden.index_select(&Tensor::from_slice(&predictors, predictors.len(), device)?, 0)?;
        let logits = llama.logits(&hidden)?;
        let targets = packed.target_ids();
        self.score(&correct(&logits, &targets)?, metrics);
        Ok(cross_entropy(&logits, &targets, &self.weights(first_token))?)
    }

    /// Where the targets stand.
    fn places(&self) -> impl Iterator<Item = usize> {
        (0..self.packed.ids.len()).filter(|&place| self.packed.targets[place])
    }

    /// Whether the words of an answer begin at a place.
    fn is_first(&self, place: usize) -> bool {
        self.packed.answers.binary_search(&place).is_ok()
    }

    /// The targets' weights, which add up to 1.
    fn weights(&self, first_token: f64) -> Vec<f32> {
        let weight = |place| if self.is_first(place) { first_token } else { 1.0 };
        let sum: f64 = self.places().map(weight).sum();
        self.places().map(|place| (weight(place) / sum) as f32).collect()
    }

    /// An answer is right if all its tokens would be predicted, each from the right ones before it: exactly when
    /// greedy decoding would write it.
    fn score(&self, right: &[bool], metrics: &mut Metrics) {
        metrics.add("token_accuracy", right.iter().filter(|&&right| right).count() as f64, right.len() as f64);
        let mut targets = self.places().zip(right.iter().copied()).peekable();
        for (counted, branch) in self.counted.iter().zip(&self.packed.branches) {
            let own: Vec<(usize, bool)> =
                std::iter::from_fn(|| targets.next_if(|(place, _)| *place < branch.end)).collect();
            self.count(*counted, &own, metrics);
        }
    }

    /// Counts the answers of one branch, of which it is known for each target whether it is right.
    fn count(&self, counted: Counted, targets: &[(usize, bool)], metrics: &mut Metrics) {
        let all = |targets: &[(usize, bool)]| f64::from(u8::from(targets.iter().all(|(_, right)| *right)));
        match counted {
            Counted::Conversation(name) => metrics.add(name, all(targets), 1.0),
            Counted::Verdict(name, about) => {
                metrics.add(name, all(targets), 1.0);
                let verdict = targets.iter().any(|&(place, right)| right && self.is_first(place));
                for name in ["verdict", about] {
                    metrics.add(name, f64::from(u8::from(verdict)), 1.0);
                }
            }
            Counted::Answers => {
                // What is learned of a conversation is its answers, with questions between them.
                for answer in targets.chunk_by(|(before, _), (place, _)| before + 1 == *place) {
                    metrics.add("exact", all(answer), 1.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gpt4roi::{
        prompt::{Piece, Round},
        tokenizer::Tokenizer,
    };
    use gpt4roi_data::{Transcript, pack};
    use rand_chacha::rand_core::SeedableRng;

    use super::*;
    use crate::tiny;

    /// Two conversations, the first of two rounds.
    fn lesson(tokenizer: &Tokenizer, counted: [Counted; 2]) -> Lesson {
        let round = |question: &str, answer: &str| Round {
            question: vec![Piece::Text(question.into())],
            answer: Some(answer.into()),
        };
        let of = |rounds: Vec<Round>| Transcript { rounds, boxes: Vec::new() };
        let transcripts = [
            of(vec![round("Is it a cat?", "No, it is a dog."), round("Is it large?", "Yes.")]),
            of(vec![round("What is in the picture?", "A dog.")]),
        ];
        let packed = pack(&transcripts, tokenizer, 4, 1).unwrap();
        let (picture, rng) = (Sight::Drawn(tiny::picture(28)), ChaCha8Rng::seed_from_u64(1));
        Lesson { picture, packed, counted: counted.into(), kinds: Vec::new(), whole: true, rng }
    }

    #[test]
    fn first_tokens_count_as_told() {
        let lesson = lesson(&tiny::tokenizer(), [Counted::Answers; 2]);
        let firsts: Vec<bool> = lesson.places().map(|place| lesson.is_first(place)).collect();
        assert_eq!(firsts.len() as f64, lesson.targets());
        assert_eq!(firsts.iter().filter(|first| **first).count(), 3, "one for each round");
        let weights = lesson.weights(3.0);
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let spoken = |place: &usize| lesson.packed.targets[place - 1] && lesson.packed.targets[place - 2];
        assert!(lesson.packed.answers.iter().all(spoken), "`Assistant` and `:` stand before the words");
        let of = |wanted: bool| weights[firsts.iter().position(|first| *first == wanted).unwrap()];
        assert!((of(true) / of(false) - 3.0).abs() < 1e-5);
    }

    /// The last token of the first answer is wrong.
    #[test]
    fn answers_are_counted_each_or_together() {
        let tokenizer = tiny::tokenizer();
        let means = |counted| {
            let lesson = lesson(&tokenizer, counted);
            let places: Vec<usize> = lesson.places().collect();
            let end = places.windows(2).position(|pair| pair[0] + 1 != pair[1]).unwrap();
            let right: Vec<bool> = (0..places.len()).map(|target| target != end).collect();
            let mut metrics = Metrics::default();
            lesson.score(&right, &mut metrics);
            let means = metrics.means();
            let tokens = places.len() as f64;
            assert!((means["token_accuracy"] - (tokens - 1.0) / tokens).abs() < 1e-12);
            means
        };
        assert!((means([Counted::Answers; 2])["exact"] - 2.0 / 3.0).abs() < 1e-12);
        let together = means([Counted::Verdict("yes_no", "verdict_kind"), Counted::Conversation("picture")]);
        assert_eq!((together["yes_no"], together["picture"]), (0.0, 1.0));
        assert_eq!((together["verdict"], together["verdict_kind"]), (1.0, 1.0), "the first words are right");
    }
}
