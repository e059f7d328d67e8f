//! Choices as a tree of tokens, and a walk that reads it behind many questions at once.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use candle_core::{Result as TensorResult, Tensor};

use crate::{
    batch::Reading, choices::Scoring, generate::GenerateError, kv_cache::Branch, llama::Llama,
    sampling::LogProbabilities,
};

/// What choices that are given up may come to, all of them together.
const GIVEN_UP: f64 = 1e-4;
/// The tokens of some choices. What several begin with in common stands in it once, so that it is read once.
#[derive(Debug)]
pub(crate) struct ChoiceTree {
    /// The first is the root.
    nodes: Vec<Node>,
    /// The choices in the order of their tokens, in which those behind one node stand together.
    sorted: Vec<usize>,
}

#[derive(Debug)]
struct Node {
    /// What all choices behind it go on with; at least one token but for the root's.
    tokens: Vec<u32>,
    /// How many tokens of the choices come before them.
    depth: usize,
    /// The choices behind it, as places in the order of tokens.
    covers: Range<usize>,
    /// How many of them end with its tokens; they come first.
    ended: usize,
    children: Vec<usize>,
}

impl ChoiceTree {
    /// For the tokens of each choice.
    pub(crate) fn new(scripts: &[Vec<u32>]) -> Self {
        let mut sorted: Vec<usize> = (0..scripts.len()).collect();
        sorted.sort_by(|&a, &b| scripts[a].cmp(&scripts[b]));
        let mut tree = Self { nodes: Vec::new(), sorted };
        let in_order: Vec<&[u32]> = tree.sorted.iter().map(|&choice| &*scripts[choice]).collect();
        tree.grow(&in_order, 0, 0);
        tree
    }

    /// Adds the node of some scripts that are the same up to `depth`, with all that is behind it; returns its place.
    /// `first` is how many scripts come before them.
    fn grow(&mut self, scripts: &[&[u32]], first: usize, depth: usize) -> usize {
        // In their order, what the first and the last have in common, all have.
        let (low, high) =
            (scripts.first().map_or(&[][..], |low| &low[depth..]), scripts.last().copied().unwrap_or(&[]));
        let common = low.iter().zip(&high[depth.min(high.len())..]).take_while(|(low, high)| low == high).count();
        let end = depth + common;
        let ended = scripts.partition_point(|script| script.len() == end);
        let place = self.nodes.len();
        let (tokens, covers) = (low[..common].to_vec(), first..first + scripts.len());
        self.nodes.push(Node { tokens, depth, covers, ended, children: Vec::new() });
        let mut next = first + ended;
        for alike in scripts[ended..].chunk_by(|a, b| a[end] == b[end]) {
            let child = self.grow(alike, next, end);
            self.nodes[place].children.push(child);
            next += alike.len();
        }
        place
    }
}

/// How probable a choice is, as far as it was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    /// The sum of the logarithms of its tokens' probabilities; more tokens only make it smaller.
    pub(crate) log_probability: f64,
    /// Whether that is of all its tokens.
    pub(crate) complete: bool,
}

/// Scores the choices of a tree behind questions, which come and go between steps. Every step reads nodes of all
/// questions in one pass, as many as there is room for, the deepest first, so that few branches have to be kept.
#[derive(Debug)]
pub(crate) struct Walk<'m> {
    llama: &'m Llama,
    tree: Arc<ChoiceTree>,
    scoring: Scoring,
    questions: BTreeMap<usize, Question>,
    added: usize,
    open: Vec<Open>,
}

/// What one step may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Tokens that it reads at most. One node is read in any case.
    pub(crate) tokens: usize,
    /// Bytes of keys and values beyond those of prefixes, what was read before included.
    pub(crate) bytes: usize,
}

/// What became of a question: the scores of its choices, or an error if the model's numbers are none.
pub(crate) type Scores = Result<Vec<Score>, GenerateError>;

#[derive(Debug)]
struct Question {
    scores: Vec<Score>,
    failure: Option<GenerateError>,
}

/// A node that was not read yet. How probable its first token is, is known from what stands before it.
#[derive(Debug)]
struct Open {
    question: usize,
    node: usize,
    log_probability: f64,
    /// What was read before it; its siblings share it.
    behind: Arc<Branch>,
    /// The rest of the question before the root, of which nothing is known: `[1, T, H]`.
    unread: Option<Tensor>,
}

impl<'m> Walk<'m> {
    pub(crate) fn new(llama: &'m Llama, tree: Arc<ChoiceTree>, scoring: Scoring) -> Self {
        Self { llama, tree, scoring, questions: BTreeMap::new(), added: 0, open: Vec::new() }
    }

    /// Adds a question, of which at least the last token is unread; returns its number.
    pub(crate) fn add(&mut self, reading: Reading) -> usize {
        let (branch, unread) = reading.into_parts();
        let scores = vec![Score { log_probability: 0.0, complete: false }; self.tree.sorted.len()];
        let question = self.added;
        self.added += 1;
        let root = Open { question, node: 0, log_probability: 0.0, behind: Arc::new(branch), unread: Some(unread) };
        self.questions.insert(question, Question { scores, failure: None });
        self.open.push(root);
        question
    }

    /// Forgets a question.
    pub(crate) fn end(&mut self, question: usize) {
        self.questions.remove(&question);
        self.open.retain(|open| open.question != question);
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    /// Bytes of keys and values beyond those of prefixes.
    pub(crate) fn bytes(&self) -> usize {
        bytes(self.open.iter())
    }

    /// Reads on, and returns the questions with which it is done, by their numbers. They have left.
    ///
    /// # Errors
    /// If the engine fails; the walk can't go on then.
    pub(crate) fn step(&mut self, room: Room) -> Result<Vec<(usize, Scores)>, GenerateError> {
        let next = self.next(room);
        if !next.is_empty() {
            self.read(next).map_err(|source| GenerateError::Tensor { step: 0, source })?;
        }
        Ok(self.take_done())
    }

    /// Takes out the questions of which no choice that is left can make a difference.
    fn take_done(&mut self) -> Vec<(usize, Scores)> {
        let least = self.least();
        let undecided = self.open.iter().filter(|open| open.log_probability >= least[&open.question]);
        let going: HashSet<usize> = undecided.map(|open| open.question).collect();
        self.open.retain(|open| going.contains(&open.question));
        let done = self.questions.extract_if(.., |question, _| !going.contains(question));
        done.map(|(number, Question { scores, failure })| (number, failure.map_or(Ok(scores), Err))).collect()
    }

    /// Takes out what is to be read next.
    fn next(&mut self, room: Room) -> Vec<Open> {
        let least = self.least();
        let (mut likely, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.open).into_iter().partition(|open| open.log_probability >= least[&open.question]);
        likely.sort_by(|a, b| {
            (b.behind.len().cmp(&a.behind.len())).then(b.log_probability.total_cmp(&a.log_probability))
        });
        let count = self.fitting(&likely, &left, room);
        self.open = left;
        self.open.extend(likely.drain(count..));
        likely
    }

    /// For each question the logarithm of the least probability with which a choice can still make a difference. The
    /// best choice is at most as probable as the best beginning, so that whatever is read has to be read in any order.
    fn least(&self) -> BTreeMap<usize, f64> {
        let least = |question: &Question| match self.scoring {
            Scoring::All => f64::NEG_INFINITY,
            Scoring::Likely => {
                let best = question.scores.iter().map(|score| score.log_probability).fold(f64::NEG_INFINITY, f64::max);
                best + (GIVEN_UP / question.scores.len() as f64).ln()
            }
        };
        self.questions.iter().map(|(&number, question)| (number, least(question))).collect()
    }

    /// How many of them can be read at once, beside what was read and is still needed; at least one.
    fn fitting(&self, likely: &[Open], left: &[Open], room: Room) -> usize {
        let mut bytes = bytes(left.iter().chain(likely));
        let mut tokens = 0;
        let fits = |open: &&Open| {
            let unread = open.unread.as_ref().map_or(0, |unread| unread.dims()[1]);
            let new = unread + self.tree.nodes[open.node].tokens.len();
            tokens += new;
            bytes += open.behind.prefix().bytes_of(open.behind.own().len() + new);
            tokens <= room.tokens && bytes <= room.bytes
        };
        likely.iter().take_while(fits).count().max(1).min(likely.len())
    }

    /// Reads nodes in one pass, and opens what is behind them.
    fn read(&mut self, opens: Vec<Open>) -> TensorResult<()> {
        let mut passages = Vec::with_capacity(opens.len());
        for mut open in opens {
            let passage = self.passage(&mut open)?;
            passages.push((open, passage));
        }
        let mut rows = read(self.llama, passages.iter_mut().map(|(_, passage)| passage))?.into_iter();
        for (open, passage) in passages {
            let logits: Vec<Vec<f32>> = rows.by_ref().take(passage.rows).collect();
            let question = open.question;
            if self.questions.get(&question).is_none_or(|question| question.failure.is_some()) {
                continue;
            }
            if let Err(error) = self.advance(open, passage.branch, &logits) {
                self.open.retain(|open| open.question != question);
                if let Some(question) = self.questions.get_mut(&question) {
                    question.failure = Some(error);
                }
            }
        }
        Ok(())
    }

    /// What is read of a node: all of its tokens if something follows them, else all but the last.
    fn passage(&self, open: &mut Open) -> TensorResult<Passage> {
        let node = &self.tree.nodes[open.node];
        let tokens = &node.tokens[..node.tokens.len().saturating_sub(usize::from(node.children.is_empty()))];
        let mut parts: Vec<Tensor> = open.unread.take().into_iter().collect();
        // Of a question only the last token says something about the choices.
        let rows = parts.len() + tokens.len();
        if !tokens.is_empty() {
            let ids = Tensor::from_slice(tokens, tokens.len(), self.llama.device())?;
            parts.push(self.llama.embed(&ids)?.unsqueeze(0)?);
        }
        Ok(Passage { branch: (*open.behind).clone(), embeds: Tensor::cat(&parts, 1)?, rows })
    }

    /// Takes note of the logits behind a node's tokens, and opens its children.
    ///
    /// # Shapes
    /// logits `[V]` each
    fn advance(&mut self, open: Open, branch: Branch, logits: &[Vec<f32>]) -> Result<(), GenerateError> {
        let (Open { question, node: place, mut log_probability, .. }, tree) = (open, self.tree.clone());
        let node = &tree.nodes[place];
        // The first token of every node but the root was known before.
        let unknown = node.tokens.iter().enumerate().skip(usize::from(place != 0));
        let mut logits = logits.iter();
        for ((index, &token), logits) in unknown.zip(logits.by_ref()) {
            log_probability += log_probabilities(logits, node.depth + index, &[token])?[0];
        }
        self.note(question, place, log_probability);
        let Some(last) = logits.next() else { return Ok(()) };
        let firsts: Vec<u32> = node.children.iter().map(|&child| tree.nodes[child].tokens[0]).collect();
        let more = log_probabilities(last, node.depth + node.tokens.len(), &firsts)?;
        let behind = Arc::new(branch);
        for (&node, more) in node.children.iter().zip(more) {
            let log_probability = log_probability + more;
            self.open(Open { question, node, log_probability, behind: behind.clone(), unread: None });
        }
        Ok(())
    }

    /// A node of which nothing has to be read is known at once.
    fn open(&mut self, open: Open) {
        let node = &self.tree.nodes[open.node];
        if node.tokens.len() == 1 && node.children.is_empty() {
            self.note(open.question, open.node, open.log_probability);
        } else {
            self.bound(open.question, open.node, open.log_probability);
            self.open.push(open);
        }
    }

    /// All choices behind a node are at most so probable.
    fn bound(&mut self, question: usize, node: usize, log_probability: f64) {
        let Some(question) = self.questions.get_mut(&question) else { return };
        for &choice in &self.tree.sorted[self.tree.nodes[node].covers.clone()] {
            question.scores[choice].log_probability = log_probability;
        }
    }

    /// So probable is everything up to the end of a node.
    fn note(&mut self, question: usize, node: usize, log_probability: f64) {
        self.bound(question, node, log_probability);
        let Some(question) = self.questions.get_mut(&question) else { return };
        let node = &self.tree.nodes[node];
        for &choice in &self.tree.sorted[node.covers.clone()][..node.ended] {
            question.scores[choice].complete = true;
        }
    }
}

/// Bytes of what was read before some nodes, beyond prefixes. Siblings share it.
fn bytes<'o>(opens: impl Iterator<Item = &'o Open>) -> usize {
    let branches: HashMap<_, _> = opens.map(|open| (Arc::as_ptr(&open.behind), &open.behind)).collect();
    branches.values().map(|branch| branch.own().bytes()).sum()
}

/// The logarithms of some tokens' probabilities, where so many tokens of a choice stand before them.
fn log_probabilities(logits: &[f32], step: usize, tokens: &[u32]) -> Result<Vec<f64>, GenerateError> {
    let of = |probabilities: LogProbabilities<'_>| tokens.iter().map(|&token| probabilities.of(token)).collect();
    LogProbabilities::new(logits).and_then(of).map_err(|source| GenerateError::Sampling { step, source })
}

/// Tokens behind a branch, of which the last `rows` say what may follow.
struct Passage {
    branch: Branch,
    embeds: Tensor, // [1, T, H]
    rows: usize,
}

/// Reads all passages in one pass.
///
/// # Shapes
/// → the rows of all passages, one after the other: logits `[V]`
fn read<'p>(llama: &Llama, passages: impl Iterator<Item = &'p mut Passage>) -> TensorResult<Vec<Vec<f32>>> {
    let mut passages: Vec<&mut Passage> = passages.collect();
    let mut end = 0;
    let mut places: Vec<u32> = Vec::new();
    for passage in &passages {
        end += passage.embeds.dim(1)?;
        places.extend((end - passage.rows..end).map(|place| place as u32));
    }
    let embeds: Vec<Tensor> = passages.iter().map(|passage| passage.embeds.clone()).collect();
    let embeds = Tensor::cat(&embeds, 1)?;
    let mut branches = Vec::with_capacity(passages.len());
    for passage in &mut passages {
        branches.push((&mut passage.branch, passage.embeds.dim(1)?));
    }
    let hidden = llama.forward_branches(&embeds, &mut branches)?.squeeze(0)?;
    let places = Tensor::from_vec(places.clone(), places.len(), llama.device())?;
    llama.logits(&hidden.index_select(&places, 0)?)?.to_vec2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kv_cache::KvCache, model::Gpt4Roi, tiny::tiny};

    /// Ten scripts: one is the beginning of another, several share one, two are the same, one is alone.
    fn scripts() -> Vec<Vec<u32>> {
        let scripts: [&[u32]; 10] = [
            &[9, 8, 7],
            &[9, 8, 7, 6, 5],
            &[9, 8, 20, 21, 22],
            &[9, 8, 20, 30],
            &[9],
            &[9, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50],
            &[9, 8, 20, 30],
            &[9, 8, 7, 6, 6],
            &[300, 301],
            &[300, 8, 7],
        ];
        scripts.iter().map(|script| script.to_vec()).collect()
    }

    #[test]
    fn what_choices_begin_with_in_common_stands_once() {
        fn write(tree: &ChoiceTree, node: usize, lines: &mut Vec<String>) {
            let Node { tokens, depth, covers, ended, children } = &tree.nodes[node];
            let ends = &tree.sorted[covers.clone()][..*ended];
            lines.push(format!("{}{tokens:?} ends {ends:?}", " ".repeat(*depth)));
            children.iter().for_each(|&child| write(tree, child, lines));
        }
        let written = |scripts: &[Vec<u32>]| {
            let (tree, mut lines) = (ChoiceTree::new(scripts), Vec::new());
            write(&tree, 0, &mut lines);
            lines
        };
        let of = |places: &[usize]| written(&places.iter().map(|&place| scripts()[place].clone()).collect::<Vec<_>>());
        assert_eq!(
            of(&[0, 1, 2]),
            ["[9, 8] ends []", "  [7] ends [0]", "   [6, 5] ends [1]", "  [20, 21, 22] ends [2]"]
        );
        assert_eq!(
            of(&[0, 8, 9]),
            ["[] ends []", "[9, 8, 7] ends [0]", "[300] ends []", " [8, 7] ends [2]", " [301] ends [1]"]
        );
        assert_eq!(of(&[3, 6]), ["[9, 8, 20, 30] ends [0, 1]"]);
        assert_eq!(of(&[3]), ["[9, 8, 20, 30] ends [0]"]);
    }

    /// A prompt of so many tokens, which `seed` chooses.
    fn prompt(model: &Gpt4Roi, tokens: u32, seed: u32) -> Tensor {
        embed(model, &(0..tokens).map(|i| 5 + (seed * 31 + i * 17) % 700).collect::<Vec<_>>())
    }

    fn embed(model: &Gpt4Roi, ids: &[u32]) -> Tensor {
        model.network.llama.embed(&Tensor::new(ids, &model.device).unwrap()).unwrap().unsqueeze(0).unwrap()
    }

    fn read_whole(model: &Gpt4Roi, embeds: &Tensor) -> (KvCache, Vec<Vec<f32>>) {
        let (llama, mut cache) = (&model.network.llama, model.network.llama.new_cache());
        let logits = llama.logits(&llama.forward(embeds, &mut cache).unwrap()).unwrap();
        (cache, logits.squeeze(0).unwrap().to_vec2().unwrap())
    }

    /// How probable a script is behind a prompt, read as one sequence by itself.
    fn alone(model: &Gpt4Roi, prompt: &Tensor, script: &[u32]) -> f64 {
        let (_, logits) = read_whole(model, &Tensor::cat(&[prompt, &embed(model, script)], 1).unwrap());
        let behind = &logits[prompt.dim(1).unwrap() - 1..];
        let log_softmax = |(row, &token): (&Vec<f32>, &u32)| {
            f64::from(row[token as usize]) - row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln()
        };
        behind.iter().zip(script).map(log_softmax).sum()
    }

    /// The scores behind prompts that share their first `shared` tokens.
    fn walk(
        model: &Gpt4Roi,
        prompts: &[Tensor],
        shared: usize,
        scripts: &[Vec<u32>],
        scoring: Scoring,
        room: Room,
    ) -> Vec<Scores> {
        let prefix = Arc::new(read_whole(model, &prompts[0].narrow(1, 0, shared).unwrap()).0);
        let mut walk = Walk::new(&model.network.llama, Arc::new(ChoiceTree::new(scripts)), scoring);
        for prompt in prompts {
            let unread = prompt.narrow(1, shared, prompt.dim(1).unwrap() - shared).unwrap();
            walk.add(Reading::new(Branch::new(prefix.clone()), unread));
        }
        let mut done = BTreeMap::new();
        while !walk.is_empty() {
            done.extend(walk.step(room).unwrap());
        }
        done.into_values().collect()
    }

    const AMPLE: Room = Room { tokens: usize::MAX, bytes: usize::MAX };

    /// Prompts of different lengths that begin with the same 20 tokens.
    fn prompts(model: &Gpt4Roi) -> Vec<Tensor> {
        let begin = |rest: Tensor| Tensor::cat(&[&prompt(model, 20, 1), &rest], 1).unwrap();
        [prompt(model, 1, 2), prompt(model, 6, 3), prompt(model, 3, 4)].into_iter().map(begin).collect()
    }

    #[test]
    fn every_choice_is_as_probable_as_read_alone() {
        let (model, mut scripts) = (tiny(), scripts());
        let prompts = prompts(&model);
        for room in [AMPLE, Room { bytes: 0, ..AMPLE }, Room { tokens: 9, bytes: 20_000 }] {
            // In any order.
            scripts.rotate_left(3);
            let all = walk(&model, &prompts, 20, &scripts, Scoring::All, room);
            assert_eq!(all.len(), prompts.len());
            for (prompt, scores) in prompts.iter().zip(all) {
                for (script, score) in scripts.iter().zip(scores.unwrap()) {
                    let expected = alone(&model, prompt, script);
                    assert!((score.log_probability - expected).abs() < 1e-4, "{script:?}: {score:?}, {expected}");
                    assert!(score.complete);
                }
            }
        }
    }

    #[test]
    fn what_is_given_up_is_less_than_it_says() {
        let (model, scripts) = (tiny(), scripts());
        let prompts = prompts(&model);
        let all = walk(&model, &prompts, 20, &scripts, Scoring::Likely, AMPLE);
        for (prompt, scores) in prompts.iter().zip(all) {
            let scores = scores.unwrap();
            let exact: Vec<f64> = scripts.iter().map(|script| alone(&model, prompt, script)).collect();
            let whole: f64 = exact.iter().map(|log_probability| log_probability.exp()).sum();
            let given_up = scores.iter().filter(|score| !score.complete);
            assert!(given_up.clone().count() > 0 && scores.iter().any(|score| score.complete), "{scores:?}");
            assert!(given_up.map(|score| score.log_probability.exp()).sum::<f64>() < 1e-4 * whole);
            for (score, exact) in scores.iter().zip(exact) {
                let known = (score.log_probability - exact).abs() < 1e-4;
                assert!(
                    if score.complete { known } else { score.log_probability > exact - 1e-4 },
                    "{score:?}, {exact}"
                );
            }
        }
    }

    /// Whoever leaves between two steps takes nothing of the others along.
    #[test]
    fn questions_come_and_go_between_steps() {
        let (model, scripts) = (tiny(), scripts());
        let prompts = prompts(&model);
        let nothing = || Branch::behind(model.network.llama.new_cache());
        let mut walk = Walk::new(&model.network.llama, Arc::new(ChoiceTree::new(&scripts)), Scoring::All);
        let (mut numbers, mut done) = (Vec::new(), Vec::new());
        for prompt in &prompts {
            numbers.push(walk.add(Reading::new(nothing(), prompt.clone())));
            done.extend(walk.step(Room { tokens: 30, bytes: usize::MAX }).unwrap());
        }
        assert!(done.is_empty(), "scripts of twelve tokens take more steps");
        walk.end(numbers[1]);
        while !walk.is_empty() {
            done.extend(walk.step(Room { tokens: 1, bytes: 0 }).unwrap());
        }
        done.sort_by_key(|(number, _)| *number);
        assert_eq!(done.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [numbers[0], numbers[2]]);
        for ((_, scores), prompt) in done.into_iter().zip([&prompts[0], &prompts[2]]) {
            for (script, score) in scripts.iter().zip(scores.unwrap()) {
                assert!((score.log_probability - alone(&model, prompt, script)).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn a_question_with_broken_numbers_takes_no_other_along() {
        let (model, scripts) = (tiny(), scripts());
        let mut prompts = prompts(&model);
        let broken =
            Tensor::cat(&[&prompts[1].narrow(1, 0, 20).unwrap(), &(prompt(&model, 2, 5) * f64::NAN).unwrap()], 1);
        prompts.insert(1, broken.unwrap());
        let all = walk(&model, &prompts, 20, &scripts, Scoring::All, AMPLE);
        assert!(matches!(all[1], Err(GenerateError::Sampling { step: 0, .. })), "{:?}", all[1]);
        assert!(all.iter().enumerate().all(|(place, scores)| scores.is_ok() == (place != 1)));
    }
}
