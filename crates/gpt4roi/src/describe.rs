//! Many regions of one picture, asked about together.

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc};

use crate::{
    asked::{Asked, Rendered, Said, embed_all},
    batch::{DecodeBatch, Event, NewSequence, Reading, SequenceId},
    bbox::RegionId,
    chat::{Answer, AnswerStream, AskOptions, Chat},
    error::Result,
    generate::{Generation, Halt},
    kv_cache::{Branch, KvCache},
    shape::Shape,
};

impl Chat<'_> {
    /// Asks the same question about each region and waits for all answers; see
    /// [`Self::describe_regions_streaming`].
    ///
    /// # Errors
    /// As there, and if the model's numbers are none for some region.
    pub fn describe_regions(
        &mut self,
        regions: &[impl Into<Shape> + Copy],
        question: &str,
        options: &AskOptions,
    ) -> Result<Vec<Answer>> {
        let mut answers = vec![None; regions.len()];
        let mut failure = Ok(());
        self.describe_regions_streaming(regions, question, options, |index, answer| match answer {
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

    /// Asks the same question about each region, as if each were the first of a conversation. In the
    /// question the region is `<region1>`. The conversation itself is not touched.
    ///
    /// The picture and the words before the first mention of the region are read once for all. What
    /// follows is decoded together, for as many regions at a time as [`AskOptions::batch_bytes`] allows;
    /// where one answer ends, the next region takes its place. So any number of regions may be given.
    ///
    /// `on_answer` gets the index of a region with its answer as soon as that is complete, in no particular
    /// order; if it breaks, the rest is dropped. A region for which the model's numbers are none gets an
    /// error, and the others go on.
    ///
    /// An answer depends neither on the other regions nor on their order: the draws for every region begin
    /// at the seed of the options, just as if it were asked about alone.
    ///
    /// # Errors
    /// If the question is empty, mentions a region that does not exist, holds an impossible box, or
    /// leaves no room for an answer; if sampling settings are out of range; if the engine fails.
    pub fn describe_regions_streaming(
        &mut self,
        regions: &[impl Into<Shape> + Copy],
        question: &str,
        options: &AskOptions,
        on_answer: impl FnMut(usize, Result<Answer>) -> ControlFlow<()>,
    ) -> Result<()> {
        let shapes: Vec<Shape> = regions.iter().map(|&region| region.into()).collect();
        let Some(&first) = shapes.first() else { return Ok(()) };
        let shared = Shared::new(self, first, question, options)?;
        Describing::new(self, &shared, &shapes).run(on_answer)
    }
}

/// The region, in the question.
const THIS: RegionId = RegionId(1);

/// What all regions have in common: the question, rendered and read up to the region.
pub(crate) struct Shared {
    pub(crate) rendered: Rendered,
    prefix: Arc<KvCache>,
    /// Tokens of the prefix that had been read for another question.
    reused: usize,
    batch_bytes: usize,
}

impl Shared {
    pub(crate) fn new(chat: &mut Chat<'_>, first: Shape, question: &str, options: &AskOptions) -> Result<Self> {
        let (regions, question) = ([(THIS, first)], [Said::Text(question.to_owned())]);
        let rendered = Rendered::new(chat.model, chat.image.size(), &regions, &[], &question, options)?;
        let asked = rendered.locate(&chat.image)?;
        let (prefix, reused) = chat.read_prefix(&asked, rendered.before(THIS))?;
        Ok(Self { rendered, prefix, reused, batch_bytes: options.batch_bytes })
    }

    /// The questions about some regions, each with the part of its prompt that differs.
    pub(crate) fn readings(&self, chat: &Chat<'_>, shapes: &[Shape]) -> Result<Vec<(Asked, Reading)>> {
        let locate = |shape: &Shape| self.rendered.about(THIS, *shape).locate(&chat.image);
        let asked = shapes.iter().map(locate).collect::<Result<Vec<_>>>()?;
        let range = self.prefix.len()..self.rendered.tokens();
        let ranges: Vec<_> = asked.iter().map(|asked| (asked, range.clone())).collect();
        let embeds = embed_all(chat.model, &chat.image, &ranges)?;
        let reading = |embeds| Reading::new(Branch::new(self.prefix.clone()), embeds);
        Ok(asked.into_iter().zip(embeds.into_iter().map(reading)).collect())
    }

    /// How many tokens of a region's prompt had been read before. The first region pays for the prefix.
    pub(crate) fn reused(&self, index: usize) -> usize {
        if index == 0 { self.reused } else { self.prefix.len() }
    }

    /// Bytes that a sequence comes to take, if its answer is a caption of a sentence or two.
    fn bytes_each(&self) -> usize {
        const CAPTION: usize = 32;
        let tokens = self.rendered.tokens() - self.prefix.len() + self.rendered.limits().max_new_tokens.min(CAPTION);
        tokens * self.prefix.bytes_per_token()
    }
}

/// Regions on their way from the queue through the batch to their answers.
struct Describing<'a, 'm> {
    chat: &'a Chat<'m>,
    shared: &'a Shared,
    shapes: &'a [Shape],
    /// How many of them have been encoded.
    encoded: usize,
    waiting: VecDeque<Waiting>,
    batch: DecodeBatch<'m>,
    /// In the order in which they joined.
    running: Vec<Running<'m>>,
    /// Whether regions may join; not from when the batch has outgrown its memory to when an answer ends.
    open: bool,
}

struct Waiting {
    index: usize,
    asked: Asked,
    reading: Reading,
}

struct Running<'m> {
    id: SequenceId,
    stream: AnswerStream<'m>,
    from: Waiting,
}

impl<'a, 'm> Describing<'a, 'm> {
    fn new(chat: &'a Chat<'m>, shared: &'a Shared, shapes: &'a [Shape]) -> Self {
        let llama = &chat.model.network.llama;
        let most = shared.rendered.draft().unwrap_or_else(|| chat.drafter.default_draft(llama));
        let batch = DecodeBatch::new(llama).drafting(chat.drafter.clone(), most);
        Self { chat, shared, shapes, encoded: 0, waiting: VecDeque::new(), batch, running: Vec::new(), open: true }
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

    /// Lets regions join while there is room for their answers.
    fn admit(&mut self) -> Result<()> {
        let each = self.shared.bytes_each();
        let mut expected = self.batch.bytes();
        while self.open && (self.batch.is_empty() || expected + each <= self.shared.batch_bytes) {
            let Some(from) = self.next()? else { return Ok(()) };
            let id = self.batch.add(NewSequence {
                reading: from.reading.clone(),
                sampler: from.asked.rendered().sampler(),
                limits: from.asked.rendered().limits(),
                told: from.asked.show(self.batch.drafter(), self.shared.reused(from.index)),
            })?;
            let stream = AnswerStream::new(&self.chat.model.tokenizer, from.asked.rendered().stop());
            self.running.push(Running { id, stream, from });
            expected += each;
        }
        Ok(())
    }

    /// The next region in the queue. Regions are encoded some at a time, since that is cheaper, and not all
    /// at once, since the first answers should not wait for the last regions.
    fn next(&mut self) -> Result<Option<Waiting>> {
        if self.waiting.is_empty() {
            let left = &self.shapes[self.encoded..];
            let next = &left[..left.len().min(self.chat.model.network.region.head.boxes_at_once())];
            let readings = self.shared.readings(self.chat, next)?;
            let waiting = |(index, (asked, reading))| Waiting { index, asked, reading };
            self.waiting.extend((self.encoded..).zip(readings).map(waiting));
            self.encoded += next.len();
        }
        Ok(self.waiting.pop_front())
    }

    /// Takes note of an event; an answer, if it ended one.
    fn advance(&mut self, id: SequenceId, event: Event) -> Option<(usize, Result<Answer>)> {
        let place = self.running.iter().position(|running| running.id == id)?;
        let generation = match event {
            Event::Token(token) if self.running[place].stream.push(token) => {
                Ok(self.batch.end(id, Halt::Stop)?.generation)
            }
            Event::Token(_) => return None,
            Event::Finished(ended) => Ok(ended.generation),
            Event::Failed(error) => Err(error.into()),
        };
        self.open = true;
        let Running { stream, from, .. } = self.running.remove(place);
        let answer = generation.map(|generation| self.answer(&from, stream, generation));
        Some((from.index, answer))
    }

    fn answer(&self, from: &Waiting, stream: AnswerStream<'_>, mut generation: Generation) -> Answer {
        let (text, _) = stream.finish(&mut generation);
        from.asked.answer(self.shared.reused(from.index), &generation, text)
    }

    /// Sends the latest back to the queue, to begin anew, if answers became longer than expected.
    fn make_room(&mut self) {
        while self.batch.bytes() > self.shared.batch_bytes && self.running.len() > 1 {
            if let Some(Running { id, from, .. }) = self.running.pop() {
                self.batch.end(id, Halt::Cancel);
                self.waiting.push_front(from);
                self.open = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{
        bbox::BBox,
        error::Error,
        image::{DEFAULT_MAX_PIXELS, Image},
        model::Gpt4Roi,
        prompt::PromptError,
        sampling::Sampling,
        tiny::{assert_same, bbox, picture, short, tiny},
    };

    const QUESTION: &str = "What is <region1>?";

    /// Boxes all over the picture, no two alike.
    fn boxes(count: usize) -> Vec<BBox> {
        let place = |i: usize| ((i * 37 % 89) as f64 / 100.0, (i * 53 % 83) as f64 / 100.0);
        (0..count).map(|i| (i, place(i))).map(|(i, (x, y))| bbox([x, y, x + 0.1, y + 0.05 + i as f64 * 1e-4])).collect()
    }

    /// Each box in a conversation of its own.
    #[track_caller]
    fn assert_as_alone(model: &Gpt4Roi, picture: &Image, boxes: &[BBox], answers: &[Answer], options: &AskOptions) {
        assert_eq!(answers.len(), boxes.len());
        for (bbox, answer) in boxes.iter().zip(answers) {
            let mut one = Chat::new(model, picture).unwrap();
            one.add_region(*bbox);
            assert_same(answer, &one.ask_with(QUESTION, options).unwrap());
        }
    }

    #[test]
    fn describing_in_bulk_is_asking_one_by_one() {
        let (model, picture, boxes) = (tiny(), picture(), boxes(5));
        let sampling = Sampling::Random { temperature: 3.0, top_k: 0, top_p: 1.0, seed: 5 };
        for options in [short(), AskOptions { sampling, ..short() }] {
            let mut chat = Chat::new(&model, &picture).unwrap();
            let answers = chat.describe_regions(&boxes, QUESTION, &options).unwrap();
            assert!(chat.regions().is_empty() && chat.transcript().rounds.is_empty());
            assert_as_alone(&model, &picture, &boxes, &answers, &options);
            assert_eq!(answers[0].reused_tokens, 0);
            assert!(answers[1].reused_tokens > model.config.vision.patches());
        }
    }

    /// The published checkpoint leaves open how many regions there may be; here there is no limit.
    #[test]
    fn one_sixteen_a_hundred_and_three_hundred_regions() {
        let (model, picture) = (tiny(), picture());
        let all = boxes(300);
        let mut chat = Chat::new(&model, &picture).unwrap();
        let mut described = Vec::new();
        for count in [1, 16, 100, 300] {
            let answers = chat.describe_regions(&all[..count], QUESTION, &short()).unwrap();
            assert_eq!(answers.len(), count);
            for (bbox, answer) in all.iter().zip(&answers) {
                assert_eq!(answer.regions[0].pixels, bbox.pixels(picture.size()));
            }
            described.push(answers);
        }
        // The company of others changes nothing; a few are checked against conversations of their own.
        for fewer in &described[..3] {
            fewer.iter().zip(&described[3]).for_each(|(a, b)| assert_same(a, b));
        }
        assert_as_alone(&model, &picture, &all[297..], &described[3][297..], &short());
    }

    /// Room for one sequence only, and for three captions that become longer than captions are.
    #[test]
    fn little_memory_changes_no_answer() {
        let (model, picture, boxes) = (tiny(), picture(), boxes(6));
        let options = AskOptions { max_new_tokens: 90, ..AskOptions::default() };
        let describe = |batch_bytes| {
            let mut chat = Chat::new(&model, &picture).unwrap();
            chat.describe_regions(&boxes, QUESTION, &AskOptions { batch_bytes, ..options.clone() }).unwrap()
        };
        let together = describe(usize::MAX);
        assert!(together.iter().any(|answer| answer.generated_tokens > 60), "long enough to outgrow");
        // 2 layers, keys and values, 32 channels of 4 bytes, about 14 + 32 tokens, three times.
        for batch_bytes in [0, 3 * 50 * 2 * 2 * 32 * 4] {
            together.iter().zip(&describe(batch_bytes)).for_each(|(a, b)| assert_same(a, b));
        }
    }

    #[test]
    fn questions_with_boxes_of_their_own_and_without_any() {
        let (model, picture, boxes) = (tiny(), picture(), boxes(3));
        for question in ["Is [8, 6, 40, 30] left of <region1>, or <region1> of (0.5, 0.5)?", "What is in the picture?"]
        {
            let all = Chat::new(&model, &picture).unwrap().describe_regions(&boxes, question, &short()).unwrap();
            for (bbox, answer) in boxes.iter().zip(&all) {
                let mut one = Chat::new(&model, &picture).unwrap();
                one.add_region(*bbox);
                assert_same(answer, &one.ask_with(question, &short()).unwrap());
            }
        }
    }

    #[test]
    fn answers_come_as_they_end_and_a_break_drops_the_rest() {
        let (model, picture, boxes) = (tiny(), picture(), boxes(8));
        let mut chat = Chat::new(&model, &picture).unwrap();
        let expected = chat.describe_regions(&boxes, QUESTION, &short()).unwrap();
        let mut seen = Vec::new();
        let ended = chat.describe_regions_streaming(&boxes, QUESTION, &short(), |index, answer| {
            assert_same(&answer.unwrap(), &expected[index]);
            seen.push(index);
            if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(ended.is_ok() && seen.len() == 3);
    }

    #[test]
    fn what_can_not_be_asked_is_refused_before_anything_is_said() {
        let (model, picture, boxes) = (tiny(), picture(), boxes(2));
        let mut chat = Chat::new(&model, &picture).unwrap();
        for question in ["", "What is <region2>?", &"what ".repeat(4000)] {
            let said = |_, _| panic!("nothing to say");
            chat.describe_regions_streaming(&boxes, question, &short(), said).unwrap_err();
        }
        let error = chat.describe_regions(&boxes, &"what ".repeat(4000), &short()).unwrap_err();
        assert!(matches!(error, Error::Prompt(PromptError::TooLong { .. })), "{error}");
        assert!(chat.describe_regions(&[] as &[Shape], QUESTION, &short()).unwrap().is_empty());
        // And the chat is none the worse for it.
        chat.add_region(boxes[0]);
        let mut fresh = Chat::new(&model, &picture).unwrap();
        fresh.add_region(boxes[0]);
        assert_same(&chat.ask_with(QUESTION, &short()).unwrap(), &fresh.ask_with(QUESTION, &short()).unwrap());
    }

    /// How many regions one prompt holds is a matter of its 2048 tokens. A mention takes at least three of
    /// them: a word, a number, the region.
    #[test]
    fn a_single_prompt_holds_as_many_regions_as_fit_its_context() {
        let model = tiny();
        let question = |count: usize| (1..=count).map(|i| format!("<region{i}> ")).collect::<String>();
        let ask = |count| {
            let mut chat = Chat::new(&model, &picture()).unwrap();
            boxes(count).into_iter().for_each(|bbox| _ = chat.add_region(bbox));
            chat.ask_with(&question(count), &short())
        };
        for count in [1, 16, 100] {
            assert_eq!(ask(count).unwrap().regions.len(), count);
        }
        assert!(matches!(ask(700), Err(Error::Prompt(PromptError::TooLong { max: 2048, .. }))));
    }

    /// The embedded model, whose words mean something.
    #[test]
    fn the_embedded_model_names_many_things_at_once() {
        let model = Gpt4Roi::nano(&Device::Cpu).unwrap();
        let image = Image::open("../../docs/example.png", DEFAULT_MAX_PIXELS).unwrap();
        let pixels = |xyxy| BBox::from_pixels(xyxy, image.size()).unwrap();
        let boxes = [pixels([8., 14., 54., 59.]), pixels([109., 0., 181., 59.]), pixels([0., 78., 101., 186.])];
        let options = AskOptions::default();
        let answers = Chat::new(&model, &image).unwrap().describe_regions(&boxes, QUESTION, &options).unwrap();
        assert_eq!([&*answers[0].text, &*answers[1].text], ["An octopus.", "A loaf of bread."]);
        assert_as_alone(&model, &image, &boxes, &answers, &options);
    }
}
