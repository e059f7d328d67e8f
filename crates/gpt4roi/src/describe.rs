//! Many regions of one picture, asked about together.

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc};

use candle_core::Tensor;

use crate::{
    batch::{DecodeBatch, Event, NewSequence, SequenceId},
    bbox::{BBox, RegionId},
    chat::{Answer, AnswerStream, AskOptions, Chat, Origin, Region, boxes_in, push_region, report, slots},
    error::Result,
    generate::{Generation, Halt, Limits},
    kv_cache::KvCache,
    prompt::{self, Encoded, Round},
    sampling::Sampler,
};

impl Chat<'_> {
    /// Asks the same question about each box and waits for all answers; see
    /// [`Self::describe_regions_streaming`].
    ///
    /// # Errors
    /// As there, and if the model's numbers are none for some box.
    pub fn describe_regions(&mut self, boxes: &[BBox], question: &str, options: &AskOptions) -> Result<Vec<Answer>> {
        let mut answers = vec![None; boxes.len()];
        let mut failure = Ok(());
        self.describe_regions_streaming(boxes, question, options, |index, answer| match answer {
            Ok(answer) => {
                answers[index] = Some(answer);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Err(error);
                ControlFlow::Break(())
            }
        })?;
        failure?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Asks the same question about each box, as if each were the first of a conversation. In the
    /// question the box is `<region1>`. The conversation itself is not touched.
    ///
    /// The picture and the words before the first mention of the box are read once for all. What
    /// follows is decoded together, for as many boxes at a time as [`AskOptions::batch_bytes`] allows;
    /// where one answer ends, the next box takes its place. So any number of boxes may be given.
    ///
    /// `on_answer` gets the index of a box with its answer as soon as that is complete, in no particular
    /// order; if it breaks, the rest is dropped. A box for which the model's numbers are none gets an
    /// error, and the others go on.
    ///
    /// An answer depends neither on the other boxes nor on their order: the draws for every box begin at
    /// the seed of the options, just as if it were asked about alone.
    ///
    /// # Errors
    /// If the question is empty, mentions a region that does not exist, holds an impossible box, or
    /// leaves no room for an answer; if sampling settings are out of range; if the engine fails.
    pub fn describe_regions_streaming(
        &mut self,
        boxes: &[BBox],
        question: &str,
        options: &AskOptions,
        on_answer: impl FnMut(usize, Result<Answer>) -> ControlFlow<()>,
    ) -> Result<()> {
        let Some(first) = boxes.first() else { return Ok(()) };
        let asked = Asked::new(self, *first, question, options)?;
        Describing::new(self, &asked, boxes).run(on_answer)
    }
}

/// What all boxes have in common: the question, rendered and read up to the box.
struct Asked {
    options: AskOptions,
    rounds: [Round; 1],
    /// The box itself, here the first one, and those that stand in the question.
    regions: Vec<Region>,
    encoded: Encoded,
    prefix: Arc<KvCache>,
    /// Tokens of the prefix that had been read for another question.
    reused: usize,
    sampler: Sampler,
    limits: Limits,
}

impl Asked {
    fn new(chat: &mut Chat<'_>, first: BBox, question: &str, options: &AskOptions) -> Result<Self> {
        let sampler = Sampler::new(&options.sampling)?;
        let (config, tokenizer) = (&chat.model.config, &chat.model.tokenizer);
        let mut regions = Vec::new();
        let this = push_region(&mut regions, first, Origin::Given);
        let rounds = [Round { question: chat.resolve(question, &mut regions, options.point_box)?, answer: None }];
        let encoded = prompt::encode(&rounds, tokenizer, config.vision.patches(), options.text_mode)?;
        encoded.check_length(config.llama.max_position_embeddings, 1)?;
        let prompt = slots(&encoded, &regions, options.box_precision)?;

        let limits = Limits {
            eos: tokenizer.special().eos,
            max_new_tokens: options.max_new_tokens.min(config.llama.max_position_embeddings - prompt.len()),
        };
        let length = first_mention(&encoded, this).unwrap_or(prompt.len() - 1);
        let (prefix, reused) = chat.read_prefix(&encoded, &prompt, length, options.box_precision)?;
        Ok(Self { options: options.clone(), rounds, regions, encoded, prefix, reused, sampler, limits })
    }

    /// The regions of the question about one box.
    fn regions(&self, bbox: BBox) -> Vec<Region> {
        let mut regions = self.regions.clone();
        regions[0].bbox = bbox;
        regions
    }

    /// The embeddings of the part of the prompt that differs, for each of some boxes.
    ///
    /// # Shapes
    /// → per box `[1, T, H]`
    fn suffixes(&self, chat: &Chat<'_>, boxes: &[BBox]) -> Result<Vec<Tensor>> {
        let (range, precision) = (self.prefix.len()..self.encoded.ids.len(), self.options.box_precision);
        let mut mentioned = Vec::new();
        for bbox in boxes {
            mentioned.extend(boxes_in(&slots(&self.encoded, &self.regions(*bbox), precision)?[range.clone()]));
        }
        if mentioned.is_empty() {
            return boxes.iter().map(|_| chat.splice(&self.encoded, range.clone(), None)).collect();
        }
        let (vectors, each) = (chat.encode_boxes(&mentioned, precision)?, mentioned.len() / boxes.len());
        let suffix = |i: usize| chat.splice(&self.encoded, range.clone(), Some(&vectors.narrow(0, i * each, each)?));
        (0..boxes.len()).map(suffix).collect()
    }

    /// Bytes that a sequence comes to take, if its answer is a caption of a sentence or two.
    fn bytes_each(&self) -> usize {
        const CAPTION: usize = 32;
        let tokens = self.encoded.ids.len() - self.prefix.len() + self.limits.max_new_tokens.min(CAPTION);
        tokens * self.prefix.bytes_per_token()
    }
}

/// Where a region is first mentioned.
fn first_mention(encoded: &Encoded, region: RegionId) -> Option<usize> {
    encoded.regions.iter().filter(|(_, id)| *id == region).map(|&(place, _)| place as usize).min()
}

/// Boxes on their way from the queue through the batch to their answers.
struct Describing<'a, 'm> {
    chat: &'a Chat<'m>,
    asked: &'a Asked,
    boxes: &'a [BBox],
    /// How many boxes have been encoded.
    encoded: usize,
    waiting: VecDeque<Waiting>,
    batch: DecodeBatch<'m>,
    /// In the order in which they joined.
    running: Vec<Running<'m>>,
    /// Whether boxes may join; not from when the batch has outgrown its memory to when an answer ends.
    open: bool,
}

struct Waiting {
    index: usize,
    suffix: Tensor,
}

struct Running<'m> {
    id: SequenceId,
    stream: AnswerStream<'m>,
    from: Waiting,
}

impl<'a, 'm> Describing<'a, 'm> {
    fn new(chat: &'a Chat<'m>, asked: &'a Asked, boxes: &'a [BBox]) -> Self {
        let batch = DecodeBatch::new(&chat.model.network.llama);
        Self { chat, asked, boxes, encoded: 0, waiting: VecDeque::new(), batch, running: Vec::new(), open: true }
    }

    fn run(mut self, mut on_answer: impl FnMut(usize, Result<Answer>) -> ControlFlow<()>) -> Result<()> {
        loop {
            self.admit()?;
            if self.batch.is_empty() {
                return Ok(());
            }
            for (id, event) in self.batch.step()? {
                if let Some((index, answer)) = self.advance(id, event)
                    && on_answer(index, answer).is_break()
                {
                    return Ok(());
                }
            }
            self.make_room();
        }
    }

    /// Lets boxes join while there is room for their answers.
    fn admit(&mut self) -> Result<()> {
        let each = self.asked.bytes_each();
        let mut expected = self.batch.bytes();
        while self.open && (self.batch.is_empty() || expected + each <= self.asked.options.batch_bytes) {
            let Some(from) = self.next()? else { return Ok(()) };
            let id = self.batch.add(NewSequence {
                prefix: self.asked.prefix.clone(),
                embeds: from.suffix.clone(),
                sampler: self.asked.sampler.clone(),
                limits: self.asked.limits,
            })?;
            self.running.push(Running { id, stream: AnswerStream::new(&self.chat.model.tokenizer), from });
            expected += each;
        }
        Ok(())
    }

    /// The next box in the queue. Boxes are encoded some at a time, since that is cheaper, and not all
    /// at once, since the first answers should not wait for the last boxes.
    fn next(&mut self) -> Result<Option<Waiting>> {
        if self.waiting.is_empty() {
            let left = &self.boxes[self.encoded..];
            let next = &left[..left.len().min(self.chat.model.network.region.head.boxes_at_once())];
            let suffixes = if next.is_empty() { Vec::new() } else { self.asked.suffixes(self.chat, next)? };
            let indices = self.encoded..;
            self.waiting.extend(indices.zip(suffixes).map(|(index, suffix)| Waiting { index, suffix }));
            self.encoded += next.len();
        }
        Ok(self.waiting.pop_front())
    }

    /// Takes note of an event; an answer, if it ended one.
    fn advance(&mut self, id: SequenceId, event: Event) -> Option<(usize, Result<Answer>)> {
        let place = self.running.iter().position(|running| running.id == id)?;
        let generation = match event {
            Event::Token(token) if self.running[place].stream.push(token) => Ok(self.batch.end(id, Halt::Stop)?),
            Event::Token(_) => return None,
            Event::Finished(generation) => Ok(generation),
            Event::Failed(error) => Err(error.into()),
        };
        self.open = true;
        let Running { stream, from, .. } = self.running.remove(place);
        let answer = generation.map(|generation| self.answer(from.index, stream, &generation));
        Some((from.index, answer))
    }

    fn answer(&self, index: usize, stream: AnswerStream<'_>, generation: &Generation) -> Answer {
        let Asked { rounds, encoded, prefix, reused, .. } = self.asked;
        // The first box pays for the prefix.
        let reused = if index == 0 { *reused } else { prefix.len() };
        let (text, _) = stream.finish();
        report(
            rounds,
            &self.asked.regions(self.boxes[index]),
            self.chat.image.size(),
            encoded,
            reused,
            generation,
            text,
        )
    }

    /// Sends the latest back to the queue, to begin anew, if answers became longer than expected.
    fn make_room(&mut self) {
        while self.batch.bytes() > self.asked.options.batch_bytes && self.running.len() > 1 {
            if let Some(Running { id, from, .. }) = self.running.pop() {
                self.batch.end(id, Halt::Cancel);
                self.waiting.push_front(from);
                self.open = false;
            }
        }
    }
}
