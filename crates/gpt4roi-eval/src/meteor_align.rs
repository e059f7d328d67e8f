//! METEOR's alignment: which words of a prediction stand for which words of a reference.
//!
//! A beam search from left to right through the reference, which prefers more equal words, then fewer pieces, then
//! words close to their place. It is METEOR 1.5's own down to its oddities, as ties are common and decide the number
//! of pieces; each is marked where it stands.

use std::cmp::Reverse;

use crate::meteor_match::{Candidates, Match, Span, Stage};

/// How many alignments are kept at every word.
const BEAM: usize = 40;

/// The alignment of two captions: at each word of the reference the match that begins there, if one does.
#[derive(Debug)]
pub(crate) struct Alignment(Vec<Option<Match>>);

/// Chooses among what could stand for what.
pub(crate) fn align(candidates: &Candidates) -> Alignment {
    let mut paths = vec![Path::new(candidates)];
    for (at, place) in candidates.places().iter().enumerate() {
        keep_best(&mut paths);
        paths = paths.into_iter().flat_map(|path| path.extend(at, place)).collect();
    }
    keep_best(&mut paths);
    paths.iter_mut().for_each(Path::close_chunk);
    let best = paths.into_iter().min_by_key(Path::rank);
    Alignment(best.map(|path| path.matches).unwrap_or_default())
}

/// Sorting is stable, so of equals the first one wins, here and there.
fn keep_best(paths: &mut Vec<Path>) {
    paths.sort_by_key(Path::rank);
    paths.truncate(BEAM);
}

impl Alignment {
    /// Matches in the order of the reference.
    pub(crate) fn matches(&self) -> impl Iterator<Item = Match> {
        self.0.iter().flatten().copied()
    }

    /// Pieces whose words follow each other on both sides.
    pub(crate) fn chunks(&self) -> usize {
        let follows = |(a, b): &(Match, Match)| {
            (a.prediction.end(), a.reference.end()) == (b.prediction.start, b.reference.start)
        };
        self.matches().count() - self.matches().zip(self.matches().skip(1)).filter(follows).count()
    }
}

/// An alignment up to some word of the reference.
#[derive(Clone)]
struct Path {
    matches: Vec<Option<Match>>,
    predicted: Vec<bool>,
    referred: Vec<bool>,
    /// The word of the reference to go on with: all before it is matched or left out.
    at: usize,
    /// Matched words of both sides, as the search weighs them.
    weight: usize,
    /// Pieces that have ended.
    chunks: usize,
    distance: usize,
    /// The word of the prediction that would go on with the open piece.
    next: Option<usize>,
}

impl Path {
    /// Takes what has no alternative for any of its words.
    fn new(candidates: &Candidates) -> Self {
        let (predicted, referred) = (candidates.prediction_words(), candidates.places().len());
        let (mut for_predicted, mut for_referred) = (vec![0; predicted], vec![0; referred]);
        for found in candidates.places().iter().flatten() {
            for_predicted[found.prediction.range()].iter_mut().for_each(|count| *count += 1);
            for_referred[found.reference.range()].iter_mut().for_each(|count| *count += 1);
        }
        let sole = |counts: &[usize], span: Span| counts[span.range()].iter().all(|count| *count == 1);
        let settled = |place: &Vec<Match>| match place[..] {
            [only] if sole(&for_predicted, only.prediction) && sole(&for_referred, only.reference) => Some(only),
            _ => None,
        };
        let matches: Vec<_> = candidates.places().iter().map(settled).collect();
        let (predicted, referred) = (vec![false; predicted], vec![false; referred]);
        let mut path = Self { predicted, referred, at: 0, weight: 0, chunks: 0, distance: 0, next: None, matches };
        for found in path.matches.clone().into_iter().flatten() {
            path.mark_used(found);
        }
        path
    }

    /// Better paths rank lower.
    fn rank(&self) -> (Reverse<usize>, usize, usize) {
        (Reverse(self.weight), self.chunks, self.distance)
    }

    /// The paths that one more word of the reference leads to.
    fn extend(mut self, at: usize, place: &[Match]) -> Vec<Self> {
        if at < self.at {
            // The word is part of a phrase that is matched already.
            return vec![self];
        }
        if let Some(settled) = self.matches[at] {
            self.take(settled);
            self.distance += distance(settled);
            return vec![self];
        }
        let mut paths = Vec::new();
        for &found in place {
            if !self.is_used(found) {
                let mut path = self.clone();
                path.mark_used(found);
                path.matches[at] = Some(found);
                path.take(found);
                paths.push(path);
                // METEOR adds the distance to the path that was left, so that it counts for those after this one.
                self.distance += distance(found);
            }
        }
        self.close_chunk();
        self.at += 1;
        paths.push(self);
        paths
    }

    fn take(&mut self, found: Match) {
        self.weight += weight(found.stage, found.prediction) + weight(found.stage, found.reference);
        if self.next.is_some_and(|next| next != found.prediction.start) {
            self.chunks += 1;
        }
        self.next = Some(found.prediction.end());
        self.at = found.reference.end();
    }

    fn close_chunk(&mut self) {
        self.chunks += usize::from(self.next.take().is_some());
    }

    fn is_used(&self, found: Match) -> bool {
        self.predicted[found.prediction.range()].contains(&true)
            || self.referred[found.reference.range()].contains(&true)
    }

    fn mark_used(&mut self, found: Match) {
        self.predicted[found.prediction.range()].fill(true);
        self.referred[found.reference.range()].fill(true);
    }
}

/// What matched words count in the search. Words that are not equal count half, in whole numbers: a single one nothing.
fn weight(stage: Stage, span: Span) -> usize {
    if stage == Stage::Exact { span.words } else { span.words / 2 }
}

fn distance(found: Match) -> usize {
    found.prediction.start.abs_diff(found.reference.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meteor_match::Matcher;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn aligned(prediction: &str, reference: &str) -> (Vec<(usize, usize)>, usize) {
        let (prediction, reference) = (words(prediction), words(reference));
        let alignment = align(&Matcher::new(None).candidates(&prediction, &reference));
        let pair = |found: Match| (found.prediction.start, found.reference.start);
        (alignment.matches().map(pair).collect(), alignment.chunks())
    }

    #[test]
    fn pieces_follow_each_other_on_both_sides() {
        assert_eq!(aligned("a b c d", "c d a b"), (vec![(2, 0), (3, 1), (0, 2), (1, 3)], 2));
        assert_eq!(aligned("a b", "a x b"), (vec![(0, 0), (1, 2)], 2));
        assert_eq!(aligned("a x", "b y"), (vec![], 0));
    }

    #[test]
    fn of_equal_words_those_are_taken_that_make_fewer_pieces() {
        // The second `the` goes on with `dog`, although the first is closer to its place.
        assert_eq!(aligned("the cat the dog", "the dog"), (vec![(2, 0), (3, 1)], 1));
    }

    #[test]
    fn a_stem_is_matched_where_nothing_else_could_be() {
        assert_eq!(aligned("two cats", "two cat"), (vec![(0, 0), (1, 1)], 1));
    }

    /// Two words of the prediction, from `prediction` on, for some of the reference.
    fn pair(prediction: usize, reference: usize, words: usize) -> Match {
        let stage = Stage::Paraphrase;
        Match { prediction: Span { start: prediction, words: 2 }, reference: Span { start: reference, words }, stage }
    }

    #[test]
    fn phrases_that_follow_each_other_are_one_piece() {
        // `p q | r s` for `x | y z w`: one and three words, which nothing else could stand for.
        let mut candidates = Candidates::new(4, 4);
        candidates.add(pair(0, 0, 1));
        candidates.add(pair(2, 1, 3));
        let alignment = align(&candidates);
        assert_eq!(alignment.matches().collect::<Vec<_>>(), [pair(0, 0, 1), pair(2, 1, 3)]);
        assert_eq!(alignment.chunks(), 1);
    }

    #[test]
    fn a_phrase_leaves_its_words_to_no_other() {
        // Two phrases want the second word of the reference. Counted in halves, the first weighs 1 + 1, the other 1 + 0.
        let mut candidates = Candidates::new(4, 3);
        candidates.add(pair(0, 0, 2));
        candidates.add(pair(2, 1, 1));
        assert_eq!(align(&candidates).matches().collect::<Vec<_>>(), [pair(0, 0, 2)]);
    }
}
