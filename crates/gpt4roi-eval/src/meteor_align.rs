//! METEOR's alignment: which word of a prediction stands for which word of a reference.
//!
//! A beam search from left to right through the reference, which prefers more equal words, then fewer pieces, then
//! words close to their place. It is METEOR 1.5's own down to its oddities, as ties are common and decide the number
//! of pieces; each is marked where it stands.

use std::cmp::Reverse;

/// How many alignments are kept at every word.
const BEAM: usize = 40;

/// The alignment of two captions: a match, or none, for each word of the reference.
#[derive(Debug)]
pub(crate) struct Alignment(Vec<Option<Match>>);

/// Two words that stand for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) prediction: usize,
    pub(crate) reference: usize,
    /// 0 if they are equal, 1 if their stems are.
    pub(crate) stage: usize,
}

/// Aligns a prediction with a reference.
pub(crate) fn align(prediction: &[String], reference: &[String], stem: impl Fn(&str) -> String) -> Alignment {
    let candidates = candidates(prediction, reference, stem);
    let mut paths = vec![Path::new(&candidates, prediction.len())];
    for place in &candidates {
        paths.sort_by_key(Path::rank);
        paths.truncate(BEAM);
        paths = paths.into_iter().flat_map(|path| path.extend(place)).collect();
    }
    for path in &mut paths {
        path.close_chunk();
    }
    // Sorting is stable, so of equals the first one wins, here and there.
    let best = paths.into_iter().min_by_key(Path::rank);
    Alignment(best.map(|path| path.matches).unwrap_or_default())
}

impl Alignment {
    pub(crate) fn pairs(&self) -> impl Iterator<Item = Match> {
        self.0.iter().flatten().copied()
    }

    /// Pieces whose words follow each other on both sides.
    pub(crate) fn chunks(&self) -> usize {
        let follows = |pair: &[Option<Match>]| matches!(pair, [Some(a), Some(b)] if b.prediction == a.prediction + 1);
        self.pairs().count() - self.0.windows(2).filter(|pair| follows(pair)).count()
    }
}

/// For each word of the reference the words of the prediction that could stand for it: equal ones first.
fn candidates(prediction: &[String], reference: &[String], stem: impl Fn(&str) -> String) -> Vec<Vec<Match>> {
    // Equal captions need no stems.
    let stems = |words: &[String]| words.iter().map(|word| stem(word)).collect::<Vec<_>>();
    let (said, wanted) =
        if prediction == reference { Default::default() } else { (stems(prediction), stems(reference)) };
    let of = |at: usize| {
        let pairs = |stage| move |said: usize| Match { prediction: said, reference: at, stage };
        let equal = (0..prediction.len()).filter(move |said| prediction[*said] == reference[at]).map(pairs(0));
        let alike =
            (0..said.len()).filter(|said_at| prediction[*said_at] != reference[at] && said[*said_at] == wanted[at]);
        equal.chain(alike.map(pairs(1))).collect()
    };
    (0..reference.len()).map(of).collect()
}

/// An alignment up to some word of the reference.
#[derive(Clone)]
struct Path {
    matches: Vec<Option<Match>>,
    used: Vec<bool>,
    at: usize,
    /// Matches of equal words. Those of equal stems weigh a half, which METEOR's whole numbers round away.
    equal: usize,
    /// Pieces that have ended.
    chunks: usize,
    distance: usize,
    /// The word of the prediction that would go on with the open piece.
    next: Option<usize>,
}

impl Path {
    /// Takes what has no alternative on either side.
    fn new(candidates: &[Vec<Match>], predicted: usize) -> Self {
        let mut wanted = vec![0; predicted];
        candidates.iter().flatten().for_each(|found| wanted[found.prediction] += 1);
        let settled = |place: &Vec<Match>| match place[..] {
            [only] if wanted[only.prediction] == 1 => Some(only),
            _ => None,
        };
        let matches: Vec<_> = candidates.iter().map(settled).collect();
        let mut used = vec![false; predicted];
        matches.iter().flatten().for_each(|found| used[found.prediction] = true);
        Self { matches, used, at: 0, equal: 0, chunks: 0, distance: 0, next: None }
    }

    /// Better paths rank lower.
    fn rank(&self) -> (Reverse<usize>, usize, usize) {
        (Reverse(self.equal), self.chunks, self.distance)
    }

    /// The paths that one more word of the reference leads to.
    fn extend(mut self, place: &[Match]) -> Vec<Self> {
        if let Some(settled) = self.matches[self.at] {
            self.take(settled);
            self.distance += distance(settled);
            return vec![self];
        }
        let mut paths = Vec::new();
        for &found in place {
            if !self.used[found.prediction] {
                let mut path = self.clone();
                path.used[found.prediction] = true;
                path.matches[path.at] = Some(found);
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
        self.equal += usize::from(found.stage == 0);
        if self.next.is_some_and(|next| next != found.prediction) {
            self.chunks += 1;
        }
        self.next = Some(found.prediction + 1);
        self.at += 1;
    }

    fn close_chunk(&mut self) {
        self.chunks += usize::from(self.next.take().is_some());
    }
}

fn distance(found: Match) -> usize {
    found.prediction.abs_diff(found.reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aligned(prediction: &str, reference: &str) -> (Vec<(usize, usize)>, usize) {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let stem = |word: &str| word.trim_end_matches('s').to_owned();
        let alignment = align(&words(prediction), &words(reference), stem);
        (alignment.pairs().map(|found| (found.prediction, found.reference)).collect(), alignment.chunks())
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
}
