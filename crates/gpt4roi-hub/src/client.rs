//! Requests to a hub. The only place that opens a connection.

use std::{
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, Uri, header},
    tls::{RootCerts, TlsConfig, TlsProvider},
};

use crate::{
    config::{HubConfig, Token},
    error::{HubError, Refused, Result},
};

/// Speaks HTTP with one hub and with whom it redirects to.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<Token>,
    stall_limit: Duration,
}

/// An answer whose status says that it worked.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Where it came from at last, without its query.
    pub(crate) url: String,
    /// 200, or 206 for a part.
    pub(crate) status: u16,
    headers: HeaderMap,
    body: Body,
    stall_limit: Duration,
}

/// From which byte on, and of which content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResumeFrom<'a> {
    /// The first byte that is wanted.
    pub(crate) offset: u64,
    /// The `ETag` of the content that the bytes before it belong to, if it is known. If the content has become
    /// another, the server is to send it from its beginning.
    pub(crate) etag: Option<&'a str>,
}

impl ResumeFrom<'_> {
    /// Everything.
    pub(crate) const START: Self = Self { offset: 0, etag: None };
}

/// Hubs redirect once or twice: to a new name, and to the storage.
const MAX_REDIRECTS: usize = 5;

/// Who may see the token: scheme, host and port.
#[derive(Debug, PartialEq, Eq)]
struct Origin(String, String, u16);

impl Client {
    /// A client for the hub of this configuration.
    ///
    /// # Errors
    /// If the endpoint is no address.
    pub(crate) fn new(config: &HubConfig) -> Result<Self> {
        let endpoint = config.endpoint.trim_end_matches('/').to_owned();
        let origin = endpoint.parse().ok().and_then(|uri| Origin::of(&uri)).ok_or_else(|| HubError::Setting {
            setting: "HF_ENDPOINT",
            expected: "an address like https://huggingface.co",
            got: config.endpoint.clone(),
        })?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .proxy(config.proxy.clone())
            .user_agent(concat!("gpt4roi/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(config.connect_limit))
            .timeout_per_read(Some(config.stall_limit))
            .timeout_per_write(Some(config.stall_limit))
            .build()
            .into();
        Ok(Self { agent, endpoint, origin, token: config.token.clone(), stall_limit: config.stall_limit })
    }

    /// Asks for a path below the endpoint and follows redirects. `what` stands for it in refusals.
    ///
    /// # Errors
    /// If the answer does not come, or says that it didn't work.
    pub(crate) fn get(&self, path: &str, from: ResumeFrom<'_>, what: &str) -> Result<Answer> {
        let address = format!("{}{path}", self.endpoint);
        let unfit = |_| HubError::Connection { url: address.clone(), message: "not an address".into() };
        let mut uri: Uri = address.parse().map_err(unfit)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&uri, from)?;
            match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => uri = redirected(&uri, response.headers())?,
                200 | 206 => return Ok(self.answer(&uri, response)),
                _ => return Err(self.failure(&uri, &response, what)),
            }
        }
        Err(HubError::Redirect { url: address, reason: format!("more than {MAX_REDIRECTS} in a row") })
    }

    fn request(&self, uri: &Uri, from: ResumeFrom<'_>) -> Result<Response<Body>> {
        let mut request = self.agent.get(uri);
        if let Some(token) = self.token.as_ref().filter(|_| Origin::of(uri).as_ref() == Some(&self.origin)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        if from.offset > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", from.offset));
            if let Some(etag) = from.etag {
                request = request.header(header::IF_RANGE, etag);
            }
        }
        request.call().map_err(|error| broken(&without_query(uri), error, self.stall_limit))
    }

    fn answer(&self, uri: &Uri, response: Response<Body>) -> Answer {
        let (parts, body) = response.into_parts();
        let (url, status) = (without_query(uri), parts.status.as_u16());
        Answer { url, status, headers: parts.headers, body, stall_limit: self.stall_limit }
    }

    /// What a status says that is none of success. Only the hub itself can refuse; its storage can't.
    fn failure(&self, uri: &Uri, response: &Response<Body>, what: &str) -> HubError {
        let status = response.status().as_u16();
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let from_hub = Origin::of(uri).as_ref() == Some(&self.origin);
        if let Some(reason) = from_hub.then(|| refusal(status, text("x-error-code"))).flatten() {
            return HubError::Refused { what: what.to_owned(), reason };
        }
        let message = text("x-error-message").map_or_else(String::new, |message| format!(" ({message})"));
        let retry_after = text("retry-after").and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
        HubError::Status { url: without_query(uri), status, message, retry_after }
    }
}

/// The statuses and `X-Error-Code`s with which a hub refuses.
fn refusal(status: u16, code: Option<&str>) -> Option<Refused> {
    Some(match (status, code) {
        (401 | 403, Some("GatedRepo")) => Refused::Gated,
        (401, _) => Refused::Unauthorized,
        (403, _) => Refused::Forbidden,
        (404, Some("RevisionNotFound")) => Refused::NoRevision,
        (404, Some("EntryNotFound")) => Refused::NoFile,
        (404, _) => Refused::NoModel,
        _ => return None,
    })
}

/// Where a redirect leads. An encrypted connection is not given up for an open one.
fn redirected(from: &Uri, headers: &HeaderMap) -> Result<Uri> {
    let refuse = |reason: &str| HubError::Redirect { url: without_query(from), reason: reason.to_owned() };
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| refuse("it says nowhere to go"))?;
    let (scheme, authority) =
        (from.scheme_str().unwrap_or_default(), from.authority().map_or("", |host| host.as_str()));
    let address = match location {
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => location.to_owned(),
    };
    let to: Uri = address.parse().map_err(|_| refuse("it leads to no address"))?;
    let origin = Origin::of(&to).ok_or_else(|| refuse("it leads to no address"))?;
    if scheme == "https" && origin.0 != "https" {
        return Err(refuse("it leads from an encrypted connection to an open one"));
    }
    Ok(to)
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?;
        let usual = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self(scheme.to_owned(), host, uri.port_u16().unwrap_or(usual)))
    }
}

impl Answer {
    /// The `ETag` of the content, if it is one that stands for its bytes (a weak one does not).
    pub(crate) fn strong_etag(&self) -> Option<&str> {
        self.header("etag").filter(|etag| etag.starts_with('"'))
    }

    /// How many bytes the body announces.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The first byte of a part, and the size of the whole if it says.
    pub(crate) fn content_range(&self) -> Option<(u64, Option<u64>)> {
        let (part, whole) = self.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        Some((part.split_once('-')?.0.parse().ok()?, whole.parse().ok()))
    }

    /// The body, piece by piece.
    pub(crate) fn reader(&mut self) -> impl FnMut(&mut [u8]) -> Result<usize> {
        let (url, limit) = (&self.url, self.stall_limit);
        let mut reader = self.body.as_reader();
        move |buffer| match reader.read(buffer) {
            // The announced end did not come: whoever reads sees how much did.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            other => other.map_err(|error| broken(url, error.into(), limit)),
        }
    }

    /// The whole body, of at most `limit` bytes.
    ///
    /// # Errors
    /// If it is longer or breaks off.
    pub(crate) fn bytes(mut self, limit: u64) -> Result<Vec<u8>> {
        let read = self.body.with_config().limit(limit).read_to_vec();
        read.map_err(|error| broken(&self.url, error, self.stall_limit))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

fn broken(url: &str, error: ureq::Error, limit: Duration) -> HubError {
    let (url, message) = (url.to_owned(), error.to_string());
    match error {
        ureq::Error::Timeout(_) => HubError::Stalled { url, limit },
        ureq::Error::Io(error) if is_about_certificate(&error) => HubError::Certificate { url, message },
        _ => HubError::Connection { url, message },
    }
}

fn is_about_certificate(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

/// Storage signs its addresses in the query: it belongs in no message.
fn without_query(uri: &Uri) -> String {
    uri.to_string().split('?').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(from: &str, location: &str) -> Result<String> {
        let headers = HeaderMap::from_iter([(header::LOCATION, location.parse().unwrap())]);
        redirected(&from.parse().unwrap(), &headers).map(|uri| uri.to_string())
    }

    #[test]
    fn redirects_lead_where_they_say() {
        for (location, expected) in [
            ("/new/name?x=1", "https://hub:8443/new/name?x=1"),
            ("https://cdn.example/blob?sig=1", "https://cdn.example/blob?sig=1"),
            ("//cdn.example/blob", "https://cdn.example/blob"),
        ] {
            assert_eq!(follow("https://hub:8443/a/b", location).unwrap(), expected);
        }
        for location in ["http://hub:8443/a", "ftp://hub/a", "file:///etc/passwd", "name", "https://"] {
            assert!(follow("https://hub:8443/a/b", location).is_err(), "{location}");
        }
    }

    #[test]
    fn only_scheme_host_and_port_together_make_an_origin() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap());
        assert_eq!(origin("https://Hub.example/a"), origin("https://hub.example:443/b"));
        for other in ["http://hub.example", "https://hub.example:8443", "https://hub.example.evil", "https://evil"] {
            assert_ne!(origin(other), origin("https://hub.example"), "{other}");
        }
    }

    #[test]
    fn endpoints_that_are_no_address_are_refused() {
        for endpoint in ["", "huggingface.co", "ftp://hub", "https://", "/hub", "https://a b"] {
            let error = Client::new(&HubConfig::new(endpoint, "cache")).unwrap_err().to_string();
            assert!(error.starts_with("HF_ENDPOINT"), "{endpoint}: {error}");
        }
        assert!(Client::new(&HubConfig::new("http://hub:8080/prefix/", "cache")).is_ok());
    }
}
