//! Where a picture comes from: a data URL, an upload, or an address elsewhere.

use std::{fmt, sync::Arc, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gpt4roi::Image;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use url::Url;

use crate::{
    app::App,
    auth::Owner,
    fault::{Fault, Result},
    limits::Held,
    pictures::Handle,
};

/// A picture that was not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A data URL.
    Data(String),
    /// An upload.
    Handle(Handle),
    /// An address.
    Remote(Url),
}

/// `{"url": "…"}`, or the address alone.
#[derive(Debug)]
pub(crate) struct ImageUrl {
    pub(crate) url: String,
}

/// A picture, and the memory that it takes.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) image: Arc<Image>,
    pub(crate) held: Held,
}

impl Source {
    /// Reads an address. An upload's handle counts as one, for clients that know no other form.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn parse(url: &str, param: &str) -> Result<Self> {
        let expected = || Fault::Value {
            param: param.to_owned(),
            expected: "a data URL, a handle sha256:… of POST /v1/images, or an http(s) address".into(),
        };
        if url.starts_with("data:") {
            return Ok(Self::Data(url.to_owned()));
        }
        if url.starts_with("sha256:") {
            return Self::handle(url, param);
        }
        let url = Url::parse(url).map_err(|_| expected())?;
        if matches!(url.scheme(), "http" | "https") { Ok(Self::Remote(url)) } else { Err(expected()) }
    }

    /// Reads a handle.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn handle(id: &str, param: &str) -> Result<Self> {
        let expected = |error: crate::pictures::HandleError| Fault::Field {
            param: Some(param.to_owned()),
            message: error.to_string(),
        };
        id.parse().map(Self::Handle).map_err(expected)
    }

    /// Gets the picture.
    ///
    /// # Errors
    /// If there is none, it is too large, or it can't be decoded.
    pub(crate) async fn open(&self, app: &App, owner: &Owner, param: &str) -> Result<Picture> {
        match self {
            Self::Handle(handle) => {
                let not_found = || Fault::PictureNotFound { param: param.to_owned() };
                let image = app.pictures.get(&owner.0, handle, Instant::now()).ok_or_else(not_found)?;
                Ok(Picture { image, held: Held::nothing() })
            }
            Self::Data(url) => decode(app, data(url, app.limits.picture_bytes, param)?, param).await,
            Self::Remote(url) => {
                let fetcher = app.fetcher.as_ref().ok_or_else(|| Fault::FetchOff { param: param.to_owned() })?;
                let file = fetcher.fetch(url, app.limits.picture_bytes).await;
                let file = file.map_err(|reason| Fault::Fetch { param: param.to_owned(), reason })?;
                decode(app, file, param).await
            }
        }
    }
}

/// The bytes in a data URL.
///
/// # Errors
/// If it is not base64, of another kind of file, or too large.
pub(crate) fn data(url: &str, most: usize, param: &str) -> Result<Vec<u8>> {
    let wrong = |message: &str| Fault::Picture { param: param.to_owned(), message: message.into() };
    let (head, encoded) = url
        .strip_prefix("data:")
        .and_then(|rest| rest.split_once(','))
        .ok_or_else(|| wrong("expected a data URL: data:image/png;base64,…"))?;
    let kind = head.strip_suffix(";base64").ok_or_else(|| wrong("expected a data URL in base64"))?;
    if !is_picture_type(kind.split(';').next().unwrap_or_default()) {
        return Err(wrong("expected image/png, image/jpeg or image/webp"));
    }
    let padding = encoded.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
    check_file_size((encoded.len() / 4 * 3).saturating_sub(padding), most, param)?;
    STANDARD.decode(encoded).map_err(|_| wrong("expected base64"))
}

/// Whether this is a kind of picture that is read.
pub(crate) fn is_picture_type(kind: &str) -> bool {
    ["image/png", "image/jpeg", "image/jpg", "image/webp"].iter().any(|known| kind.eq_ignore_ascii_case(known))
}

/// # Errors
/// If a picture's file is too large.
pub(crate) fn check_file_size(bytes: usize, most: usize, param: &str) -> Result<()> {
    if bytes > most {
        let message = format!("expected a picture file of at most {most} bytes, got {bytes}");
        return Err(Fault::PictureTooLarge { param: param.to_owned(), message });
    }
    Ok(())
}

/// Decodes a file. The memory for its pixels is taken before, by what its header says; what decoding took beside the
/// picture is given back.
///
/// # Errors
/// If it can't be read, is too large, or if too much is in memory.
pub(crate) async fn decode(app: &App, file: Vec<u8>, param: &str) -> Result<Picture> {
    let (memory, pixels, param) = (app.memory.clone(), app.limits.pixels, param.to_owned());
    app.aside(move || {
        let refused = |error| Fault::of_picture(&error, &param);
        let mut held = memory.take(Image::decoding_bytes(&file, pixels).map_err(refused)? as usize)?;
        let image = Image::decode(&file, pixels).map_err(refused)?;
        held.keep(image.rgb().as_raw().len());
        Ok(Picture { image: Arc::new(image), held })
    })
    .await
}

impl<'de> Deserialize<'de> for ImageUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(expecting = "an object")]
        struct Object {
            url: String,
        }
        struct UrlVisitor;
        impl<'de> Visitor<'de> for UrlVisitor {
            type Value = ImageUrl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with url, or an address")
            }

            fn visit_str<E>(self, url: &str) -> std::result::Result<ImageUrl, E> {
                Ok(ImageUrl { url: url.to_owned() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<ImageUrl, A::Error> {
                Object::deserialize(MapAccessDeserializer::new(map)).map(|Object { url }| ImageUrl { url })
            }
        }
        deserializer.deserialize_any(UrlVisitor)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use super::*;

    /// A PNG file of 8×8 pixels, and so many bytes behind its end, in a data URL.
    pub(crate) fn padded_picture(bytes: usize) -> String {
        let mut file = Cursor::new(Vec::new());
        image::RgbImage::new(8, 8).write_to(&mut file, image::ImageFormat::Png).unwrap();
        format!("data:image/png;base64,{}", STANDARD.encode([file.into_inner(), vec![0; bytes]].concat()))
    }

    #[test]
    fn data_urls_hold_pictures_in_base64() {
        assert_eq!(data("data:image/png;base64,AQID", 3, "p").unwrap(), [1, 2, 3]);
        assert_eq!(data("data:IMAGE/JPEG;charset=x;base64,AQ==", 3, "p").unwrap(), [1]);
        assert_eq!(data("data:image/png;base64,AQ==", 1, "p").unwrap(), [1], "padding is not of the file");
        for (url, message) in [
            ("data:image/png,AQID", "in base64"),
            ("data:image/png;base64", "expected a data URL"),
            ("data:;base64,AQID", "expected image/png"),
            ("data:video/jpeg;base64,AQID", "expected image/png"),
            ("data:image/jp2;base64,AQID", "expected image/png"),
            ("data:image/svg+xml;base64,AQID", "expected image/png"),
            ("data:image/png;base64,AQI", "expected base64"),
            ("data:image/png;base64,A QID", "expected base64"),
            ("data:image/png;base64,%41QID", "expected base64"),
            ("data:image/png;base64,AQIDBA==", "at most 3 bytes"),
        ] {
            let fault = data(url, 3, "p").unwrap_err().to_string();
            assert!(fault.starts_with("p: ") && fault.contains(message), "{url}: {fault}");
        }
    }

    #[test]
    fn addresses_are_of_three_kinds() {
        let handle = format!("sha256:{}", "0f".repeat(32));
        assert!(matches!(Source::parse("data:image/png;base64,AQID", "p"), Ok(Source::Data(_))));
        assert!(matches!(Source::parse(&handle, "p"), Ok(Source::Handle(_))));
        assert!(matches!(Source::parse("https://example.org/a.png", "p"), Ok(Source::Remote(_))));
        for url in [
            "",
            "a.png",
            "/etc/passwd",
            "file:///etc/passwd",
            "ftp://example.org/a.png",
            "sha256:../../etc/passwd",
            "gopher://x/",
            "http://",
        ] {
            assert!(Source::parse(url, "p").is_err(), "{url}");
        }
    }
}
