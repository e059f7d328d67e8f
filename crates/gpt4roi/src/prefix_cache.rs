//! What the language model has read of pictures and conversations, kept for the next question.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{
    asked::{Asked, Slot},
    image_cache::EncodedImage,
    kv_cache::{Branch, KvCache},
};

/// The keys and values of prompts read lately, in as many bytes as it was given.
///
/// Every conversation about a picture begins alike, up to the picture's end; such a beginning is kept
/// once, and conversations are kept as branches of it. What was used longest ago goes first, a beginning
/// after all of its conversations. Shared between threads; what it hands out stays valid when it is
/// forgotten here.
///
/// A cache serves one model, and knows pictures by their encoding: one that was encoded anew is another.
#[derive(Debug)]
pub struct PrefixCache {
    max_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    beginnings: Vec<Beginning>,
    /// Counts uses.
    now: u64,
}

#[derive(Debug)]
struct Beginning {
    image: Weak<EncodedImage>,
    read: Vec<Slot>,
    prefix: Arc<KvCache>,
    branches: Vec<Continued>,
    used: u64,
}

/// What a conversation has behind its beginning.
#[derive(Debug)]
struct Continued {
    read: Vec<Slot>,
    branch: Branch,
    used: u64,
}

impl PrefixCache {
    /// An empty cache. With 0 bytes it keeps nothing.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, kept: Mutex::default() }
    }

    /// What was read of a question already, as much as possible, but for its last token, whose logits are
    /// the answer's beginning. Nothing if that is less than the first `least` tokens.
    pub fn recall(&self, image: &Arc<EncodedImage>, asked: &Asked, least: usize) -> Option<Branch> {
        let prompt = asked.prompt.split_last().map_or(&[][..], |(_, all_but_last)| all_but_last);
        self.lock().recall(image, prompt).filter(|branch| branch.len() >= least)
    }

    /// What can be taken over of another beginning, for one that has `length` of the question's tokens.
    pub fn stem(&self, image: &Arc<EncodedImage>, asked: &Asked, length: usize) -> Option<KvCache> {
        let kept = self.lock();
        let wanted = &asked.prompt[..length];
        let stems = kept.of(image).map(|beginning| (common(&beginning.read, wanted), &beginning.prefix));
        let (length, prefix) = stems.max_by_key(|(length, _)| *length).filter(|(length, _)| *length > 0)?;
        let mut stem = KvCache::clone(prefix);
        stem.truncate(length);
        Some(stem)
    }

    /// Keeps what was read of a question's beginning.
    pub fn keep_beginning(&self, image: &Arc<EncodedImage>, asked: &Asked, prefix: Arc<KvCache>) {
        let mut kept = self.lock();
        let read = asked.prompt[..prefix.len()].to_vec();
        kept.beginnings.retain(|other| other.image.as_ptr() != Arc::as_ptr(image) || other.read != read);
        let used = kept.tick();
        kept.beginnings.push(Beginning { image: Arc::downgrade(image), read, prefix, branches: Vec::new(), used });
        kept.shrink(self.max_bytes);
    }

    /// Keeps a conversation up to an answer, if its beginning is still kept. What it goes on from is
    /// not needed any more.
    pub fn keep(&self, image: &Arc<EncodedImage>, asked: &Asked, answer: &[u32], branch: Branch) {
        let mut kept = self.lock();
        let used = kept.tick();
        let beside = |beginning: &&mut Beginning| Arc::ptr_eq(&beginning.prefix, branch.prefix());
        let Some(beginning) = kept.of_mut(image).find(beside) else { return };
        let said = answer.iter().map(|&token| Slot::Token(token));
        let all = asked.prompt.iter().copied().chain(said).take(branch.len());
        let read: Vec<Slot> = all.skip(branch.prefix().len()).collect();
        beginning.branches.retain(|earlier| !read.starts_with(&earlier.read));
        beginning.branches.push(Continued { read, branch, used });
        beginning.used = used;
        kept.shrink(self.max_bytes);
    }

    /// Forgets a picture with all conversations about it.
    pub fn forget(&self, image: &Arc<EncodedImage>) {
        self.lock().beginnings.retain(|beginning| beginning.image.as_ptr() != Arc::as_ptr(image));
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.lock().bytes()
    }

    /// What stands behind the lock is whole at every moment, even if a thread died holding it.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn of(&self, image: &Arc<EncodedImage>) -> impl Iterator<Item = &Beginning> {
        let image = Arc::as_ptr(image);
        self.beginnings.iter().filter(move |beginning| beginning.image.as_ptr() == image)
    }

    fn of_mut(&mut self, image: &Arc<EncodedImage>) -> impl Iterator<Item = &mut Beginning> {
        let image = Arc::as_ptr(image);
        self.beginnings.iter_mut().filter(move |beginning| beginning.image.as_ptr() == image)
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn recall(&mut self, image: &Arc<EncodedImage>, prompt: &[Slot]) -> Option<Branch> {
        let used = self.tick();
        let fitting = self.of_mut(image).filter(|beginning| prompt.starts_with(&beginning.read));
        let (beginning, place, own) = fitting
            .map(|beginning| {
                let rest = &prompt[beginning.read.len()..];
                let shared = beginning.branches.iter().map(|branch| common(&branch.read, rest)).enumerate();
                let (place, own) = shared.max_by_key(|&(_, own)| own).unwrap_or_default();
                (beginning, place, own)
            })
            .max_by_key(|(beginning, _, own)| beginning.read.len() + own)?;
        beginning.used = used;
        let Some(continued) = beginning.branches.get_mut(place).filter(|_| own > 0) else {
            return Some(Branch::new(beginning.prefix.clone()));
        };
        continued.used = used;
        let mut branch = continued.branch.clone();
        branch.own_mut().truncate(own);
        Some(branch)
    }

    fn bytes(&self) -> usize {
        self.beginnings.iter().map(Beginning::bytes).sum()
    }

    /// Forgets pictures that nobody can ask about any more, then what was used longest ago.
    fn shrink(&mut self, max_bytes: usize) {
        self.beginnings.retain(|beginning| beginning.image.strong_count() > 0);
        while self.bytes() > max_bytes {
            let Some(oldest) = (0..self.beginnings.len()).min_by_key(|&place| self.beginnings[place].oldest()) else {
                return;
            };
            if !self.beginnings[oldest].forget_oldest() {
                self.beginnings.remove(oldest);
            }
        }
    }
}

impl Beginning {
    fn bytes(&self) -> usize {
        self.prefix.bytes() + self.branches.iter().map(|continued| continued.branch.own().bytes()).sum::<usize>()
    }

    /// When its oldest conversation was used, or it itself if it has none.
    fn oldest(&self) -> u64 {
        self.branches.iter().map(|continued| continued.used).min().unwrap_or(self.used)
    }

    /// False if there is no conversation to forget.
    fn forget_oldest(&mut self) -> bool {
        let oldest = self.branches.iter().enumerate().min_by_key(|(_, continued)| continued.used);
        let place = oldest.map(|(place, _)| place);
        place.map(|place| self.branches.swap_remove(place)).is_some()
    }
}

fn common(read: &[Slot], wanted: &[Slot]) -> usize {
    read.iter().zip(wanted).take_while(|(read, wanted)| read == wanted).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        asked::{Exchange, Rendered, Said},
        batch::Reading,
        bbox::RegionId,
        model::Gpt4Roi,
        shape::Shape,
        tiny::{bbox, picture, short, tiny},
    };

    struct Reader {
        model: Gpt4Roi,
        image: Arc<EncodedImage>,
        cache: PrefixCache,
    }

    impl Reader {
        fn new(max_bytes: usize) -> Self {
            let model = tiny();
            let image = Arc::new(EncodedImage::new(&model, &picture()).unwrap());
            Self { model, image, cache: PrefixCache::new(max_bytes) }
        }

        fn asked(&self, rounds: &[Exchange], question: &str) -> Asked {
            let regions = [(RegionId(1), Shape::Box(bbox([0.1, 0.1, 0.5, 0.5])))];
            let question = [Said::Text(question.to_owned())];
            let rendered =
                Rendered::new(&self.model, self.image.size(), &regions, rounds, &question, &short()).unwrap();
            rendered.locate(&self.image).unwrap()
        }

        /// Reads a question's tokens from where the branch ends, up to `end`.
        fn read(&self, branch: Branch, asked: &Asked, end: usize) -> Branch {
            let embeds = asked.embed(&self.model, &self.image, branch.len()..end).unwrap();
            let mut reading = Reading::new(branch, embeds);
            while reading.unread() > 0 {
                reading.read(&self.model.network.llama, 7).unwrap();
            }
            reading.into_parts().0
        }

        fn begin(&self, asked: &Asked) -> Arc<KvCache> {
            let none = Branch::behind(self.model.network.llama.new_cache());
            let prefix = Arc::new(self.read(none, asked, asked.rendered().picture_end()).own().clone());
            self.cache.keep_beginning(&self.image, asked, prefix.clone());
            prefix
        }

        fn reused(&self, asked: &Asked) -> usize {
            self.cache.recall(&self.image, asked, 0).map_or(0, |branch| branch.len())
        }
    }

    #[test]
    fn a_conversation_is_taken_up_where_it_ended() {
        let reader = Reader::new(usize::MAX);
        let first = reader.asked(&[], "What is <region1>?");
        assert!(reader.cache.recall(&reader.image, &first, 0).is_none());
        let prefix = reader.begin(&first);
        let end = first.rendered().picture_end();
        assert_eq!((reader.reused(&first), prefix.len()), (end, end));
        assert!(reader.cache.recall(&reader.image, &first, end + 1).is_none());

        let tokens = first.rendered().tokens();
        let branch = reader.read(Branch::new(prefix.clone()), &first, tokens);
        reader.cache.keep(&reader.image, &first, &[], branch);
        assert_eq!(reader.reused(&first), tokens - 1, "the last token is left to be read");
        let exchange = Exchange { question: vec![Said::Text("What is <region1>?".into())], answer: "a cat".into() };
        let second = reader.asked(&[exchange], "And where?");
        // The open turn at the end may be written with other tokens once somebody speaks.
        assert!((tokens - 3..=tokens).contains(&reader.reused(&second)), "{}", reader.reused(&second));
        let other = reader.asked(&[], "Where is <region1>?");
        assert!((end + 1..tokens - 4).contains(&reader.reused(&other)), "what both share");

        // Another encoding of the same picture is another picture.
        let anew = Arc::new(EncodedImage::new(&reader.model, &picture()).unwrap());
        assert!(reader.cache.recall(&anew, &first, 0).is_none());
        reader.cache.forget(&reader.image);
        assert_eq!(reader.cache.bytes(), 0);
    }

    #[test]
    fn a_longer_beginning_grows_out_of_a_shorter_one() {
        let reader = Reader::new(usize::MAX);
        let asked = reader.asked(&[], "What is <region1>?");
        let short = reader.begin(&asked);
        let long = asked.rendered().before(RegionId(1));
        let stem = reader.cache.stem(&reader.image, &asked, long).unwrap();
        assert_eq!(stem.len(), short.len());
        let grown = reader.read(Branch::behind(stem), &asked, long).own().clone();
        reader.cache.keep_beginning(&reader.image, &asked, Arc::new(grown));
        assert_eq!(reader.reused(&asked), long);
        assert_eq!(short.len(), asked.rendered().picture_end(), "and leaves it as it was");
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_beginnings_last() {
        let unbounded = Reader::new(usize::MAX);
        let asked = unbounded.asked(&[], "What is <region1>?");
        let prefix = unbounded.begin(&asked).bytes();
        let questions = ["What is <region1>?", "Where is <region1>?", "Is <region1> large?"];
        let room_for_two = |reader: &Reader| {
            let begun = reader.begin(&asked);
            let mut bytes = 0;
            for question in questions {
                let asked = reader.asked(&[], question);
                let branch = reader.read(Branch::new(begun.clone()), &asked, asked.rendered().tokens());
                bytes = bytes.max(branch.own().bytes());
                reader.cache.keep(&reader.image, &asked, &[], branch);
            }
            bytes
        };
        let own = room_for_two(&unbounded);
        let mut reader = Reader::new(prefix + 2 * own);
        room_for_two(&reader);
        let whole = |reader: &Reader, question| {
            let asked = reader.asked(&[], question);
            reader.reused(&asked) == asked.rendered().tokens() - 1
        };
        assert_eq!(questions.map(|question| whole(&reader, question)), [false, true, true]);
        assert!(reader.cache.bytes() <= prefix + 2 * own);

        reader.cache.max_bytes = prefix;
        reader.cache.lock().shrink(prefix);
        assert_eq!(reader.reused(&asked), asked.rendered().picture_end());
        reader.cache.lock().shrink(prefix - 1);
        assert_eq!((reader.reused(&asked), reader.cache.bytes()), (0, 0));
        let nothing = Reader::new(0);
        nothing.begin(&asked);
        assert_eq!(nothing.reused(&asked), 0);
    }
}
