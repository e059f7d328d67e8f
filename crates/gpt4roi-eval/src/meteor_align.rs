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
///
/// Captions may have thousands of words, of which every `the` could stand for every other. So steps are compared before
/// any is taken, and what paths have in common is kept once.
pub(crate) fn align(candidates: &Candidates) -> Alignment {
    let settled = settled(candidates);
    let mut chosen = Vec::new();
    let mut paths = vec![Path::new(candidates.prediction_words(), &settled)];
    for (at, place) in candidates.places().iter().enumerate() {
        let mut steps = Vec::new();
        for (from, path) in paths.iter().enumerate() {
            path.steps(at, settled[at], place, |state, found| steps.push(Step { from, state, found }));
        }
        // Sorting is stable, so of equals the first one wins, here and at the end.
        steps.sort_by_key(|step| step.state.rank());
        steps.truncate(BEAM);
        paths = steps.into_iter().map(|step| paths[step.from].after(step, &mut chosen)).collect();
    }
    paths.iter_mut().for_each(|path| path.state.close_chunk());
    let best = paths.into_iter().min_by_key(|path| path.state.rank());
    let mut matches = settled;
    let mut last = best.and_then(|path| path.chosen);
    while let Some(Chosen { found, before }) = last.map(|last| chosen[last]) {
        matches[found.reference.start] = Some(found);
        last = before;
    }
    Alignment(matches)
}

/// Per word of the reference the match that begins there, if none of its words has an alternative.
fn settled(candidates: &Candidates) -> Vec<Option<Match>> {
    let (mut for_predicted, mut for_referred) =
        (vec![0; candidates.prediction_words()], vec![0; candidates.places().len()]);
    for found in candidates.places().iter().flatten() {
        for_predicted[found.prediction.range()].iter_mut().for_each(|count| *count += 1);
        for_referred[found.reference.range()].iter_mut().for_each(|count| *count += 1);
    }
    let sole = |counts: &[usize], span: Span| counts[span.range()].iter().all(|count| *count == 1);
    let settled = |place: &Vec<Match>| match place[..] {
        [only] if sole(&for_predicted, only.prediction) && sole(&for_referred, only.reference) => Some(only),
        _ => None,
    };
    candidates.places().iter().map(settled).collect()
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
struct Path {
    state: State,
    /// Which words are matched.
    predicted: Words,
    referred: Words,
    /// The last match that was chosen: where it stands among all that were, on any path.
    chosen: Option<usize>,
}

/// What the search compares, and goes on with.
#[derive(Clone, Copy, Default)]
struct State {
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

/// What one more word of the reference makes of a path.
struct Step {
    /// Which path.
    from: usize,
    state: State,
    /// The match that is chosen, if one is.
    found: Option<Match>,
}

/// A match that was chosen, behind another one.
#[derive(Clone, Copy)]
struct Chosen {
    found: Match,
    before: Option<usize>,
}

impl Path {
    /// Takes what is settled.
    fn new(prediction_words: usize, settled: &[Option<Match>]) -> Self {
        let (predicted, referred) = (Words::none_of(prediction_words), Words::none_of(settled.len()));
        let mut path = Self { state: State::default(), predicted, referred, chosen: None };
        settled.iter().flatten().for_each(|&found| path.mark_used(found));
        path
    }

    /// Tells the steps that one more word of the reference allows.
    fn steps(&self, at: usize, settled: Option<Match>, place: &[Match], mut tell: impl FnMut(State, Option<Match>)) {
        let mut state = self.state;
        if at < state.at {
            // The word is part of a phrase that is matched already.
            return tell(state, None);
        }
        if let Some(settled) = settled {
            state.take(settled);
            state.distance += distance(settled);
            return tell(state, None);
        }
        for &found in place.iter().filter(|found| !self.is_used(**found)) {
            let mut matched = state;
            matched.take(found);
            tell(matched, Some(found));
            // METEOR adds the distance to the path that was left, so that it counts for those after this one.
            state.distance += distance(found);
        }
        state.close_chunk();
        state.at += 1;
        tell(state, None);
    }

    /// The path behind a step.
    fn after(&self, Step { state, found, .. }: Step, all: &mut Vec<Chosen>) -> Self {
        let (predicted, referred) = (self.predicted.clone(), self.referred.clone());
        let mut path = Self { state, predicted, referred, chosen: self.chosen };
        if let Some(found) = found {
            path.mark_used(found);
            path.chosen = Some(all.len());
            all.push(Chosen { found, before: self.chosen });
        }
        path
    }

    fn is_used(&self, found: Match) -> bool {
        self.predicted.has_any(found.prediction) || self.referred.has_any(found.reference)
    }

    fn mark_used(&mut self, found: Match) {
        self.predicted.add(found.prediction);
        self.referred.add(found.reference);
    }
}

impl State {
    /// Better ones rank lower.
    fn rank(&self) -> (Reverse<usize>, usize, usize) {
        (Reverse(self.weight), self.chunks, self.distance)
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
}

/// Some of a caption's words, a bit for each.
#[derive(Clone)]
struct Words(Vec<u64>);

impl Words {
    fn none_of(words: usize) -> Self {
        Self(vec![0; words.div_ceil(64)])
    }

    fn has_any(&self, span: Span) -> bool {
        span.range().any(|word| self.0[word / 64] >> (word % 64) & 1 == 1)
    }

    fn add(&mut self, span: Span) {
        span.range().for_each(|word| self.0[word / 64] |= 1 << (word % 64));
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

    /// With every path copied as a whole, and for every word that could stand for another, this took minutes.
    #[test]
    fn captions_may_have_thousands_of_words() {
        let caption = |order: &mut dyn Iterator<Item = usize>| -> String {
            order.map(|number| format!("the thing{number} of ")).collect()
        };
        let (matches, chunks) = aligned(&caption(&mut (0..1000)), &caption(&mut (0..1000).rev()));
        // Every word has its like on the other side, and no two follow each other on both but `the` before a thing and
        // `of` behind it.
        assert_eq!(matches.len(), 3000);
        assert!((1000..=3000).contains(&chunks), "{chunks}");
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
