//! Looking at a picture: everything that comes before the language model.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use gpt4roi::{
    Gpt4Roi, Image,
    asked::{Asked, Rendered, embed_all},
    batch::Reading,
    chat::ResolvedRegion,
    image_cache::{EncodedImage, ImageCache},
    kv_cache::{Branch, KvCache},
    prefix_cache::PrefixCache,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    engine::Update,
    request::{Request, Subject},
};

/// What it takes to look.
pub(crate) struct Eye<'m> {
    pub(crate) model: &'m Gpt4Roi,
    pub(crate) images: &'m ImageCache,
    pub(crate) prefixes: &'m PrefixCache,
}

/// Some parts of a question, to be made ready for reading.
pub(crate) struct Look {
    pub(crate) request: u64,
    pub(crate) parts: Vec<(usize, Rendered)>,
    picture: Picture,
    /// Tokens that the prompts have in common.
    length: usize,
    /// The common tokens, if they were read.
    beginning: Option<Arc<KvCache>>,
    announce: Announce,
    listener: UnboundedSender<Update>,
}

/// Which regions whoever asked is still to be told of.
enum Announce {
    Nothing,
    /// Those of the one question.
    Regions,
    /// The one that each part is about.
    Parts(Vec<Rendered>),
}

enum Picture {
    New(Arc<Image>),
    Known(Arc<EncodedImage>),
}

/// What came of it.
pub(crate) struct Looked {
    pub(crate) request: u64,
    pub(crate) parts: Vec<usize>,
    /// Or why nothing was seen, which is nobody's fault: questions are checked before they are queued.
    pub(crate) seen: Result<Seen, String>,
}

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
enum Blind {
    #[error("nobody listens")]
    NobodyListens,
    #[error(transparent)]
    Engine(#[from] gpt4roi::Error),
}

/// Prompts, ready to be read.
pub(crate) struct Seen {
    pub(crate) image: Arc<EncodedImage>,
    /// Regions to tell of, if that was not done.
    pub(crate) announced: Option<Vec<ResolvedRegion>>,
    /// What the prompts have in common, if it is still to be read.
    pub(crate) beginning: Option<Reading>,
    /// Per part.
    pub(crate) prompts: Vec<Prompt>,
}

/// A prompt, and how far it was read.
#[derive(Clone)]
pub(crate) struct Prompt {
    pub(crate) asked: Asked,
    /// The unread part. Behind nothing, if the beginning is still to be read.
    pub(crate) reading: Reading,
    /// Tokens that others had read.
    pub(crate) reused: usize,
}

impl Prompt {
    /// Goes on behind a beginning, now that it was read.
    pub(crate) fn behind(self, beginning: &Arc<KvCache>, reused: usize) -> Self {
        Self { reading: self.reading.behind(Branch::new(beginning.clone())), reused, ..self }
    }
}

impl Look {
    /// A look for some parts of a request.
    pub(crate) fn at(request: &Request, parts: &[usize]) -> Option<Self> {
        let picture = match (&request.encoded, &request.image) {
            (Some(encoded), _) => Picture::Known(encoded.clone()),
            (None, Some(image)) => Picture::New(image.clone()),
            (None, None) => return None,
        };
        let announce = match (&picture, &request.subject) {
            (Picture::Known(_), _) => Announce::Nothing,
            (Picture::New(_), Subject::One) => Announce::Regions,
            (Picture::New(_), Subject::Each(shapes)) => {
                Announce::Parts((0..shapes.len()).map(|index| request.part(index)).collect())
            }
        };
        Some(Self {
            request: request.number,
            parts: parts.iter().map(|&index| (index, request.part(index))).collect(),
            picture,
            length: request.beginning_length(),
            beginning: request.beginning.clone(),
            announce,
            listener: request.listener(),
        })
    }

    /// Looks. A panic is a failure like others.
    pub(crate) fn run(self, eye: &Eye<'_>) -> Looked {
        let parts = self.parts.iter().map(|(index, _)| *index).collect();
        let seen = catch_unwind(AssertUnwindSafe(|| self.see(eye)));
        let seen = match seen {
            Ok(seen) => seen.map_err(|error| error.to_string()),
            Err(_) => Err("it panicked".to_owned()),
        };
        Looked { request: self.request, parts, seen }
    }

    fn see(&self, eye: &Eye<'_>) -> Result<Seen, Blind> {
        self.check_listener()?;
        let image = match &self.picture {
            Picture::Known(encoded) => encoded.clone(),
            Picture::New(image) => eye.images.encode(eye.model, image)?,
        };
        self.check_listener()?;
        let locate = |(_, rendered): &(usize, Rendered)| rendered.locate(&image);
        let asked = self.parts.iter().map(locate).collect::<gpt4roi::Result<Vec<_>>>()?;
        let prompts = self.prompts(eye, &image, asked)?;
        let unread = prompts.iter().find(|prompt| prompt.reading.branch().is_empty());
        let beginning = unread.map(|prompt| self.beginning(eye, &image, &prompt.asked)).transpose()?;
        Ok(Seen { announced: self.announced(&image, &prompts)?, beginning, prompts, image })
    }

    /// Nobody looks for somebody who went away.
    fn check_listener(&self) -> Result<(), Blind> {
        match self.listener.is_closed() {
            true => Err(Blind::NobodyListens),
            false => Ok(()),
        }
    }

    /// Does some work piece by piece, and none of it for somebody who went away meanwhile.
    fn heard(&self, mut pieces: impl Iterator<Item = gpt4roi::Result<()>>) -> Result<(), Blind> {
        pieces.try_for_each(|piece| {
            piece?;
            self.check_listener()
        })
    }

    fn prompts(&self, eye: &Eye<'_>, image: &Arc<EncodedImage>, asked: Vec<Asked>) -> Result<Vec<Prompt>, Blind> {
        let recall = |asked: &Asked| match &self.beginning {
            Some(beginning) => Some(Branch::new(beginning.clone())),
            None => eye.prefixes.recall(image, asked, self.length),
        };
        let branches: Vec<_> = asked.iter().map(recall).collect();
        let range = |(asked, branch)| -> (&Asked, std::ops::Range<usize>) {
            let start = Option::<&Branch>::map_or(branch, self.length, Branch::len);
            (asked, start..asked.rendered().tokens())
        };
        let ranges: Vec<_> = asked.iter().zip(branches.iter().map(Option::as_ref)).map(range).collect();
        for (asked, range) in &ranges {
            self.heard(asked.look(eye.model, image, range.clone()))?;
        }
        let embeds = embed_all(eye.model, image, &ranges)?;
        let nothing = || Branch::behind(eye.model.network.llama.new_cache());
        let prompts = asked.into_iter().zip(branches).zip(embeds).map(|((asked, branch), embeds)| {
            let reused = branch.as_ref().map_or(0, Branch::len);
            Prompt { asked, reading: Reading::new(branch.unwrap_or_else(nothing), embeds), reused }
        });
        Ok(prompts.collect())
    }

    /// Goes on from what another beginning has in common with this one. One token at least is read.
    fn beginning(&self, eye: &Eye<'_>, image: &Arc<EncodedImage>, asked: &Asked) -> Result<Reading, Blind> {
        let stem = eye.prefixes.stem(image, asked, self.length - 1);
        let stem = Branch::behind(stem.unwrap_or_else(|| eye.model.network.llama.new_cache()));
        let range = stem.len()..self.length;
        self.heard(asked.look(eye.model, image, range.clone()))?;
        let embeds = asked.embed(eye.model, image, range)?;
        Ok(Reading::new(stem, embeds))
    }

    fn announced(&self, image: &EncodedImage, prompts: &[Prompt]) -> gpt4roi::Result<Option<Vec<ResolvedRegion>>> {
        match &self.announce {
            Announce::Nothing => Ok(None),
            Announce::Regions => Ok(prompts.first().map(|prompt| prompt.asked.regions())),
            Announce::Parts(parts) => {
                let own = |part: &Rendered| Ok(part.locate(image)?.regions().into_iter().next());
                Ok(Some(parts.iter().filter_map(|part| own(part).transpose()).collect::<gpt4roi::Result<_>>()?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    /// Of a look that takes minutes, no more is done than the piece during which its client left.
    #[test]
    fn nobody_goes_on_looking_for_a_client_that_left() {
        let (listener, client) = unbounded_channel();
        let image = Arc::new(Image::from_rgb(image::RgbImage::new(1, 1)));
        let look = Look {
            request: 1,
            parts: Vec::new(),
            picture: Picture::New(image),
            length: 0,
            beginning: None,
            announce: Announce::Nothing,
            listener,
        };
        assert!(look.heard((0..3).map(|_| Ok(()))).is_ok());
        let (mut client, mut done) = (Some(client), 0);
        let pieces = (0..5).map(|piece| {
            done += 1;
            if piece == 2 {
                client = None;
            }
            Ok(())
        });
        assert!(matches!(look.heard(pieces), Err(Blind::NobodyListens)));
        assert!(client.is_none());
        assert_eq!(done, 3);
    }
}
