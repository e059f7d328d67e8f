//! Choices as a tree of tokens, and a walk that reads it behind many questions at once.

use std::{collections::HashMap, ops::Range, sync::Arc};

use candle_core::{Result as TensorResult, Tensor};

use crate::{
    batch::Reading, chat::AskOptions, choices::Scoring, generate::GenerateError, kv_cache::Branch, llama::Llama,
    sampling::LogProbabilities,
};

/// What choices that are given up may come to, all of them together.
const GIVEN_UP: f64 = 1e-4;
/// Tokens that are read in one pass at most: more are no faster, and the logits of each take memory.
const TOKENS_AT_ONCE: usize = 256;

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

/// Scores the choices of a tree behind questions. Every step reads nodes of all questions in one pass, as many as
/// there is memory for, the deepest first, so that few branches have to be kept.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    llama: &'a Llama,
    tree: &'a ChoiceTree,
    scoring: Scoring,
    batch_bytes: usize,
    questions: Vec<Question>,
    open: Vec<Open>,
}

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

impl<'a> Walk<'a> {
    pub(crate) fn new(llama: &'a Llama, tree: &'a ChoiceTree, options: &AskOptions) -> Self {
        let (scoring, batch_bytes) = (options.scoring, options.batch_bytes);
        Self { llama, tree, scoring, batch_bytes, questions: Vec::new(), open: Vec::new() }
    }

    /// Adds a question, of which at least the last token is unread.
    pub(crate) fn add(&mut self, reading: Reading) {
        let (branch, unread) = reading.into_parts();
        let scores = vec![Score { log_probability: 0.0, complete: false }; self.tree.sorted.len()];
        let root = Open {
            question: self.questions.len(),
            node: 0,
            log_probability: 0.0,
            behind: Arc::new(branch),
            unread: Some(unread),
        };
        self.questions.push(Question { scores, failure: None });
        self.open.push(root);
    }

    /// The scores of all choices behind each question; an error for one where the model's numbers are none.
    ///
    /// # Errors
    /// If the engine fails.
    pub(crate) fn run(mut self) -> Result<Vec<Result<Vec<Score>, GenerateError>>, GenerateError> {
        loop {
            let next = self.next();
            if next.is_empty() {
                break;
            }
            self.read(next).map_err(|source| GenerateError::Tensor { step: 0, source })?;
        }
        let scores = |question: Question| question.failure.map_or(Ok(question.scores), Err);
        Ok(self.questions.into_iter().map(scores).collect())
    }

    /// Takes out what is to be read next: nothing, if no choice that is left can make a difference.
    fn next(&mut self) -> Vec<Open> {
        let least: Vec<f64> = self.questions.iter().map(|question| self.least(question)).collect();
        let (mut likely, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.open).into_iter().partition(|open| open.log_probability >= least[open.question]);
        likely.sort_by(|a, b| {
            (b.behind.len().cmp(&a.behind.len())).then(b.log_probability.total_cmp(&a.log_probability))
        });
        let count = self.fitting(&likely);
        self.open = left;
        self.open.extend(likely.drain(count..));
        likely
    }

    /// The logarithm of the least probability with which a choice can still make a difference. The best choice is at
    /// most as probable as the best beginning, so that whatever is read has to be read in any order.
    fn least(&self, question: &Question) -> f64 {
        match self.scoring {
            Scoring::All => f64::NEG_INFINITY,
            Scoring::Likely => {
                let best = question.scores.iter().map(|score| score.log_probability).fold(f64::NEG_INFINITY, f64::max);
                best + (GIVEN_UP / question.scores.len() as f64).ln()
            }
        }
    }

    /// How many of them can be read at once, beside what was read and is still needed; at least one.
    fn fitting(&self, likely: &[Open]) -> usize {
        let kept: HashMap<_, _> =
            self.open.iter().chain(likely).map(|open| (Arc::as_ptr(&open.behind), open)).collect();
        let mut bytes: usize = kept.values().map(|open| open.behind.own().bytes()).sum();
        let mut tokens = 0;
        let fits = |open: &&Open| {
            let unread = open.unread.as_ref().map_or(0, |unread| unread.dims()[1]);
            let new = unread + self.tree.nodes[open.node].tokens.len();
            tokens += new;
            bytes += open.behind.prefix().bytes_of(open.behind.own().len() + new);
            tokens <= TOKENS_AT_ONCE && bytes <= self.batch_bytes
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
            if self.questions[question].failure.is_some() {
                continue;
            }
            if let Err(error) = self.advance(open, passage.branch, &logits) {
                self.open.retain(|open| open.question != question);
                self.questions[question].failure = Some(error);
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
        let (Open { question, node: place, mut log_probability, .. }, tree) = (open, self.tree);
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
        for &choice in &self.tree.sorted[self.tree.nodes[node].covers.clone()] {
            self.questions[question].scores[choice].log_probability = log_probability;
        }
    }

    /// So probable is everything up to the end of a node.
    fn note(&mut self, question: usize, node: usize, log_probability: f64) {
        self.bound(question, node, log_probability);
        let node = &self.tree.nodes[node];
        for &choice in &self.tree.sorted[node.covers.clone()][..node.ended] {
            self.questions[question].scores[choice].complete = true;
        }
    }
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
    use crate::{
        kv_cache::KvCache,
        model::Gpt4Roi,
        tiny::{short, tiny},
    };

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
        options: &AskOptions,
    ) -> Vec<Result<Vec<Score>, GenerateError>> {
        let prefix = Arc::new(read_whole(model, &prompts[0].narrow(1, 0, shared).unwrap()).0);
        let tree = ChoiceTree::new(scripts);
        let mut walk = Walk::new(&model.network.llama, &tree, options);
        for prompt in prompts {
            let unread = prompt.narrow(1, shared, prompt.dim(1).unwrap() - shared).unwrap();
            walk.add(Reading::new(Branch::new(prefix.clone()), unread));
        }
        walk.run().unwrap()
    }

    /// Prompts of different lengths that begin with the same 20 tokens.
    fn prompts(model: &Gpt4Roi) -> Vec<Tensor> {
        let begin = |rest: Tensor| Tensor::cat(&[&prompt(model, 20, 1), &rest], 1).unwrap();
        [prompt(model, 1, 2), prompt(model, 6, 3), prompt(model, 3, 4)].into_iter().map(begin).collect()
    }

    #[test]
    fn every_choice_is_as_probable_as_read_alone() {
        let (model, mut scripts) = (tiny(), scripts());
        let prompts = prompts(&model);
        for batch_bytes in [usize::MAX, 0, 20_000] {
            let options = AskOptions { batch_bytes, ..short() };
            // In any order.
            scripts.rotate_left(3);
            let all = walk(&model, &prompts, 20, &scripts, &options);
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
        let options = AskOptions { scoring: Scoring::Likely, ..short() };
        for (prompt, scores) in prompts.iter().zip(walk(&model, &prompts, 20, &scripts, &options)) {
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

    #[test]
    fn a_question_with_broken_numbers_takes_no_other_along() {
        let (model, scripts) = (tiny(), scripts());
        let mut prompts = prompts(&model);
        let broken =
            Tensor::cat(&[&prompts[1].narrow(1, 0, 20).unwrap(), &(prompt(&model, 2, 5) * f64::NAN).unwrap()], 1);
        prompts.insert(1, broken.unwrap());
        let all = walk(&model, &prompts, 20, &scripts, &short());
        assert!(matches!(all[1], Err(GenerateError::Sampling { step: 0, .. })), "{:?}", all[1]);
        assert!(all.iter().enumerate().all(|(place, scores)| scores.is_ok() == (place != 1)));
    }
}
