//! All conversations about one picture as one sequence.
//!
//! The beginning of a conversation, up to and including the picture, is the same for all: it stands
//! there once, as a prefix, and what follows in each conversation is a branch. A token sees the prefix
//! and its own branch; positions count on from the prefix in every branch. So each branch is computed
//! exactly as if its conversation stood alone, and the picture's 256 tokens are computed once.

use std::{ops::Range, sync::Arc};

use gpt4roi::{
    bbox::{BBox, RegionId},
    layers::AttentionMask,
    prompt::{self, Encoded, Round, TextMode},
    tokenizer::Tokenizer,
};

use crate::{error::DataError, questions::Conversation};

/// What was said in one conversation about a picture, and where the regions are that it mentions.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcript {
    /// Questions with their answers.
    pub rounds: Vec<Round>,
    /// The boxes by the numbers of the regions; more than are mentioned do no harm.
    pub boxes: Vec<(RegionId, BBox)>,
}

impl From<&Conversation> for Transcript {
    fn from(conversation: &Conversation) -> Self {
        let boxes = conversation.regions.iter().map(|&(id, bbox, _)| (id, bbox)).collect();
        Self { rounds: conversation.rounds.clone(), boxes }
    }
}

/// Conversations about one picture, ready for the model.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Token ids: the prefix, then branch after branch.
    pub ids: Vec<u32>,
    /// The position of each token in its own conversation.
    pub positions: Vec<u32>,
    /// For each token, whether the model learns to write it.
    pub targets: Vec<bool>,
    /// For each target, in order, the token whose hidden state predicts it: the one before it in its
    /// branch, or the prefix's last.
    pub predictors: Vec<usize>,
    /// Where the words of each answer begin, ascending.
    pub answers: Vec<usize>,
    /// Which tokens see which.
    pub mask: AttentionMask,
    /// Where the picture's patches stand.
    pub patches: Range<usize>,
    /// The boxes, each once.
    pub boxes: Vec<BBox>,
    /// Where which vector goes: place in `ids`, row of the vectors of all boxes, which are as many per box as a
    /// region has tokens.
    pub regions: Vec<(u32, usize)>,
    /// Where each conversation's branch stands, in the order given.
    pub branches: Vec<Range<usize>>,
}

impl Packed {
    /// The ids that the predictors should predict, in the same order.
    pub fn target_ids(&self) -> Vec<u32> {
        self.ids.iter().zip(&self.targets).filter(|(_, target)| **target).map(|(id, _)| *id).collect()
    }

    /// Tokens that all branches share.
    pub fn prefix(&self) -> usize {
        self.branches.first().map_or(self.ids.len(), |branch| branch.start)
    }

    /// The same without the picture's patches. Positions count as if they were there, so that everything else stands
    /// where it stands with them.
    pub fn without_picture(mut self) -> Self {
        let (patches, after) = (self.patches.len(), self.patches.end);
        let moved = |place: usize| if place < after { place } else { place - patches };
        self.ids.drain(self.patches.clone());
        self.positions.drain(self.patches.clone());
        self.targets.drain(self.patches.clone());
        self.predictors.iter_mut().chain(&mut self.answers).for_each(|place| *place = moved(*place));
        self.regions.iter_mut().for_each(|(place, _)| *place = moved(*place as usize) as u32);
        self.branches.iter_mut().for_each(|branch| *branch = moved(branch.start)..moved(branch.end));
        let starts = self.branches.iter().flat_map(|branch| std::iter::repeat_n(branch.start, branch.len()));
        let starts = std::iter::repeat_n(0, self.prefix()).chain(starts).collect();
        self.mask = AttentionMask::Branches { prefix: self.prefix(), starts };
        self.patches.end = self.patches.start;
        self
    }
}

/// Packs conversations about one picture of so many patches, for a model with so many tokens per region.
///
/// # Errors
/// A conversation that can't be rendered or mentions a region without a box, or none at all.
pub fn pack(
    transcripts: &[Transcript],
    tokenizer: &Tokenizer,
    patches: usize,
    region_tokens: usize,
) -> Result<Packed, DataError> {
    let render = |(index, transcript): (usize, &Transcript)| {
        prompt::encode(&transcript.rounds, tokenizer, patches, TextMode::Literal)
            .map(|encoded| encoded.with_region_tokens(region_tokens))
            .map_err(|source| DataError::Prompt { index, source })
    };
    let encoded = transcripts.iter().enumerate().map(render).collect::<Result<Vec<_>, _>>()?;
    let boxes: Vec<Vec<BBox>> = (transcripts.iter().zip(&encoded))
        .enumerate()
        .map(|(index, (transcript, encoded))| boxes_of(index, transcript, encoded))
        .collect::<Result<_, _>>()?;
    pack_encoded(&encoded, &boxes, region_tokens)
}

/// The boxes of a rendered conversation's regions, in the order of first mention.
fn boxes_of(index: usize, transcript: &Transcript, encoded: &Encoded) -> Result<Vec<BBox>, DataError> {
    let find = |id| transcript.boxes.iter().find(|(other, _)| *other == id).map(|(_, bbox)| *bbox);
    let missing = |id| DataError::Packing(format!("conversation {index}: expected a box for {id}, got none"));
    encoded.regions.iter().map(|(_, id)| find(*id).ok_or_else(|| missing(*id))).collect()
}

/// Packs rendered conversations; `boxes` has one for each of their regions' tokens.
fn pack_encoded(encoded: &[Encoded], boxes: &[Vec<BBox>], region_tokens: usize) -> Result<Packed, DataError> {
    let prefix = shared_prefix(encoded)?;
    let first = &encoded[0];
    let mut packed = Packed {
        ids: first.ids[..prefix].to_vec(),
        positions: (0..prefix as u32).collect(),
        targets: first.targets[..prefix].to_vec(),
        predictors: Vec::new(),
        answers: Vec::new(),
        mask: AttentionMask::Causal,
        patches: first.patches.clone(),
        boxes: Vec::new(),
        regions: Vec::new(),
        branches: Vec::new(),
    };
    let mut starts = vec![0; prefix];
    for (conversation, boxes) in encoded.iter().zip(boxes) {
        let start = packed.ids.len();
        packed.append(conversation, boxes, prefix, region_tokens);
        starts.resize(packed.ids.len(), start);
    }
    packed.mask = AttentionMask::Branches { prefix, starts: Arc::from(starts) };
    Ok(packed)
}

impl Packed {
    fn append(&mut self, conversation: &Encoded, boxes: &[BBox], prefix: usize, region_tokens: usize) {
        let start = self.ids.len();
        self.ids.extend(&conversation.ids[prefix..]);
        self.positions.extend(prefix as u32..conversation.ids.len() as u32);
        self.targets.extend(&conversation.targets[prefix..]);
        for (offset, _) in conversation.targets[prefix..].iter().enumerate().filter(|(_, target)| **target) {
            self.predictors.push(if offset == 0 { prefix - 1 } else { start + offset - 1 });
        }
        self.answers.extend(conversation.answers.iter().map(|place| place - prefix + start));
        for (token, ((place, _), bbox)) in conversation.regions.iter().zip(boxes).enumerate() {
            let known = self.boxes.iter().position(|other| other == bbox);
            let index = known.unwrap_or_else(|| {
                self.boxes.push(*bbox);
                self.boxes.len() - 1
            });
            let row = index * region_tokens + token % region_tokens;
            self.regions.push((place + (start - prefix) as u32, row));
        }
        self.branches.push(start..self.ids.len());
    }
}

/// The length of the longest common beginning that holds the picture and no region and no target:
/// those belong to one conversation even where the ids agree.
fn shared_prefix(encoded: &[Encoded]) -> Result<usize, DataError> {
    let Some(first) = encoded.first() else {
        return Err(DataError::Packing("expected at least one conversation, got none".into()));
    };
    let mut length = first.ids.len();
    for other in encoded {
        let common = first.ids.iter().zip(&other.ids).take_while(|(a, b)| a == b).count();
        let target = other.targets.iter().position(|target| *target).unwrap_or(usize::MAX);
        let region = other.regions.first().map_or(usize::MAX, |(place, _)| *place as usize);
        length = length.min(common).min(target).min(region);
    }
    if length < first.patches.end || encoded.iter().any(|other| other.patches != first.patches) {
        return Err(DataError::Packing("expected the same picture at the same place in all conversations".into()));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(tail: &[u32], targets: &[u32], region: Option<u32>) -> Encoded {
        let ids: Vec<u32> = [1, 10, 90, 90, 11].iter().chain(tail).copied().collect();
        Encoded {
            targets: ids.iter().map(|id| targets.contains(id)).collect(),
            answers: ids.iter().position(|id| targets.contains(id)).into_iter().collect(),
            ids,
            patches: 2..4,
            regions: region.map(|place| (place, RegionId(3))).into_iter().collect(),
        }
    }

    fn bbox(x1: f64) -> BBox {
        BBox::from_normalized([x1, 0.0, 1.0, 1.0]).expect("a box")
    }

    #[test]
    fn branches_restart_behind_the_prefix() {
        // Two questions that begin alike (20), one with a region (80), answered by 30 and by 40, 41.
        let conversations = [encoded(&[20, 80, 30], &[30], Some(6)), encoded(&[20, 21, 40, 41], &[40, 41], None)];
        let packed = pack_encoded(&conversations, &[vec![bbox(0.5)], vec![]], 1).expect("packs");
        assert_eq!(packed.ids, [1, 10, 90, 90, 11, 20, 80, 30, 21, 40, 41]);
        assert_eq!(packed.positions, [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8]);
        assert_eq!(packed.target_ids(), [30, 40, 41]);
        assert_eq!((packed.predictors, packed.answers), (vec![6, 8, 9], vec![7, 9]));
        assert_eq!(packed.regions, [(6, 0)]);
        assert_eq!(packed.branches, [6..8, 8..11]);
        assert_eq!(packed.patches, 2..4);
        let AttentionMask::Branches { prefix, starts } = &packed.mask else { panic!("expected branches") };
        assert_eq!((*prefix, &starts[6..]), (6, &[6, 6, 8, 8, 8][..]));
        // Token 9 sees the prefix and its own branch up to itself.
        assert_eq!(packed.mask.visible(9, 11, 11), (0..6, 8..10));
    }

    #[test]
    fn a_picture_left_out_leaves_its_positions() {
        let conversations = [encoded(&[20, 80, 30], &[30], Some(6)), encoded(&[20, 21, 40, 41], &[40, 41], None)];
        let packed = pack_encoded(&conversations, &[vec![bbox(0.5)], vec![]], 1).expect("packs").without_picture();
        assert_eq!(packed.ids, [1, 10, 11, 20, 80, 30, 21, 40, 41]);
        assert_eq!(packed.positions, [0, 1, 4, 5, 6, 7, 6, 7, 8]);
        assert_eq!(packed.target_ids(), [30, 40, 41]);
        assert_eq!((packed.predictors, packed.answers), (vec![4, 6, 7], vec![5, 7]));
        assert_eq!((packed.regions, packed.patches), (vec![(4, 0)], 2..2));
        assert_eq!(packed.branches, [4..6, 6..9]);
        let AttentionMask::Branches { prefix, starts } = &packed.mask else { panic!("expected branches") };
        assert_eq!((*prefix, &starts[..]), (4, &[0, 0, 0, 0, 4, 4, 6, 6, 6][..]));
    }

    /// Two tokens per region: the second box, mentioned twice, has rows 2 and 3.
    #[test]
    fn each_token_of_a_region_has_a_row_of_its_own() {
        let two = |region| encoded(&[20, 80, 30], &[30], Some(region)).with_region_tokens(2);
        let boxes = [vec![bbox(0.5); 2], vec![bbox(0.25); 2], vec![bbox(0.25); 2]];
        let packed = pack_encoded(&[two(6), two(6), two(6)], &boxes, 2).expect("packs");
        assert_eq!(packed.boxes.len(), 2);
        let rows: Vec<usize> = packed.regions.iter().map(|(_, row)| *row).collect();
        assert_eq!(rows, [0, 1, 2, 3, 2, 3]);
        assert!(packed.regions.iter().all(|(place, _)| packed.ids[*place as usize] == 80));
    }

    #[test]
    fn regions_and_targets_are_never_shared() {
        let alike = [encoded(&[80, 30], &[30], Some(5)), encoded(&[80, 30], &[30], Some(5))];
        let packed = pack_encoded(&alike, &[vec![bbox(0.5)], vec![bbox(0.25)]], 1).expect("packs");
        assert_eq!(packed.prefix(), 5);
        assert_eq!(packed.regions, [(5, 0), (7, 1)]);
        let same_box = pack_encoded(&alike, &[vec![bbox(0.5)], vec![bbox(0.5)]], 1).expect("packs");
        assert_eq!((same_box.boxes.len(), same_box.regions), (1, vec![(5, 0), (7, 0)]));
        let answer_first = [encoded(&[30], &[30], None), encoded(&[30], &[30], None)];
        let packed = pack_encoded(&answer_first, &[vec![], vec![]], 1).expect("packs");
        assert_eq!((packed.prefix(), packed.predictors), (5, vec![4, 4]));
    }

    #[test]
    fn other_pictures_and_none_are_refused() {
        assert!(matches!(pack_encoded(&[], &[], 1), Err(DataError::Packing(_))));
        let mut other = encoded(&[20], &[], None);
        other.ids[1] = 12;
        assert!(matches!(
            pack_encoded(&[encoded(&[20], &[], None), other], &[vec![], vec![]], 1),
            Err(DataError::Packing(_))
        ));
    }

    #[test]
    fn a_mention_without_a_box_is_refused() {
        let tokenizer = include_bytes!("../../../models/nano/tokenizer.model");
        let added = include_str!("../../../models/nano/added_tokens.json");
        let tokenizer = Tokenizer::from_bytes(tokenizer, added).expect("the vocabulary is sound");
        let round = Round { question: vec![prompt::Piece::Region(RegionId(2))], answer: Some("A cat.".into()) };
        let transcript = |id| Transcript { rounds: vec![round.clone()], boxes: vec![(RegionId(id), bbox(0.5))] };
        assert_eq!(pack(&[transcript(2)], &tokenizer, 4, 1).expect("packs").boxes, [bbox(0.5)]);
        let error = pack(&[transcript(2), transcript(1)], &tokenizer, 4, 1).expect_err("no box for region 2");
        assert!(error.to_string().contains("conversation 1: expected a box for <region2>"), "{error}");
    }

    /// With the embedded model's vocabulary, every conversation can be read off its branch again.
    #[test]
    fn a_branch_behind_the_prefix_is_its_conversation() {
        use crate::{QuestionMix, Questions, SceneConfig, Scenes};

        let model = include_bytes!("../../../models/nano/tokenizer.model");
        let added = include_str!("../../../models/nano/added_tokens.json");
        let tokenizer = Tokenizer::from_bytes(model, added).expect("the vocabulary is sound");
        let scenes =
            Scenes::new(SceneConfig { kinds: 30, ..SceneConfig::default() }.resized(96)).expect("settings are sound");
        let questions =
            Questions::new(QuestionMix { jitter: 0.1, ..QuestionMix::default() }, scenes.kinds()).expect("sound");
        let conversations = questions.ask(&scenes.scene(2), &mut scenes.question_rng(2));
        let transcripts: Vec<Transcript> = conversations.iter().map(Transcript::from).collect();
        let packed = pack(&transcripts, &tokenizer, 256, 1).expect("packs");
        let prefix = packed.prefix();
        assert_eq!((packed.patches.len(), packed.target_ids().len()), (256, packed.predictors.len()));
        assert_eq!(packed.ids.len(), packed.branches.last().expect("a branch").end);
        for (conversation, branch) in conversations.iter().zip(&packed.branches) {
            let alone = prompt::encode(&conversation.rounds, &tokenizer, 256, TextMode::Literal).expect("renders");
            assert_eq!([&packed.ids[..prefix], &packed.ids[branch.clone()]].concat(), alone.ids);
            assert_eq!([&packed.targets[..prefix], &packed.targets[branch.clone()]].concat(), alone.targets);
            let positions: Vec<u32> = (prefix as u32..alone.ids.len() as u32).collect();
            assert_eq!(packed.positions[branch.clone()], positions);
            let boxes: Vec<BBox> = (packed.regions.iter())
                .filter(|(place, _)| branch.contains(&(*place as usize)))
                .map(|(_, index)| packed.boxes[*index])
                .collect();
            assert_eq!(boxes, conversation.regions.iter().map(|(_, bbox, _)| *bbox).collect::<Vec<_>>());
            assert!(packed.regions.iter().all(|(place, _)| packed.ids[*place as usize] == tokenizer.special().bbox));
        }
    }
}
