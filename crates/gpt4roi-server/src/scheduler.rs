//! Who is read and decoded when. One object without a thread or a clock of its own: somebody calls
//! [`Scheduler::step`], and hands the looks that it asks for to an [`Eye`](crate::look::Eye).
//!
//! A *seat* is one part of a request on its way: looked at, read, decoded. A free seat goes to the request
//! that holds the fewest; of several, to the one that has waited longest since it came or last got an answer.
//! A question with one part is counted among them wherever in the queue it stands. So it waits for the first
//! seat that becomes free, or for a few if others wait too, never for all of a request with three hundred parts.
//!
//! A step reads one piece of what is long (beginnings of pictures, long prompts), lets short prompts join,
//! advances every sequence by a token, and reads on in the given answers of one request. Whoever went away is gone at the beginning of the next step.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use gpt4roi::{
    asked::Asked,
    batch::{DecodeBatch, Ended, Event, NewSequence, Reading, SequenceId},
    chat::AnswerStream,
    choices::ScoredChoices,
    generate::{GenerateError, Halt},
    image_cache::EncodedImage,
    tokenizer::Tokenizer,
};

use crate::{
    choosing::Choosing,
    engine::{EngineOptions, Failure, Update},
    look::{Eye, Look, Looked, Prompt, Seen},
    queue::Queue,
    request::Request,
};

/// All requests that have left the queue.
pub(crate) struct Scheduler<'m> {
    eye: &'m Eye<'m>,
    queue: &'m Queue,
    options: &'m EngineOptions,
    requests: BTreeMap<u64, Request>,
    /// In the order in which they were given.
    seats: Vec<Seat<'m>>,
    beginnings: VecDeque<Beginning>,
    batch: DecodeBatch<'m>,
    choosing: Choosing<'m>,
    looks: VecDeque<Look>,
    /// Whether parts of many may join; not from when the batch has outgrown its memory to when an
    /// answer ends.
    open: bool,
}

/// A part of a request on its way.
struct Seat<'m> {
    request: u64,
    part: usize,
    /// Bytes of keys and values that it may come to take.
    reserved: usize,
    stage: Stage<'m>,
}

enum Stage<'m> {
    /// Somebody looks at the picture.
    Looking,
    /// What its prompt begins with, so many tokens, is being read.
    Waiting {
        image: Arc<EncodedImage>,
        prompt: Prompt,
        length: usize,
    },
    /// Its prompt is being read, or waits for room in the batch.
    Reading(Arc<EncodedImage>, Prompt),
    Decoding(Box<Decoding<'m>>),
    /// One of some given answers is chosen.
    Choosing(Box<Undecided>),
}

/// A question of which nobody knows yet what will be chosen.
struct Undecided {
    /// Among those of its request.
    number: usize,
    image: Arc<EncodedImage>,
    asked: Asked,
    reused: usize,
}

struct Decoding<'m> {
    id: SequenceId,
    image: Arc<EncodedImage>,
    asked: Asked,
    reused: usize,
    stream: AnswerStream<'m>,
    /// As it joined, if it may have to begin anew.
    again: Option<Reading>,
}

/// What many prompts begin with, while it is read.
struct Beginning {
    image: Arc<EncodedImage>,
    /// Any of them.
    asked: Asked,
    length: usize,
    reused: usize,
    reading: Reading,
}

impl Beginning {
    fn is(&self, image: &Arc<EncodedImage>, asked: &Asked, length: usize) -> bool {
        self.length == length && Arc::ptr_eq(&self.image, image) && self.asked.begins_like(asked, length)
    }

    /// Whether somebody waits for this one.
    fn is_awaited_by(&self, stage: &Stage<'_>) -> bool {
        matches!(stage, Stage::Waiting { image, prompt, length } if self.is(image, &prompt.asked, *length))
    }
}

impl<'m> Scheduler<'m> {
    pub(crate) fn new(eye: &'m Eye<'m>, queue: &'m Queue, options: &'m EngineOptions) -> Self {
        let llama = &eye.model.network.llama;
        let draft = options.draft.unwrap_or_else(|| options.drafter.default_draft(llama));
        Self {
            eye,
            queue,
            options,
            requests: BTreeMap::new(),
            seats: Vec::new(),
            beginnings: VecDeque::new(),
            batch: DecodeBatch::new(llama).drafting(options.drafter.clone(), draft),
            choosing: Choosing::new(eye.model),
            looks: VecDeque::new(),
            open: true,
        }
    }

    /// Goes on with everything by one step.
    pub(crate) fn step(&mut self) {
        let began = self.queue.now();
        self.drop_unwanted(began);
        self.take_looked();
        self.give_seats();
        let begun = self.read_beginning();
        let read = self.read_long_prompt();
        let chose = self.let_choose();
        let joined = self.let_join();
        self.decode();
        self.make_room();
        self.choose();
        self.retire();
        self.report(began, begun || read || chose || joined);
    }

    /// The next look that somebody has to take.
    pub(crate) fn next_look(&mut self) -> Option<Look> {
        self.looks.pop_front()
    }

    /// Whether the next step gets anything done even if nothing happens until then.
    pub(crate) fn has_work(&self) -> bool {
        let reads = |seat: &Seat<'_>| matches!(seat.stage, Stage::Reading(..));
        let decodes = !self.batch.is_empty() || !self.choosing.is_empty();
        decodes || !self.beginnings.is_empty() || self.seats.iter().any(reads) || self.can_seat()
    }

    /// Whether there are free seats, and somebody who waits for one.
    fn can_seat(&self) -> bool {
        let waiting = || self.requests.values().any(Request::waits_for_seats) || !self.queue.is_empty();
        self.has_free_seats() && waiting()
    }

    fn has_free_seats(&self) -> bool {
        self.seats.len() < self.options.max_sequences.max(1)
    }

    /// Whether the engine was stopped, and everything is answered.
    pub(crate) fn is_done(&self) -> bool {
        self.requests.is_empty() && self.queue.is_stopping() && self.queue.is_empty()
    }

    /// When something ends of its own accord.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let running = self.requests.values().map(|request| request.deadline);
        running.chain(self.queue.next_deadline()).min()
    }

    /// Lets go of what was cancelled or is too late.
    fn drop_unwanted(&mut self, now: Instant) {
        self.queue.sweep(now);
        for request in self.requests.values_mut() {
            if now >= request.deadline {
                request.fail_all(|| Failure::Deadline);
            }
        }
        self.retire();
    }

    /// Takes leave of requests that are over or cancelled, with their seats and what is read for nobody
    /// else.
    fn retire(&mut self) {
        let over = self.requests.values().filter(|request| request.is_over() || request.is_cancelled());
        for number in over.map(|request| request.number).collect::<Vec<_>>() {
            if let Some(request) = self.requests.remove(&number) {
                self.queue.ended(&request);
            }
        }
        let (requests, batch, choosing) = (&self.requests, &mut self.batch, &mut self.choosing);
        self.seats.retain(|seat| {
            let stays = requests.contains_key(&seat.request);
            if !stays {
                seat.stop(batch, choosing);
            }
            stays
        });
        self.looks.retain(|look| requests.contains_key(&look.request));
        let seats = &self.seats;
        self.beginnings.retain(|beginning| seats.iter().any(|seat| beginning.is_awaited_by(&seat.stage)));
    }

    /// Gives free seats away, and asks for looks at what got one.
    fn give_seats(&mut self) {
        let mut seated: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        while self.has_free_seats() {
            let Some(request) = self.next_to_seat() else { break };
            let (number, part) = (request.number, request.seated);
            request.seated += 1;
            seated.entry(number).or_default().push(part);
            self.seats.push(Seat { request: number, part, reserved: 0, stage: Stage::Looking });
        }
        let looks = seated.iter().filter_map(|(number, parts)| Look::at(self.requests.get(number)?, parts));
        self.looks.extend(looks);
    }

    /// The request with parts left that holds the fewest seats; of several, the one whose turn it is. Those in
    /// the queue hold none; requests with many parts leave it only when nobody who left it goes without.
    fn next_to_seat(&mut self) -> Option<&mut Request> {
        let seats = |number: u64| self.seats.iter().filter(|seat| seat.request == number).count();
        let waiting = self.requests.values().filter(|request| request.waits_for_seats());
        let fewest = waiting.map(|request| (seats(request.number), request.turn, request.number)).min();
        let number = match fewest {
            Some((0, turn, number)) => self.admit_question(turn).unwrap_or(number),
            fewest => match self.admit() {
                Some(number) => number,
                None => fewest?.2,
            },
        };
        self.requests.get_mut(&number)
    }

    /// Lets the next request in that wants a seat.
    fn admit(&mut self) -> Option<u64> {
        loop {
            let request = self.queue.pop()?;
            let (number, wants) = (request.number, request.waits_for_seats());
            self.requests.insert(number, request);
            if wants {
                return Some(number);
            }
        }
    }

    /// Lets the first question with one part in whose turn is before another's.
    fn admit_question(&mut self, before: u64) -> Option<u64> {
        let request = self.queue.pop_question(before)?;
        let number = request.number;
        self.requests.insert(number, request);
        Some(number)
    }

    fn take_looked(&mut self) {
        for Looked { request, parts, seen } in self.queue.take_looked() {
            match seen {
                Ok(seen) => self.take_seen(request, &parts, seen),
                Err(why) => {
                    parts.iter().for_each(|&part| self.tell_failed(request, part, Failure::Engine(why.clone())))
                }
            }
        }
        self.leave_ended_seats();
    }

    fn take_seen(&mut self, number: u64, parts: &[usize], seen: Seen) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        let Seen { image, announced, beginning, prompts } = seen;
        // Two looks may have begun before the first was done.
        let first = request.encoded.replace(image.clone()).is_none();
        request.image = None;
        if let (true, Some(regions)) = (first, announced) {
            request.tell(Update::Started { regions });
        }
        let length = request.beginning_length();
        let stages: Vec<_> = prompts.into_iter().map(|prompt| self.stage_of(&image, prompt, length)).collect();
        if let (Some(reading), Some(asked)) = (beginning, stages.iter().find_map(Stage::waiting))
            && !self.beginnings.iter().any(|other| other.is(&image, asked, length))
        {
            let (reused, asked) = (reading.branch().len(), asked.clone());
            self.beginnings.push_back(Beginning { image: image.clone(), asked, length, reused, reading });
        }
        for (part, stage) in parts.iter().zip(stages) {
            if let Some(seat) = self.seats.iter_mut().find(|seat| seat.request == number && seat.part == *part) {
                seat.stage = stage;
            }
        }
    }

    /// A prompt can be read if what it begins with was, be it while somebody looked at the picture.
    fn stage_of(&self, image: &Arc<EncodedImage>, prompt: Prompt, length: usize) -> Stage<'m> {
        let image = image.clone();
        if !prompt.reading.branch().is_empty() {
            return Stage::Reading(image, prompt);
        }
        let kept = self.eye.prefixes.recall(&image, &prompt.asked, length);
        match kept.filter(|branch| branch.prefix().len() == length) {
            Some(branch) => Stage::Reading(image, prompt.behind(branch.prefix(), length)),
            None => Stage::Waiting { image, prompt, length },
        }
    }

    /// Reads a piece of a beginning; they take turns.
    fn read_beginning(&mut self) -> bool {
        let Some(mut beginning) = self.beginnings.pop_front() else { return false };
        match beginning.reading.read(&self.eye.model.network.llama, self.options.piece) {
            Ok(()) if beginning.reading.unread() > 0 => self.beginnings.push_back(beginning),
            Ok(()) => self.go_on_behind(&beginning),
            Err(error) => self.fail_those(&error, |seat| beginning.is_awaited_by(&seat.stage)),
        }
        true
    }

    /// A beginning was read; whoever waits for it goes on there. The first of them paid for it.
    fn go_on_behind(&mut self, beginning: &Beginning) {
        let prefix = Arc::new(beginning.reading.branch().own().clone());
        self.eye.prefixes.keep_beginning(&beginning.image, &beginning.asked, prefix.clone());
        let mut reused = beginning.reused;
        for seat in self.seats.iter_mut().filter(|seat| beginning.is_awaited_by(&seat.stage)) {
            let Stage::Waiting { image, prompt, .. } = &seat.stage else { continue };
            seat.stage = Stage::Reading(image.clone(), prompt.clone().behind(&prefix, reused));
            reused = beginning.length;
            if let Some(request) = self.requests.get_mut(&seat.request) {
                request.beginning = Some(prefix.clone());
            }
        }
    }

    /// Reads a piece of the first prompt that is too long to be read in one step.
    fn read_long_prompt(&mut self) -> bool {
        let piece = self.options.piece;
        let long = self.seats.iter_mut().find_map(|seat| match &mut seat.stage {
            Stage::Reading(_, prompt) if prompt.reading.unread() > piece => Some((seat.request, seat.part, prompt)),
            _ => None,
        });
        let Some((request, part, prompt)) = long else { return false };
        if let Err(error) = prompt.reading.read(&self.eye.model.network.llama, piece) {
            self.fail(request, part, error.into());
        }
        true
    }

    /// Lets prompts with given answers go on to these that can be read in the coming step.
    fn let_choose(&mut self) -> bool {
        let mut chose = false;
        for seat in &mut self.seats {
            if let Some(choices) = self.requests.get(&seat.request).and_then(|request| request.choices.as_ref())
                && matches!(&seat.stage, Stage::Reading(_, prompt) if prompt.reading.unread() <= self.options.piece)
                && let Stage::Reading(image, prompt) = std::mem::replace(&mut seat.stage, Stage::Looking)
            {
                let Prompt { asked, reading, reused } = prompt;
                let number = self.choosing.add(seat.request, choices, reading);
                seat.stage = Stage::Choosing(Box::new(Undecided { number, image, asked, reused }));
                chose = true;
            }
        }
        chose
    }

    /// Lets prompts join that can be read in the coming step, in the order of their seats.
    fn let_join(&mut self) -> bool {
        self.open |= self.batch.is_empty();
        let (mut unread, mut joined) = (0, false);
        let mut reserved = self.batch.bytes().max(self.seats.iter().map(|seat| seat.reserved).sum());
        reserved += self.choosing.bytes();
        let mut failed = Vec::new();
        for seat in &mut self.seats {
            let (Stage::Reading(_, prompt), Some(request)) = (&seat.stage, self.requests.get(&seat.request)) else {
                continue;
            };
            let (tokens, bytes) = (prompt.reading.unread(), bytes_of(prompt, request.streams()));
            if tokens > self.options.piece || !(request.streams() || self.open) {
                continue;
            }
            let fits = unread + tokens <= self.options.piece && reserved + bytes <= self.options.batch_bytes;
            if !fits && !self.batch.is_empty() {
                break;
            }
            match seat.join(&mut self.batch, &self.eye.model.tokenizer, request.streams()) {
                Ok(()) => {
                    seat.reserved = bytes;
                    (unread, joined, reserved) = (unread + tokens, true, reserved + bytes);
                }
                Err(error) => failed.push((seat.request, seat.part, error)),
            }
        }
        failed.into_iter().for_each(|(request, part, error)| self.fail(request, part, error.into()));
        joined
    }

    /// Advances all sequences.
    fn decode(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match self.batch.step() {
            Ok(events) => events.into_iter().for_each(|(id, event)| self.advance(id, event)),
            Err(error) => self.fail_those(&error, |seat| matches!(seat.stage, Stage::Decoding(_))),
        }
    }

    fn advance(&mut self, id: SequenceId, event: Event) {
        let of = |seat: &Seat<'_>| matches!(&seat.stage, Stage::Decoding(decoding) if decoding.id == id);
        let Some(place) = self.seats.iter().position(of) else { return };
        let seat = &mut self.seats[place];
        let (Stage::Decoding(decoding), Some(request)) = (&mut seat.stage, self.requests.get_mut(&seat.request)) else {
            return;
        };
        match event {
            Event::Token(token) => {
                let complete = decoding.stream.push(token);
                let text = decoding.stream.fresh();
                if request.streams() && !text.is_empty() {
                    request.tell(Update::Text { index: seat.part, text: text.to_owned() });
                }
                if complete && let Some(ended) = self.batch.end(id, Halt::Stop) {
                    self.finish(place, ended);
                }
            }
            Event::Finished(ended) => self.finish(place, ended),
            Event::Failed(error) => {
                let (request, part, image) = (seat.request, seat.part, decoding.image.clone());
                // Whatever made the numbers none may be in what was read.
                self.eye.prefixes.forget(&image);
                self.fail(request, part, error.into());
            }
        }
    }

    /// Reads on in the given answers of the request whose turn it is.
    fn choose(&mut self) {
        let bytes = self.options.batch_bytes.saturating_sub(self.batch.bytes());
        match self.choosing.step(self.options.piece, bytes) {
            Some((request, Ok(done))) => {
                done.into_iter().for_each(|(number, choices)| self.take_chosen(request, number, choices));
            }
            Some((request, Err(error))) => {
                let of_request = |seat: &Seat<'_>| seat.request == request && matches!(seat.stage, Stage::Choosing(_));
                self.fail_those(&error, of_request);
            }
            None => {}
        }
    }

    /// Reports what was chosen and frees the seat.
    fn take_chosen(&mut self, number: u64, question: usize, choices: ScoredChoices) {
        let is = |seat: &Seat<'_>| {
            seat.request == number && matches!(&seat.stage, Stage::Choosing(other) if other.number == question)
        };
        let Some(place) = self.seats.iter().position(is) else { return };
        let Seat { part: index, stage, .. } = self.seats.remove(place);
        let (Stage::Choosing(question), Some(request)) = (stage, self.requests.get_mut(&number)) else { return };
        request.turn = self.queue.draw_turn();
        match choices {
            Ok(choices) => {
                let chosen = question.asked.chosen(question.reused, choices);
                self.queue.note(|stats| {
                    stats.prompt_tokens += chosen.prompt_tokens as u64;
                    stats.reused_tokens += chosen.reused_tokens as u64;
                });
                request.tell(Update::Chosen { index, chosen });
            }
            Err(error) => {
                // Whatever made the numbers none may be in what was read.
                self.eye.prefixes.forget(&question.image);
                request.tell(Update::Failed { index, error: error.into() });
            }
        }
    }

    /// Reports an answer and frees its seat.
    fn finish(&mut self, place: usize, mut ended: Ended) {
        let Seat { request, part: index, stage, .. } = self.seats.remove(place);
        let (Stage::Decoding(decoding), Some(request)) = (stage, self.requests.get_mut(&request)) else { return };
        let Decoding { image, asked, reused, stream, .. } = *decoding;
        request.turn = self.queue.draw_turn();
        let (text, rest) = stream.finish(&mut ended.generation);
        if request.streams() && !rest.is_empty() {
            request.tell(Update::Text { index, text: rest });
        }
        let answer = asked.answer(reused, &ended.generation, text);
        self.queue.note(|stats| {
            stats.prompt_tokens += answer.prompt_tokens as u64;
            stats.reused_tokens += answer.reused_tokens as u64;
            stats.generated_tokens += answer.generated_tokens as u64;
            stats.drafted_tokens += answer.drafted_tokens as u64;
        });
        if request.streams() {
            self.eye.prefixes.keep(&image, &asked, &ended.generation.ids, ended.branch);
        }
        request.tell(Update::Answer { index, answer });
        self.open = true;
    }

    /// Ends one part without an answer.
    fn fail(&mut self, request: u64, part: usize, failure: Failure) {
        self.tell_failed(request, part, failure);
        self.leave_ended_seats();
    }

    /// Something failed that all of these were part of.
    fn fail_those(&mut self, error: &GenerateError, concerned: impl Fn(&Seat<'_>) -> bool) {
        let seats = self.seats.iter().filter(|seat| concerned(seat));
        for (request, part) in seats.map(|seat| (seat.request, seat.part)).collect::<Vec<_>>() {
            self.tell_failed(request, part, Failure::Engine(error.to_string()));
        }
        self.leave_ended_seats();
    }

    fn tell_failed(&mut self, request: u64, index: usize, error: Failure) {
        if let Some(request) = self.requests.get_mut(&request) {
            request.tell(Update::Failed { index, error });
        }
    }

    /// Frees the seats of parts that have ended.
    fn leave_ended_seats(&mut self) {
        let (requests, batch, choosing) = (&self.requests, &mut self.batch, &mut self.choosing);
        self.seats.retain(|seat| {
            let stays = requests.get(&seat.request).is_some_and(|request| request.is_open(seat.part));
            if !stays {
                seat.stop(batch, choosing);
            }
            stays
        });
    }

    /// Lets the latest of many parts begin anew later, if answers became longer than expected. Nobody has
    /// seen anything of them yet.
    fn make_room(&mut self) {
        while self.batch.bytes() > self.options.batch_bytes && self.batch.len() > 1 {
            let Some(id) = self.seats.iter_mut().rev().find_map(Seat::step_back) else { return };
            self.batch.end(id, Halt::Cancel);
            self.open = false;
        }
    }

    fn report(&self, began: Instant, read: bool) {
        let took = self.queue.now().saturating_duration_since(began).as_secs_f64();
        let (hits, misses) = self.eye.images.hits_and_misses();
        self.queue.note(|stats| {
            (stats.running, stats.sequences) = (self.requests.len(), self.batch.len());
            (stats.image_hits, stats.image_misses) = (hits, misses);
            (stats.image_bytes, stats.prefix_bytes) = (self.eye.images.bytes(), self.eye.prefixes.bytes());
            *(if read { &mut stats.prefill_seconds } else { &mut stats.decode_seconds }) += took;
        });
    }
}

impl<'m> Seat<'m> {
    /// Into the batch, from where a part of many can be sent back.
    fn join(
        &mut self,
        batch: &mut DecodeBatch<'m>,
        tokenizer: &'m Tokenizer,
        streams: bool,
    ) -> Result<(), GenerateError> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Looking) {
            Stage::Reading(image, Prompt { asked, reading, reused }) => {
                let (sampler, limits) = (asked.rendered().sampler(), asked.rendered().limits());
                // A copy of a long prompt would have to be copied for good as soon as the answer begins.
                let again = (!streams).then(|| reading.clone());
                let told = asked.show(batch.drafter(), reused);
                let id = batch.add(NewSequence { reading, sampler, limits, told })?;
                let stream = AnswerStream::new(tokenizer, asked.rendered().stop());
                Stage::Decoding(Box::new(Decoding { id, image, asked, reused, stream, again }))
            }
            stage => stage,
        };
        Ok(())
    }

    /// Lets go of what is written or chosen for it.
    fn stop(&self, batch: &mut DecodeBatch<'_>, choosing: &mut Choosing<'_>) {
        match &self.stage {
            Stage::Decoding(decoding) => _ = batch.end(decoding.id, Halt::Cancel),
            Stage::Choosing(question) => choosing.end(self.request, question.number),
            Stage::Looking | Stage::Waiting { .. } | Stage::Reading(..) => {}
        }
    }

    /// Back to before it joined, if it can; which sequence it was.
    fn step_back(&mut self) -> Option<SequenceId> {
        let Stage::Decoding(decoding) = &mut self.stage else { return None };
        let (id, image, reused) = (decoding.id, decoding.image.clone(), decoding.reused);
        let prompt = Prompt { reading: decoding.again.take()?, asked: decoding.asked.clone(), reused };
        (self.reserved, self.stage) = (0, Stage::Reading(image, prompt));
        Some(id)
    }
}

impl Stage<'_> {
    /// The question whose beginning has to be read first.
    fn waiting(&self) -> Option<&Asked> {
        match self {
            Stage::Waiting { prompt, .. } => Some(&prompt.asked),
            _ => None,
        }
    }
}

/// A panic takes the scheduler along, and nobody may be left waiting for it.
impl Drop for Scheduler<'_> {
    fn drop(&mut self) {
        for request in self.requests.values_mut() {
            request.fail_all(|| Failure::Engine("it panicked".to_owned()));
            self.queue.ended(request);
        }
        self.queue.note(|stats| (stats.running, stats.sequences) = (0, 0));
    }
}

/// Bytes of keys and values that a prompt and its answer may come to take. An answer that is shown as it
/// is written can't be begun anew, so there has to be room for all of it; others are expected to be
/// a caption of a sentence or two.
fn bytes_of(prompt: &Prompt, streams: bool) -> usize {
    const CAPTION: usize = 32;
    let (rendered, branch) = (prompt.asked.rendered(), prompt.reading.branch());
    let longest = rendered.limits().max_new_tokens;
    let answer = if streams { longest } else { longest.min(CAPTION) };
    let tokens = rendered.tokens() - branch.prefix().len() + answer;
    branch.prefix().bytes_per_token() * tokens
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use candle_core::{Device, Tensor};
    use gpt4roi::{
        BBox, Chat, Choices, Config, Gpt4Roi, Image, Network, RegionId,
        asked::{Exchange, Said},
        bbox::Point,
        chat::{Answer, AskOptions},
        choices::{Chosen, Scoring},
        drafter::Told,
        generate::{FinishReason, Limits},
        image::DEFAULT_MAX_PIXELS,
        image_cache::ImageCache,
        kv_cache::Branch,
        prefix_cache::PrefixCache,
        random_weights::RandomWeights,
        sampling::{Sampler, Sampling},
        shape::Shape,
        stop::StopStrings,
        tokenizer::Tokenizer,
        weights::{TensorSource, Weights, WeightsResult},
    };

    use super::*;
    use crate::engine::{Bulk, Engine, Question, Refused, Reply};

    /// A word that is in no prompt but those that say it, and makes their numbers none.
    const POISON: &str = "Ω";

    struct Poisoned(RandomWeights, u32);

    impl TensorSource for Poisoned {
        fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
            let tensor = self.0.tensor(name, shape)?;
            if name != "model.embed_tokens.weight" {
                return Ok(tensor);
            }
            let rows = (0..shape[0]).map(|row| if row == self.1 as usize { f32::NAN } else { 1.0 });
            let rows = Tensor::from_iter(rows, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
            Ok(tensor.broadcast_mul(&rows).unwrap())
        }
    }

    /// The architecture in miniature: what it says means nothing.
    fn tiny() -> Gpt4Roi {
        let tokenizer = include_bytes!("../../gpt4roi/tests/data/tokenizer.model");
        let added = include_str!("../../gpt4roi/tests/data/added_tokens.json");
        let tokenizer = Tokenizer::from_bytes(tokenizer, added).unwrap();
        let mut config = Config::pico(tokenizer.vocab_size());
        (config.llama.hidden_size, config.llama.intermediate_size, config.llama.num_hidden_layers) = (32, 48, 2);
        (config.vision.hidden_size, config.vision.intermediate_size, config.vision.image_size) = (16, 32, 56);
        (config.region.dim, config.region.gn_groups, config.region.fuse_rounds) = (8, 2, 1);
        (config.region.roi_size, config.region.pos_hidden) = (4, 8);
        let poison = *tokenizer.encode_text(POISON).last().unwrap();
        let weights = Weights::new(Arc::new(Poisoned(RandomWeights::new(3), poison)));
        let network = Network::load(&config, &weights, &weights).unwrap();
        Gpt4Roi { network, tokenizer, config, device: Device::Cpu }
    }

    /// Pieces so short that every picture takes several.
    fn options() -> EngineOptions {
        EngineOptions { max_queue: 3, max_sequences: 2, piece: 24, ..EngineOptions::default() }
    }

    /// An engine that is driven by hand, with a clock that is set by hand.
    struct Driven<'a> {
        engine: &'a Engine,
        scheduler: Scheduler<'a>,
        eye: &'a Eye<'a>,
        queue: &'a Queue,
        time: Arc<Mutex<Instant>>,
    }

    fn driven(model: Gpt4Roi, options: EngineOptions, test: impl FnOnce(&mut Driven<'_>)) {
        let time = Arc::new(Mutex::new(Instant::now()));
        let clock = time.clone();
        let engine = Engine::new(model, options, Arc::new(move || *clock.lock().unwrap()));
        let (model, queue, options) = engine.parts();
        let (images, prefixes) = (ImageCache::new(options.cache_bytes), PrefixCache::new(options.prefix_bytes));
        let eye = Eye { model: &model, images: &images, prefixes: &prefixes };
        let scheduler = Scheduler::new(&eye, &queue, &options);
        test(&mut Driven { engine: &engine, scheduler, eye: &eye, queue: &queue, time });
    }

    impl Driven<'_> {
        fn step(&mut self) {
            self.scheduler.step();
            self.look();
        }

        /// Takes all looks that are asked for; how many those were.
        fn look(&mut self) -> usize {
            let mut looks = 0;
            while let Some(look) = self.scheduler.next_look() {
                self.queue.looked(look.run(self.eye));
                looks += 1;
            }
            looks
        }

        fn settle(&mut self) {
            for _ in 0..5000 {
                self.scheduler.step();
                let looks = self.look();
                if self.scheduler.requests.is_empty() && self.queue.is_empty() {
                    assert!(self.scheduler.seats.is_empty() && self.scheduler.batch.is_empty());
                    assert!(self.scheduler.beginnings.is_empty() && self.scheduler.choosing.is_empty());
                    return;
                }
                assert!(looks > 0 || self.scheduler.has_work(), "the thread would go to sleep here");
            }
            panic!("still running");
        }

        /// Steps until something is so.
        fn until(&mut self, so: impl Fn(&Scheduler<'_>) -> bool) {
            (0..1000).find(|_| {
                self.step();
                so(&self.scheduler)
            });
            assert!(so(&self.scheduler));
        }

        fn pass(&self, time: Duration) {
            *self.time.lock().unwrap() += time;
        }

        fn in_an_hour(&self) -> Instant {
            *self.time.lock().unwrap() + Duration::from_secs(3600)
        }

        fn question(&self, image: &Arc<Image>, text: &str) -> Question {
            Question {
                image: image.clone(),
                regions: vec![(RegionId(1), shape(1)), (RegionId(2), shape(2))],
                rounds: Vec::new(),
                question: said(text),
                choices: None,
                options: AskOptions { max_new_tokens: 12, ..AskOptions::default() },
                deadline: self.in_an_hour(),
            }
        }

        fn ask(&self, image: &Arc<Image>, text: &str) -> Reply {
            self.engine.ask(self.question(image, text)).unwrap()
        }

        fn describe(&self, image: &Arc<Image>, shapes: usize) -> Reply {
            let shapes = (0..shapes).map(shape).collect();
            let Question { image, options, deadline, .. } = self.question(image, "");
            let question = "What is <region1>?".to_owned();
            self.engine.describe(Bulk { image, shapes, question, choices: None, options, deadline }).unwrap()
        }
    }

    fn said(text: &str) -> Vec<Said> {
        vec![Said::Text(text.into())]
    }

    fn picture(shade: u8) -> Arc<Image> {
        let color = |x, y| image::Rgb([(3 * x) as u8, (5 * y) as u8, shade]);
        Arc::new(Image::from_rgb(image::RgbImage::from_fn(80, 60, color)))
    }

    fn bbox(i: usize) -> BBox {
        let (x, y) = ((i * 37 % 80) as f64 / 100.0, (i * 53 % 70) as f64 / 100.0);
        BBox::from_normalized([x, y, x + 0.15, y + 0.2 + i as f64 * 1e-3]).unwrap()
    }

    fn shape(i: usize) -> Shape {
        Shape::Box(bbox(i))
    }

    fn updates(reply: &mut Reply) -> Vec<Update> {
        std::iter::from_fn(|| reply.try_next()).collect()
    }

    /// The one answer, after its text was checked to be what was streamed.
    #[track_caller]
    fn answer(reply: &mut Reply) -> Answer {
        answer_in(&updates(reply))
    }

    #[track_caller]
    fn answer_in(updates: &[Update]) -> Answer {
        let [Update::Started { .. }, texts @ .., Update::Answer { index: 0, answer }] = updates else {
            panic!("{updates:?}")
        };
        let text = |update: &Update| match update {
            Update::Text { index: 0, text } if !text.is_empty() => text.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(texts.iter().map(text).collect::<String>(), answer.text);
        answer.clone()
    }

    fn choices() -> Choices {
        Choices::new(["a", "a cat", "a cat on a mat", "a dog", "dog"]).unwrap()
    }

    /// What was chosen for every part, by index.
    fn chosen(reply: &mut Reply) -> Vec<Chosen> {
        let mut chosen: Vec<_> = updates(reply)
            .into_iter()
            .filter_map(|update| match update {
                Update::Started { .. } => None,
                Update::Chosen { index, chosen } => Some((index, chosen)),
                other => panic!("{other:?}"),
            })
            .collect();
        chosen.sort_by_key(|(index, _)| *index);
        assert!(chosen.iter().enumerate().all(|(place, (index, _))| place == *index));
        chosen.into_iter().map(|(_, chosen)| chosen).collect()
    }

    #[track_caller]
    fn assert_same_choice(got: &Chosen, expected: &Chosen) {
        assert_eq!((&got.question, &got.regions, got.best()), (&expected.question, &expected.regions, expected.best()));
        assert_eq!(got.prompt_tokens, expected.prompt_tokens);
        for (got, expected) in got.choices.iter().zip(&expected.choices) {
            assert_eq!((&got.text, got.tokens, got.complete), (&expected.text, expected.tokens, expected.complete));
            assert!((got.log_probability - expected.log_probability).abs() < 1e-3, "{got:?} {expected:?}");
        }
    }

    /// Beside others that are asked in words, and whose answers do not change.
    #[test]
    fn what_is_chosen_is_what_a_conversation_chooses() {
        let model = tiny();
        let likely = AskOptions { scoring: Scoring::Likely, ..AskOptions::default() };
        let mut chat = Chat::new(&model, &picture(0)).unwrap();
        let shapes: Vec<Shape> = (0..5).map(shape).collect();
        let of_regions = chat.choose_for_regions(&shapes, "What is <region1>?", &choices(), &likely).unwrap();
        for number in [1, 2] {
            chat.add_region(bbox(number));
        }
        let of_one = chat.choose("Is <region2> [8, 6, 40, 30]?", &choices(), &likely).unwrap();

        driven(tiny(), EngineOptions { max_sequences: 4, ..options() }, |driven| {
            let image = picture(0);
            let mut alone = driven.ask(&image, "What is <region1>?");
            driven.settle();
            let (mut words, mut many) = (driven.ask(&image, "What is <region1>?"), {
                let Question { image, options, deadline, .. } = driven.question(&image, "");
                let (shapes, question) = (shapes.clone(), "What is <region1>?".to_owned());
                driven.engine.describe(Bulk { image, shapes, question, choices: Some(choices()), options, deadline })
            });
            let question = driven.question(&image, "Is <region2> [8, 6, 40, 30]?");
            let mut one = driven.engine.ask(Question { choices: Some(choices()), ..question }).unwrap();
            driven.settle();
            assert_eq!(answer(&mut words).text, answer(&mut alone).text);
            for (got, expected) in chosen(many.as_mut().unwrap()).iter().zip(&of_regions) {
                assert_same_choice(got, expected);
            }
            assert_same_choice(&chosen(&mut one)[0], &of_one);
            assert_eq!(driven.engine.stats().requests.answered, 4);
        });
    }

    /// One goes away while the model reads its choices, one whose numbers are none fails, and one gets its choice.
    #[test]
    fn choosing_ends_for_those_alone_whom_it_concerns() {
        driven(tiny(), options(), |driven| {
            let image = picture(0);
            let ask = |driven: &Driven<'_>, text: &str| {
                let question = driven.question(&image, text);
                driven.engine.ask(Question { choices: Some(choices()), ..question }).unwrap()
            };
            let gone = ask(driven, "What is <region1>?");
            let (mut broken, mut other) = (ask(driven, POISON), ask(driven, "What is <region2>?"));
            driven.until(|scheduler| !scheduler.choosing.is_empty());
            drop(gone);
            driven.settle();
            assert!(matches!(failures(&mut broken)[..], [(0, Failure::Numbers)]));
            assert_eq!(chosen(&mut other).len(), 1);
        });
    }

    #[test]
    fn a_choice_that_does_not_fit_is_refused_when_it_is_asked_for() {
        driven(tiny(), options(), |driven| {
            let long = Choices::new(["a".to_owned(), "b ".repeat(4000)]).unwrap();
            let question = driven.question(&picture(0), "What is <region1>?");
            let refused = driven.engine.ask(Question { choices: Some(long), ..question }).unwrap_err();
            assert!(matches!(refused, Refused::Question(gpt4roi::Error::Prompt(_))), "{refused}");
        });
    }

    /// The failures of every part, by index.
    fn failures(reply: &mut Reply) -> Vec<(usize, Failure)> {
        let failure = |update| match update {
            Update::Failed { index, error } => Some((index, error)),
            _ => None,
        };
        updates(reply).into_iter().filter_map(failure).collect()
    }

    #[track_caller]
    fn assert_same(got: &Answer, expected: &Answer) {
        let words = |answer: &Answer| (answer.text.clone(), answer.question.clone(), answer.finish);
        assert_eq!(words(got), words(expected));
        assert_eq!((&got.regions, got.prompt_tokens), (&expected.regions, expected.prompt_tokens));
        assert_eq!(got.generated_tokens, expected.generated_tokens);
        let (a, b) = (got.mean_log_probability.unwrap(), expected.mean_log_probability.unwrap());
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }

    /// A conversation held through the engine, and what a chat of its own says.
    struct Talk {
        image: Arc<Image>,
        options: AskOptions,
        questions: Vec<String>,
        expected: Vec<Answer>,
        said: Vec<Exchange>,
        open: Option<(Reply, Vec<Update>)>,
    }

    impl Talk {
        fn new(model: &Gpt4Roi, image: &Arc<Image>, questions: &[&str], options: AskOptions) -> Self {
            let mut chat = Chat::new(model, image).unwrap();
            (1..=2).for_each(|i| _ = chat.add_region(bbox(i)));
            let expected = questions.iter().map(|question| chat.ask_with(question, &options).unwrap()).collect();
            let questions = questions.iter().map(|question| (*question).to_owned()).collect();
            Self { image: image.clone(), options, questions, expected, said: Vec::new(), open: None }
        }

        /// Takes an answer that is there, or asks the next question.
        fn go_on(&mut self, driven: &Driven<'_>) {
            let round = self.said.len();
            let Some((reply, seen)) = &mut self.open else {
                if let Some(question) = self.questions.get(round) {
                    let (rounds, options) = (self.said.clone(), self.options.clone());
                    let question = Question { rounds, options, ..driven.question(&self.image, question) };
                    self.open = Some((driven.engine.ask(question).unwrap(), Vec::new()));
                }
                return;
            };
            seen.extend(updates(reply));
            if let Some(Update::Answer { .. }) = seen.last() {
                let answer = answer_in(seen);
                assert_same(&answer, &self.expected[round]);
                // Later rounds go on where the picture ended at least.
                assert!(round == 0 || answer.reused_tokens > driven.eye.model.config.vision.patches());
                self.said.push(Exchange { question: said(&self.questions[round]), answer: answer.text });
                self.open = None;
            }
        }
    }

    /// Conversations of several rounds about several pictures, in an order that chance decides, beside a
    /// bulk question; memory enough, for little, and for nothing.
    fn interleaved(model: impl Fn() -> Gpt4Roi, images: &[Arc<Image>], talks: usize, options: EngineOptions) {
        let drawn = Sampling::Random { temperature: 1.5, top_k: 0, top_p: 1.0, seed: 7 };
        let questions = ["What is <region2>?", "Is [8, 6, 40, 30] left of region 1?", "And what is at (0.5, 0.5)?"];
        driven(model(), EngineOptions { max_queue: 64, ..options }, |driven| {
            let mut talks: Vec<_> = (0..talks)
                .map(|i| {
                    let mut questions = questions;
                    questions.rotate_left(i % 3);
                    let sampling = if i % 4 == 3 { drawn.clone() } else { Sampling::Greedy };
                    let options = AskOptions { max_new_tokens: 4 + 5 * (i % 3), sampling, ..AskOptions::default() };
                    Talk::new(driven.eye.model, &images[i % images.len()], &questions, options)
                })
                .collect();
            let boxes: Vec<_> = (0..5).map(bbox).collect();
            let options = AskOptions { max_new_tokens: 12, ..AskOptions::default() };
            let mut chat = Chat::new(driven.eye.model, &images[0]).unwrap();
            let described = chat.describe_regions(&boxes, "What is <region1>?", &options).unwrap();
            let mut bulk = driven.describe(&images[0], 5);
            let mut chance = 1u32;
            for _ in 0..4000 {
                chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let place = (chance >> 16) as usize % (2 * talks.len());
                match talks.get_mut(place) {
                    Some(talk) => talk.go_on(driven),
                    None => driven.step(),
                }
                if talks.iter().all(|talk| talk.said.len() == questions.len()) {
                    break;
                }
            }
            assert!(talks.iter().all(|talk| talk.said.len() == questions.len()), "all were answered");
            driven.settle();
            let mut seen = vec![false; 5];
            for update in updates(&mut bulk) {
                if let Update::Answer { index, answer } = update {
                    assert_same(&answer, &described[index]);
                    assert!(!std::mem::replace(&mut seen[index], true));
                }
            }
            assert_eq!(seen, [true; 5]);
            let stats = driven.engine.stats();
            assert_eq!((stats.requests.answered, stats.queued, stats.running), (3 * talks.len() as u64 + 1, 0, 0));
        });
    }

    #[test]
    fn conversations_among_others_are_those_of_a_chat() {
        let images = [picture(0), picture(90)];
        interleaved(tiny, &images, 6, EngineOptions { max_sequences: 5, ..options() });
    }

    #[test]
    fn the_embedded_model_says_in_company_what_it_says_alone() {
        let image = Image::open("../../docs/example.png", DEFAULT_MAX_PIXELS).unwrap();
        let model = || Gpt4Roi::nano(&Device::Cpu).unwrap();
        interleaved(model, &[Arc::new(image)], 3, EngineOptions { max_sequences: 4, ..EngineOptions::default() });
    }

    /// Parts of the bulk question are sent back and begin anew, and nothing is kept.
    #[test]
    fn little_memory_changes_no_answer() {
        let expected = |driven: &Driven<'_>, shapes: usize, options: &AskOptions| {
            let boxes: Vec<_> = (0..shapes).map(bbox).collect();
            let mut chat = Chat::new(driven.eye.model, &picture(0)).unwrap();
            chat.describe_regions(&boxes, "What is <region1>?", options).unwrap()
        };
        // 2 layers, keys and values, 32 channels of 4 bytes, about 14 + 32 tokens, three times.
        for batch_bytes in [0, 3 * 50 * 2 * 2 * 32 * 4] {
            let nothing = EngineOptions { max_sequences: 8, prefix_bytes: 0, cache_bytes: 0, ..options() };
            driven(tiny(), EngineOptions { batch_bytes, ..nothing }, |driven| {
                let long = AskOptions { max_new_tokens: 90, ..AskOptions::default() };
                let expected = expected(driven, 8, &long);
                assert!(expected.iter().any(|answer| answer.generated_tokens > 60), "long enough to outgrow");
                let bulk = Bulk {
                    image: picture(0),
                    shapes: (0..8).map(shape).collect(),
                    question: "What is <region1>?".to_owned(),
                    choices: None,
                    options: long,
                    deadline: driven.in_an_hour(),
                };
                let mut reply = driven.engine.describe(bulk).unwrap();
                driven.settle();
                let answers = updates(&mut reply).into_iter().filter_map(|update| match update {
                    Update::Answer { index, answer } => Some((index, answer)),
                    _ => None,
                });
                let answers: BTreeMap<_, _> = answers.collect();
                assert_eq!(answers.len(), 8);
                answers.iter().for_each(|(index, answer)| assert_same(answer, &expected[*index]));
            });
        }
    }

    #[test]
    fn a_picture_is_looked_at_and_read_once() {
        driven(tiny(), options(), |driven| {
            let image = picture(0);
            let (mut first, mut second) = (driven.ask(&image, "What is <region1>?"), driven.ask(&image, "Hello?"));
            driven.settle();
            let end = driven.eye.model.config.vision.patches();
            let reused = [answer(&mut first).reused_tokens, answer(&mut second).reused_tokens];
            assert!(reused[0] == 0 && reused[1] > end, "both came at once, and one waited: {reused:?}");
            // The same pixels from another upload.
            let mut third = driven.ask(&picture(0), "What is <region2>?");
            let mut many = driven.describe(&image, 3);
            driven.settle();
            assert!(answer(&mut third).reused_tokens > end);
            for update in updates(&mut many) {
                if let Update::Answer { answer, .. } = update {
                    assert!(answer.reused_tokens >= end, "{answer:?}");
                }
            }
            let stats = driven.engine.stats();
            assert_eq!((stats.image_misses, stats.requests.answered), (1, 4));
            assert!(stats.image_bytes > 0 && stats.prefix_bytes > 0 && stats.reused_tokens > 4 * end as u64);
        });
    }

    #[test]
    fn a_question_that_starts_tells_where_its_regions_lie() {
        driven(tiny(), options(), |driven| {
            let mut reply = driven.ask(&picture(0), "Is <region2> at [8, 6, 40, 30]?");
            driven.settle();
            let Some(Update::Started { regions }) = reply.try_next() else { panic!() };
            let size = picture(0).size();
            let expected = [(1, bbox(1).pixels(size)), (2, bbox(2).pixels(size)), (3, [8.0, 6.0, 40.0, 30.0])];
            assert_eq!(regions.iter().map(|region| (region.id, region.pixels)).collect::<Vec<_>>(), expected);

            let point = Shape::Point(Point::from_normalized([0.5, 0.5]).unwrap());
            let Question { image, options, deadline, .. } = driven.question(&picture(0), "");
            let (shapes, question) = (vec![shape(4), point], "Is <region1> [8, 6, 40, 30]?".to_owned());
            let mut reply =
                driven.engine.describe(Bulk { image, shapes, question, choices: None, options, deadline }).unwrap();
            driven.settle();
            let Some(Update::Started { regions }) = reply.try_next() else { panic!() };
            assert_eq!(regions.iter().map(|region| region.id).collect::<Vec<_>>(), [1, 1], "one for each shape");
            assert_eq!(regions[0].pixels, bbox(4).pixels(size));
            let [x1, y1, x2, y2] = regions[1].pixels;
            assert!(x1 < 40.0 && 40.0 < x2 && y1 < 30.0 && 30.0 < y2, "the point lies in its box");

            // A part that gets a seat while another is looked at for the first time.
            let one = driven.ask(&picture(0), "What?");
            let mut many = driven.describe(&picture(0), 3);
            driven.scheduler.step();
            drop(one);
            driven.scheduler.step();
            assert_eq!(driven.scheduler.looks.len(), 2, "for the first part and for the second");
            driven.look();
            driven.settle();
            let started = updates(&mut many).iter().filter(|update| matches!(update, Update::Started { .. })).count();
            assert_eq!(started, 1);
        });
    }

    #[test]
    fn a_full_queue_refuses_and_says_for_how_long() {
        driven(tiny(), options(), |driven| {
            let image = picture(0);
            driven.queue.open(Duration::from_secs(8));
            let waiting: Vec<_> = (0..3).map(|_| driven.ask(&image, "What is <region1>?")).collect();
            let refused = driven.engine.ask(driven.question(&image, "What?")).unwrap_err();
            // Three wait, two are answered at a time, each takes 8 s: 3 / 2 · 8 s.
            let Refused::Full { retry_after } = refused else { panic!("{refused}") };
            assert_eq!(retry_after, Duration::from_secs(12));
            assert!(
                matches!(driven.engine.check_room(), Err(Refused::Full { retry_after: told }) if told == retry_after)
            );
            // A place in the queue is free as soon as somebody leaves it.
            drop(waiting);
            assert!(driven.engine.check_room().is_ok());
            let mut next = driven.ask(&image, "What?");
            driven.settle();
            answer(&mut next);
            let requests = driven.engine.stats().requests;
            assert_eq!((requests.cancelled, requests.refused, requests.answered), (3, 2, 1));
        });
        let small = EngineOptions { queue_bytes: 2 * 80 * 60 * 3, ..options() };
        driven(tiny(), small, |driven| {
            let ask = |shade| driven.engine.ask(driven.question(&picture(shade), "What?"));
            let kept = [ask(0), ask(1)];
            assert!(kept.iter().all(Result::is_ok));
            assert!(matches!(ask(2), Err(Refused::Full { .. })), "pictures need memory while they wait");
        });
    }

    #[test]
    fn a_picture_that_several_ask_about_waits_once() {
        let one = EngineOptions { queue_bytes: 80 * 60 * 3, ..options() };
        driven(tiny(), one, |driven| {
            let upload = picture(0);
            let waiting = [(); 2].map(|()| driven.ask(&upload, "What is <region1>?"));
            let other = driven.engine.ask(driven.question(&picture(0), "What?"));
            assert!(matches!(other, Err(Refused::Full { .. })), "the same pixels once more");
            drop(waiting);
        });
    }

    /// What was read and written stays for the next question, and nobody is said to have gone away.
    #[test]
    fn a_string_of_the_clients_ends_an_answer_as_the_model_does() {
        driven(tiny(), options(), |driven| {
            let image = picture(0);
            let ask = |driven: &Driven<'_>, stop: Option<&str>| {
                let mut question = driven.question(&image, "What is <region1>?");
                question.options.stop = StopStrings::new(stop.map(str::to_owned));
                driven.engine.ask(question).unwrap()
            };
            let mut whole = ask(driven, None);
            driven.settle();
            let whole = answer(&mut whole);
            let (place, stop) = whole.text.char_indices().nth(whole.text.chars().count() / 2).unwrap();
            let (expected, _) = whole.text.split_once(stop).unwrap();
            assert!(whole.text.is_char_boundary(place) && expected.len() < whole.text.len());

            let mut stopped = ask(driven, Some(&stop.to_string()));
            driven.settle();
            let stopped = answer(&mut stopped);
            assert_eq!((stopped.text.as_str(), stopped.finish), (expected, FinishReason::Stop));
            assert!((1..=whole.generated_tokens).contains(&stopped.generated_tokens));
            assert!(stopped.mean_log_probability.is_some());
            let requests = driven.engine.stats().requests;
            assert_eq!((requests.answered, requests.cancelled), (2, 0));
        });
    }

    #[test]
    fn what_can_not_be_asked_never_waits() {
        driven(tiny(), options(), |driven| {
            let refused = |question: Vec<Said>| {
                let question = Question { question, ..driven.question(&picture(0), "") };
                matches!(driven.engine.ask(question), Err(Refused::Question(_)))
            };
            for question in ["What is <region3>?", "", "What is [0, 0, 9000, 1]?", &"what ".repeat(4000)] {
                assert!(refused(said(question)), "{question:.30}");
            }
            assert!(refused(vec![Said::Region(RegionId(9))]));
            assert!(!refused(vec![Said::Literal("What is <region9>?".into())]));
            let Question { image, options, deadline, .. } = driven.question(&picture(0), "");
            let bulk =
                Bulk { image, shapes: vec![shape(1)], question: "<region2>?".into(), choices: None, options, deadline };
            assert!(matches!(driven.engine.describe(bulk), Err(Refused::Question(_))));
            // Nothing to describe is no failure.
            let mut nothing = driven.describe(&picture(0), 0);
            driven.settle();
            assert!(updates(&mut nothing).is_empty());
        });
    }

    /// While it is looked at, while its picture is read, while its long prompt is read, while it is decoded.
    #[test]
    fn whoever_goes_away_is_gone_at_the_next_step() {
        type So = fn(&Scheduler<'_>) -> bool;
        let looked_at: So = |scheduler| matches!(scheduler.seats[0].stage, Stage::Looking);
        let begun: So = |scheduler| scheduler.beginnings.iter().any(|beginning| beginning.reading.branch().len() > 20);
        let read: So = |scheduler| match &scheduler.seats[0].stage {
            Stage::Reading(_, prompt) => prompt.reading.branch().own().len() > 20,
            _ => false,
        };
        let decoded: So = |scheduler| scheduler.batch.len() == 1;
        for (name, so) in [("looked at", looked_at), ("begun", begun), ("read", read), ("decoded", decoded)] {
            driven(tiny(), EngineOptions { max_sequences: 1, ..options() }, |driven| {
                let first = driven.ask(&picture(0), &"what is there ".repeat(12));
                let mut second = driven.ask(&picture(0), "What is <region1>?");
                driven.scheduler.step();
                if name != "looked at" {
                    driven.look();
                    driven.until(so);
                }
                assert!(so(&driven.scheduler), "{name}");
                assert_eq!((driven.scheduler.requests.len(), driven.engine.stats().queued), (1, 1), "{name}");
                drop(first);
                driven.step();
                let requests: Vec<_> = driven.scheduler.requests.keys().copied().collect();
                assert_eq!((requests, driven.scheduler.seats.len()), (vec![2], 1), "{name}");
                driven.settle();
                answer(&mut second);
                let requests = driven.engine.stats().requests;
                assert_eq!((requests.cancelled, requests.answered), (1, 1), "{name}");
            });
        }
    }

    #[test]
    fn what_is_too_late_ends_wherever_it_is() {
        driven(tiny(), EngineOptions { max_sequences: 1, ..options() }, |driven| {
            let second = Duration::from_secs(1);
            let soon = driven.in_an_hour() - 3598 * second;
            let with = |deadline, text| Question { deadline, ..driven.question(&picture(0), text) };
            let mut runs = driven.engine.ask(with(soon, "What is <region1>?")).unwrap();
            let mut waits = driven.engine.ask(with(soon, "What is <region2>?")).unwrap();
            let mut later = driven.engine.ask(with(soon + second, "What is <region2>?")).unwrap();
            driven.until(|scheduler| scheduler.batch.len() == 1);
            assert_eq!(driven.scheduler.next_deadline(), Some(soon));
            driven.pass(2 * second - Duration::from_millis(1));
            driven.step();
            assert!(driven.scheduler.requests.contains_key(&1));
            driven.pass(Duration::from_millis(1));
            driven.step();
            assert!(!driven.scheduler.requests.contains_key(&1), "in the middle of its answer");
            for reply in [&mut runs, &mut waits] {
                assert!(matches!(failures(reply)[..], [(0, Failure::Deadline)]));
            }
            driven.settle();
            answer(&mut later);
            let mut many = driven.describe(&picture(0), 4);
            driven.pass(2 * Duration::from_secs(3600));
            driven.settle();
            assert_eq!(failures(&mut many).len(), 4, "one for each part");
            let requests = driven.engine.stats().requests;
            assert_eq!((requests.deadline, requests.answered), (3, 1));
        });
    }

    #[test]
    fn a_stop_lets_everybody_finish_and_nobody_in() {
        driven(tiny(), EngineOptions { max_sequences: 1, ..options() }, |driven| {
            let (mut runs, mut waits) = (driven.ask(&picture(0), "What?"), driven.ask(&picture(0), "Where?"));
            driven.step();
            assert!(!driven.scheduler.is_done());
            driven.engine.stop();
            let late = driven.engine.ask(driven.question(&picture(0), "Who?"));
            assert!(matches!(late, Err(Refused::Stopping)) && !driven.engine.is_ready());
            driven.settle();
            answer(&mut runs);
            answer(&mut waits);
            assert!(driven.scheduler.is_done());
        });
    }

    /// Equal answers end in the same step, behind which nobody is left who would cause another.
    #[test]
    fn seats_that_are_left_all_at_once_are_given_away_again() {
        let options = EngineOptions { max_sequences: 3, ..EngineOptions::default() };
        driven(tiny(), options, |driven| {
            let image = picture(1);
            let Question { options, deadline, .. } = driven.question(&image, "");
            let (shapes, question) = (vec![shape(1); 8], "What is <region1>?".to_owned());
            let bulk = Bulk { image: image.clone(), shapes, question, choices: None, options, deadline };
            let mut bulk = driven.engine.describe(bulk).unwrap();
            let mut queued: Vec<_> = (0..4).map(|_| driven.ask(&image, "What is <region1>?")).collect();
            driven.settle();
            let answers = |reply: &mut Reply| {
                updates(reply).iter().filter(|update| matches!(update, Update::Answer { .. })).count()
            };
            assert_eq!(answers(&mut bulk), 8);
            assert!(queued.iter_mut().all(|reply| answers(reply) == 1));
        });
    }

    /// Two bulk questions of forty parts have all seats. A single one gets the first that is free, and
    /// the seats are shared evenly.
    #[test]
    fn one_question_does_not_wait_for_hundreds() {
        driven(tiny(), EngineOptions { max_sequences: 4, piece: 128, ..options() }, |driven| {
            let mut many = [driven.describe(&picture(0), 40), driven.describe(&picture(0), 40)];
            driven.until(|scheduler| scheduler.batch.len() == 4);
            let seats = |scheduler: &Scheduler<'_>, number| {
                scheduler.seats.iter().filter(|seat| seat.request == number).count()
            };
            assert_eq!((seats(&driven.scheduler, 1), seats(&driven.scheduler, 2)), (2, 2));
            let mut one = driven.ask(&picture(0), "What is <region1>?");
            driven.until(|scheduler| scheduler.requests.contains_key(&3));
            driven.until(|scheduler| !scheduler.requests.contains_key(&3));
            answer(&mut one);
            let answered = many
                .each_mut()
                .map(|reply| updates(reply).iter().filter(|update| matches!(update, Update::Answer { .. })).count());
            // Parts take up to 12 steps in 4 seats; the single question is over within three answers' time.
            assert!(answered.iter().all(|&answered| answered <= 3 * 2), "{answered:?}");
            driven.settle();
            let rest = many
                .each_mut()
                .map(|reply| updates(reply).iter().filter(|update| matches!(update, Update::Answer { .. })).count());
            assert_eq!([answered[0] + rest[0], answered[1] + rest[1]], [40, 40]);
        });
    }

    /// As many of them as there are seats, one more in the queue, and questions behind it all the time. Nobody
    /// has to wait for a request to end, neither the questions nor the many parts.
    #[test]
    fn one_question_does_not_wait_for_as_many_bulk_questions_as_there_are_seats() {
        driven(tiny(), EngineOptions { max_queue: 8, piece: 128, ..options() }, |driven| {
            let image = picture(0);
            let mut many = [30, 30, 30].map(|shapes| driven.describe(&image, shapes));
            driven.until(|scheduler| scheduler.batch.len() == 2);
            let answers = |reply: &mut Reply| {
                updates(reply).iter().filter(|update| matches!(update, Update::Answer { .. })).count()
            };
            let mut before = 0;
            for number in 4..14 {
                before += many.iter_mut().map(answers).sum::<usize>();
                let mut one = driven.ask(&image, "What is <region2>?");
                driven.until(|scheduler| scheduler.requests.contains_key(&number));
                driven.until(|scheduler| !scheduler.requests.contains_key(&number));
                answer(&mut one);
                let answered: usize = many.iter_mut().map(answers).sum();
                // One answer freed its seat; the other seat may have gone on to a second part meanwhile.
                assert!(answered <= 3, "{answered} of many while {number} waited");
                before += answered;
            }
            assert!(before > 0, "questions that come all the time keep nobody from going on");
            driven.settle();
            assert_eq!(before + many.iter_mut().map(answers).sum::<usize>(), 90);
        });
    }

    #[test]
    fn numbers_that_are_none_end_one_question_only() {
        driven(tiny(), options(), |driven| {
            let image = picture(0);
            let mut alone = driven.ask(&image, "What is <region1>?");
            driven.settle();
            let alone = answer(&mut alone);
            let (mut well, mut ill) = (driven.ask(&image, "What is <region1>?"), driven.ask(&image, POISON));
            driven.settle();
            assert_same(&answer(&mut well), &alone);
            assert!(matches!(failures(&mut ill)[..], [(0, Failure::Numbers)]));
            let mut after = driven.ask(&image, "What is <region1>?");
            driven.settle();
            assert_same(&answer(&mut after), &alone);
            assert_eq!(driven.engine.stats().requests.numbers, 1);
        });
    }

    #[test]
    fn a_failing_step_fails_those_in_it_and_the_engine_goes_on() {
        driven(tiny(), options(), |driven| {
            let (mut one, mut two) = (driven.ask(&picture(0), "What is <region1>?"), driven.ask(&picture(0), "Who?"));
            let mut waits = driven.ask(&picture(0), "Where?");
            driven.until(|scheduler| scheduler.batch.len() == 2);
            let misfit = Tensor::zeros((1, 2, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
            let nothing = Branch::behind(driven.eye.model.network.llama.new_cache());
            let wrong = driven.scheduler.batch.add(NewSequence {
                reading: Reading::new(nothing, misfit),
                sampler: Sampler::new(&Sampling::Greedy).unwrap(),
                limits: Limits { eos: 2, max_new_tokens: 5 },
                told: Told::default(),
            });
            driven.step();
            driven.scheduler.batch.end(wrong.unwrap(), Halt::Cancel);
            for reply in [&mut one, &mut two] {
                assert!(matches!(failures(reply)[..], [(0, Failure::Engine(_))]));
            }
            driven.settle();
            answer(&mut waits);
            assert_eq!(driven.engine.stats().requests.engine, 2);
        });
    }

    #[test]
    fn whoever_is_dropped_is_told() {
        driven(tiny(), options(), |driven| {
            let (mut runs, mut waits) = (driven.describe(&picture(0), 3), driven.ask(&picture(0), "What?"));
            driven.until(|scheduler| !scheduler.batch.is_empty());
            let queue = driven.queue;
            driven.scheduler = Scheduler::new(driven.eye, queue, driven.scheduler.options);
            assert!(failures(&mut runs).iter().all(|(_, failure)| matches!(failure, Failure::Engine(_))));
            driven.settle();
            answer_or_failure(&mut waits);
            let requests = driven.engine.stats().requests;
            assert_eq!(requests.engine + requests.answered, 2);
        });
    }

    #[track_caller]
    fn answer_or_failure(reply: &mut Reply) {
        let last = updates(reply).pop();
        assert!(matches!(last, Some(Update::Answer { .. } | Update::Failed { .. })), "{last:?}");
    }
}
