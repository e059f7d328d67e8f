//! Pictures as the model has seen them, kept for the next question.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use candle_core::Tensor;
use sha2::{Digest, Sha256};

use crate::{
    bbox::{BBox, BoxPrecision, ImageSize},
    config::Config,
    error::Result,
    image::Image,
    model::{Gpt4Roi, ImageFeatures, Network},
    zoom::Reading,
};

/// How many closer looks are kept with a picture: vectors of a few kilobytes, the latest.
const CLOSE_UPS: usize = 1024;

/// What the model makes of one picture, however many conversations are about it.
#[derive(Debug)]
pub struct EncodedImage {
    /// For closer looks.
    image: Image,
    features: ImageFeatures,
    /// The pyramid, once a region needs it: at the original's size it costs twelve times the tower.
    maps: Mutex<Option<Arc<[Tensor]>>>,
    /// What regions show that were looked at closely, the latest last.
    close_ups: Mutex<Vec<CloseUp>>,
}

#[derive(Debug)]
struct CloseUp {
    bbox: BBox,
    reading: Reading,
    features: Tensor,
}

impl EncodedImage {
    /// Runs the vision tower.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn new(model: &Gpt4Roi, image: &Image) -> Result<Self> {
        let pixels = image.pixel_values(&model.config.vision, &model.device)?;
        let features = model.network.encode_image(&pixels)?;
        Ok(Self { image: image.clone(), features, maps: Mutex::new(None), close_ups: Mutex::new(Vec::new()) })
    }

    /// Width and height of the picture.
    pub fn size(&self) -> ImageSize {
        self.image.size()
    }

    /// The picture itself.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// What the tower made of it.
    pub fn features(&self) -> &ImageFeatures {
        &self.features
    }

    /// The pyramid, finest level first. The first call computes it, and others wait for that.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn maps(&self, network: &Network) -> Result<Arc<[Tensor]>> {
        let mut maps = lock(&self.maps);
        if let Some(maps) = &*maps {
            return Ok(maps.clone());
        }
        Ok(maps.insert(network.pyramid(&self.features)?.into()).clone())
    }

    /// What a region shows, as `look` finds it unless it was found before.
    pub(crate) fn close_up(
        &self,
        bbox: &BBox,
        reading: Reading,
        look: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let of_this = |known: &&CloseUp| known.bbox == *bbox && known.reading == reading;
        if let Some(known) = lock(&self.close_ups).iter().find(of_this) {
            return Ok(known.features.clone());
        }
        // Not under the lock: other regions need not wait for this one.
        let features = look()?;
        let mut close_ups = lock(&self.close_ups);
        if close_ups.len() == CLOSE_UPS {
            close_ups.remove(0);
        }
        close_ups.push(CloseUp { bbox: *bbox, reading, features: features.clone() });
        Ok(features)
    }

    /// What the language model sees of some boxes, none of them looked at more closely.
    ///
    /// # Shapes
    /// N boxes → `[N·tokens, H]`
    ///
    /// # Errors
    /// If the engine fails.
    pub fn encode_boxes(&self, model: &Gpt4Roi, boxes: &[BBox], precision: BoxPrecision) -> Result<Tensor> {
        let maps = self.maps(&model.network)?;
        Ok(model.network.encode_regions(&maps, &BBox::tensor(boxes, precision, &model.device)?)?)
    }

    /// Bytes of memory, counting the pyramid whether or not it was computed yet, and not counting closer looks.
    fn bytes(&self, config: &Config) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let of_tower: usize =
            self.features.states.iter().map(bytes).sum::<usize>() + bytes(&self.features.image_tokens);
        let cells: usize = config.region.scales().iter().map(|scale| (config.vision.grid() * scale).pow(2)).sum();
        let width = self.features.image_tokens.dtype().size_in_bytes();
        self.image.rgb().as_raw().len() + of_tower + cells * config.region.dim * width
    }
}

/// The pictures asked about last, in as many bytes as it was given: the next question about one of
/// them needs neither tower nor pyramid.
///
/// Pictures are known by what they show: the SHA-256 of their upright pixels, together with the model's
/// dimensions. A cache serves one model, since it can't tell the weights of two apart. It may be shared
/// between threads; what it hands out stays valid when it is forgotten here.
#[derive(Debug)]
pub struct ImageCache {
    max_bytes: usize,
    /// The latest last.
    entries: Mutex<Vec<Entry>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    image: Arc<EncodedImage>,
    bytes: usize,
}

type Key = [u8; 32];

impl ImageCache {
    /// An empty cache. With 0 bytes it keeps nothing.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, entries: Mutex::default(), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// The picture as this model sees it, from memory if it was asked for lately. One that is larger
    /// than the whole cache is encoded and not kept.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn encode(&self, model: &Gpt4Roi, image: &Image) -> Result<Arc<EncodedImage>> {
        let key = key(&model.config, image);
        if let Some(image) = self.recall(&key) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(image);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        // Not under the lock: other pictures need not wait for this one.
        let encoded = Arc::new(EncodedImage::new(model, image)?);
        self.remember(Entry { key, image: encoded.clone(), bytes: encoded.bytes(&model.config) });
        Ok(encoded)
    }

    /// How often a picture was found, and how often not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// How many pictures are kept.
    pub fn len(&self) -> usize {
        lock(&self.entries).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all pictures kept, each with its pyramid.
    pub fn bytes(&self) -> usize {
        total(&lock(&self.entries))
    }

    fn recall(&self, key: &Key) -> Option<Arc<EncodedImage>> {
        let mut entries = lock(&self.entries);
        let place = entries.iter().position(|entry| entry.key == *key)?;
        entries[place..].rotate_left(1);
        entries.last().map(|entry| entry.image.clone())
    }

    fn remember(&self, entry: Entry) {
        let mut entries = lock(&self.entries);
        // Another thread may have been asked about the same picture meanwhile.
        entries.retain(|other| other.key != entry.key);
        if entry.bytes > self.max_bytes {
            return;
        }
        entries.push(entry);
        while total(&entries) > self.max_bytes {
            entries.remove(0);
        }
    }
}

fn total(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.bytes).sum()
}

fn key(config: &Config, image: &Image) -> Key {
    let ImageSize { width, height } = image.size();
    let mut hash = Sha256::new();
    hash.update(format!("{width}×{height} {config:?} "));
    hash.update(image.rgb().as_raw());
    hash.finalize().into()
}

/// What stands behind the locks here is whole at every moment, even if a thread died holding one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::Chat,
        tiny::{picture, short, tiny},
    };

    fn other(shade: u8) -> Image {
        Image::from_rgb(image::RgbImage::from_pixel(30, 20, image::Rgb([shade, 0, 0])))
    }

    #[test]
    fn the_same_picture_is_encoded_once() {
        let (model, cache) = (tiny(), ImageCache::new(usize::MAX));
        let first = cache.encode(&model, &picture()).unwrap();
        let again = cache.encode(&model, &picture()).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert!(Arc::ptr_eq(&first.maps(&model.network).unwrap(), &again.maps(&model.network).unwrap()));
        let other = cache.encode(&model, &other(0)).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        assert_eq!((cache.len(), first.size(), other.size().width), (2, picture().size(), 30));
        assert_eq!(cache.hits_and_misses(), (1, 2));
    }

    #[test]
    fn conversations_about_a_kept_picture_are_those_about_the_picture() {
        let (model, cache) = (tiny(), ImageCache::new(usize::MAX));
        let ask = |mut chat: Chat<'_>| chat.ask_with("What is [8, 6, 40, 30]?", &short()).unwrap();
        let fresh = ask(Chat::new(&model, &picture()).unwrap());
        for _ in 0..2 {
            let kept = cache.encode(&model, &picture()).unwrap();
            assert_eq!(ask(Chat::with_image(&model, kept)), fresh);
        }
    }

    /// The same bytes in another shape, and the same picture for another model.
    #[test]
    fn what_looks_alike_is_told_apart() {
        let shaped = |width, height| Image::from_rgb(image::RgbImage::new(width, height));
        let config = tiny().config;
        let mut wider = config.clone();
        wider.vision.image_mean[0] += 0.1;
        let keys = [key(&config, &shaped(4, 6)), key(&config, &shaped(6, 4)), key(&wider, &shaped(4, 6))];
        assert!(keys[0] != keys[1] && keys[0] != keys[2]);
        assert_eq!(keys[0], key(&config, &shaped(4, 6)));
    }

    #[test]
    fn the_picture_asked_about_longest_ago_goes_first() {
        let model = tiny();
        let one = EncodedImage::new(&model, &other(0)).unwrap().bytes(&model.config);
        let cache = ImageCache::new(2 * one);
        let ask = |shade| cache.encode(&model, &other(shade)).unwrap();
        let (first, second) = (ask(1), ask(2));
        ask(1);
        ask(3);
        assert_eq!((cache.len(), cache.bytes()), (2, 2 * one));
        assert!(Arc::ptr_eq(&first, &ask(1)), "asked about after the second");
        assert!(!Arc::ptr_eq(&second, &ask(2)));
        let none = ImageCache::new(one - 1);
        none.encode(&model, &other(1)).unwrap();
        assert!(none.is_empty() && none.bytes() == 0);
    }

    /// Counted by hand from the tensors themselves, and three for each of 80×60 pixels.
    #[test]
    fn bytes_are_those_of_the_tensors_and_the_pixels() {
        let model = tiny();
        let encoded = EncodedImage::new(&model, &picture()).unwrap();
        let maps = encoded.maps(&model.network).unwrap();
        let tensors = encoded.features.states.iter().chain([&encoded.features.image_tokens]).chain(maps.iter());
        let bytes = 3 * 80 * 60 + tensors.map(|tensor| 4 * tensor.elem_count()).sum::<usize>();
        assert_eq!(encoded.bytes(&model.config), bytes);
    }
}
