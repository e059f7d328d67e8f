//! Keys and values of the tokens already read, layer by layer.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

/// Grows with the conversation; a new question costs only its own tokens.
///
/// A clone shares its memory with the original; whichever of them reads on first takes a copy. No
/// gradient passes through a cache.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<Layer>,
    /// What the numbers are rounded to; none: they stay as they come.
    dtype: Option<DType>,
}

/// What one layer keeps of the tokens: the first `length` rows of what is reserved.
#[derive(Clone, Debug, Default)]
struct Layer {
    length: usize,
    reserved: Option<Arc<Reserved>>,
}

/// Room for more tokens than there are yet, so that a token costs no copy of all earlier ones.
#[derive(Debug)]
struct Reserved {
    keys: Tensor,   // [B, capacity, H]
    values: Tensor, // [B, capacity, H]
}

impl KvCache {
    /// An empty cache for so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![Layer::default(); layers], dtype: None }
    }

    /// The same, for numbers rounded to float16 (to ±65504): half of the memory, and half of what each new token reads.
    pub fn in_halves(layers: usize) -> Self {
        Self { dtype: Some(DType::F16), ..Self::new(layers) }
    }

    /// An empty cache of the same kind.
    fn emptied(&self) -> Self {
        Self { layers: vec![Layer::default(); self.layers.len()], dtype: self.dtype }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.length)
    }

    /// Whether nothing has been read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory behind it, room for further tokens included.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let reserved = self.layers.iter().filter_map(|layer| layer.reserved.as_deref());
        reserved.map(|reserved| bytes(&reserved.keys) + bytes(&reserved.values)).sum()
    }

    /// Bytes that one token takes; 0 as long as there is none to tell by.
    pub fn bytes_per_token(&self) -> usize {
        let keys = |layer: &Layer| layer.reserved.as_ref().map_or(0, |reserved| reserved.keys.dims()[1]);
        self.bytes() / self.layers.first().map_or(0, keys).max(1)
    }

    /// Bytes that a cache takes which grew to so many tokens of the same kind, room for further ones included.
    pub(crate) fn bytes_of(&self, tokens: usize) -> usize {
        reserved(tokens) * self.bytes_per_token()
    }

    /// Forgets everything from token `length` on.
    pub fn truncate(&mut self, length: usize) {
        for layer in &mut self.layers {
            layer.length = layer.length.min(length);
        }
    }

    /// Adds the keys and values of new tokens to one layer and returns all of that layer.
    ///
    /// # Shapes
    /// k and v `[B, T, H]` → `[B, length + T, H]`
    pub(crate) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        match self.dtype {
            Some(dtype) => self.layers[layer].append(&k.to_dtype(dtype)?, &v.to_dtype(dtype)?),
            None => self.layers[layer].append(k, v),
        }
    }

    /// The keys and values of one layer; none while it has no tokens.
    ///
    /// # Shapes
    /// → `[B, length, H]`
    pub(crate) fn layer(&self, layer: usize) -> Result<Option<(Tensor, Tensor)>> {
        self.layers[layer].view()
    }
}

impl Layer {
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let length = self.length + k.dim(1)?;
        let reserved = self.reserve(length, k, v)?;
        reserved.keys.slice_set(&k.contiguous()?, 1, self.length)?;
        reserved.values.slice_set(&v.contiguous()?, 1, self.length)?;
        self.length = length;
        reserved.view(length)
    }

    fn view(&self) -> Result<Option<(Tensor, Tensor)>> {
        let reserved = self.reserved.as_ref().filter(|_| self.length > 0);
        reserved.map(|reserved| reserved.view(self.length)).transpose()
    }

    /// Room for `length` tokens that nobody else writes to, the present ones at its beginning.
    fn reserve(&mut self, length: usize, k: &Tensor, v: &Tensor) -> Result<Arc<Reserved>> {
        if let Some(reserved) = &mut self.reserved
            && Arc::get_mut(reserved).is_some_and(|own| own.keys.dims()[1] >= length)
        {
            return Ok(reserved.clone());
        }
        let reserved = Reserved { keys: with_room(length, k)?, values: with_room(length, v)? };
        if let Some((keys, values)) = self.view()? {
            reserved.keys.slice_set(&keys.contiguous()?, 1, 0)?;
            reserved.values.slice_set(&values.contiguous()?, 1, 0)?;
        }
        Ok(self.reserved.insert(Arc::new(reserved)).clone())
    }
}

impl Reserved {
    fn view(&self, length: usize) -> Result<(Tensor, Tensor)> {
        Ok((self.keys.narrow(1, 0, length)?, self.values.narrow(1, 0, length)?))
    }
}

/// Zeros of the kind of `like` for `length` tokens and a share more: the memory stays near to what is
/// used, and each token is copied a bounded number of times, however long the sequence becomes.
fn with_room(length: usize, like: &Tensor) -> Result<Tensor> {
    let (batch, _, width) = like.dims3()?;
    Tensor::zeros((batch, reserved(length), width), like.dtype(), like.device())
}

fn reserved(length: usize) -> usize {
    const LEAST: usize = 16;
    length + (length / 4).max(LEAST)
}

/// A sequence behind a prefix that others share. The prefix is neither copied nor changed; only the
/// sequence's own tokens are kept here.
#[derive(Clone, Debug)]
pub struct Branch {
    prefix: Arc<KvCache>,
    own: KvCache,
}

impl Branch {
    /// A branch without tokens of its own; an empty prefix makes it a sequence like any other.
    pub fn new(prefix: Arc<KvCache>) -> Self {
        let own = prefix.emptied();
        Self { prefix, own }
    }

    /// A branch behind nothing that goes on where a cache ends.
    pub fn behind(own: KvCache) -> Self {
        Self { prefix: Arc::new(own.emptied()), own }
    }

    /// What stands before the branch.
    pub fn prefix(&self) -> &Arc<KvCache> {
        &self.prefix
    }

    /// The branch's own tokens.
    pub fn own(&self) -> &KvCache {
        &self.own
    }

    pub(crate) fn own_mut(&mut self) -> &mut KvCache {
        &mut self.own
    }

    /// Tokens of prefix and branch.
    pub fn len(&self) -> usize {
        self.prefix.len() + self.own.len()
    }

    /// Whether there are no tokens at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether both go on behind the same tokens in the same memory.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.prefix, &other.prefix)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Tokens of width 2, numbered from `first`.
    fn tokens(first: usize, count: usize) -> Tensor {
        let values: Vec<f32> = (first..first + count).flat_map(|i| [i as f32, -(i as f32)]).collect();
        Tensor::from_vec(values, (1, count, 2), &Device::Cpu).unwrap()
    }

    fn append(cache: &mut KvCache, first: usize, count: usize) {
        let (k, v) = (tokens(first, count), tokens(1000 + first, count));
        for layer in 0..2 {
            cache.append(layer, &k, &v).unwrap();
        }
    }

    fn numbers(tensor: &Tensor) -> Vec<usize> {
        let rows = tensor.squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        rows.iter().inspect(|row| assert_eq!(row[0], -row[1])).map(|row| row[0] as usize).collect()
    }

    #[track_caller]
    fn assert_holds(cache: &KvCache, expected: &[usize]) {
        assert_eq!(cache.len(), expected.len());
        for layer in 0..2 {
            let (k, v) = cache.layer(layer).unwrap().unwrap();
            assert_eq!(numbers(&k), expected);
            assert_eq!(numbers(&v).iter().map(|i| i - 1000).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn tokens_stay_through_all_growth() {
        let mut cache = KvCache::new(2);
        assert!(cache.is_empty() && cache.bytes() == 0 && cache.layer(0).unwrap().is_none());
        append(&mut cache, 0, 3);
        (3..200).for_each(|i| append(&mut cache, i, 1));
        assert_holds(&cache, &(0..200).collect::<Vec<_>>());
    }

    /// Copies happen when the room is used up: after 20 tokens the next 4 cost none.
    #[test]
    fn a_token_costs_no_copy_of_the_earlier_ones() {
        let mut cache = KvCache::new(2);
        append(&mut cache, 0, 4);
        let reserved = |cache: &KvCache| Arc::as_ptr(cache.layers[0].reserved.as_ref().unwrap());
        let before = reserved(&cache);
        (4..20).for_each(|i| append(&mut cache, i, 1));
        assert_eq!(reserved(&cache), before);
        // 2 layers, keys and values, 20 rows of 2 values of 4 bytes.
        assert_eq!(cache.bytes(), 2 * 2 * 20 * 2 * 4);
        append(&mut cache, 20, 1);
        assert_ne!(reserved(&cache), before);
    }

    /// 1 + 2⁻¹¹ lies half-way between two numbers of float16 and goes to the even one.
    #[test]
    fn halves_are_rounded_and_take_half_the_memory() {
        let (mut wide, mut cache) = (KvCache::new(1), KvCache::in_halves(1));
        let k = Tensor::new(&[[[1.0 + f32::powi(2.0, -11), 3.0]]], &Device::Cpu).unwrap();
        wide.append(0, &k, &k).unwrap();
        let mut branch = Branch::new(Arc::new(cache.clone()));
        for cache in [&mut cache, branch.own_mut()] {
            let (keys, values) = cache.append(0, &k, &k).unwrap();
            for stored in [keys, values] {
                assert_eq!(stored.dtype(), DType::F16);
                let stored = stored.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(stored, [1.0, 3.0]);
            }
            assert_eq!(2 * cache.bytes(), wide.bytes());
        }
    }

    #[test]
    fn what_is_forgotten_is_written_over() {
        let mut cache = KvCache::new(2);
        append(&mut cache, 0, 10);
        cache.truncate(12);
        assert_eq!(cache.len(), 10);
        cache.truncate(4);
        append(&mut cache, 50, 2);
        assert_holds(&cache, &[0, 1, 2, 3, 50, 51]);
        cache.truncate(0);
        assert!(cache.is_empty() && cache.layer(1).unwrap().is_none());
    }

    #[test]
    fn clones_go_their_own_ways() {
        let mut cache = KvCache::new(2);
        append(&mut cache, 0, 4);
        let mut twin = cache.clone();
        append(&mut twin, 7, 1);
        append(&mut cache, 9, 2);
        assert_holds(&cache, &[0, 1, 2, 3, 9, 10]);
        assert_holds(&twin, &[0, 1, 2, 3, 7]);
        let mut short = cache.clone();
        short.truncate(2);
        append(&mut short, 30, 1);
        assert_holds(&cache, &[0, 1, 2, 3, 9, 10]);
        assert_holds(&short, &[0, 1, 30]);
    }

    #[test]
    fn branches_share_a_prefix_without_copying_it() {
        let mut cache = KvCache::new(2);
        append(&mut cache, 0, 5);
        let prefix = Arc::new(cache);
        let (mut a, b) = (Branch::new(prefix.clone()), Branch::new(prefix.clone()));
        append(a.own_mut(), 5, 1);
        assert_eq!((a.len(), b.len(), prefix.len()), (6, 5, 5));
        assert!(a.is_beside(&b) && b.own().bytes() == 0);
        assert!(!a.is_beside(&Branch::new(Arc::new(KvCache::clone(&prefix)))));
    }
}
