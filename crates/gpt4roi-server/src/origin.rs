//! Which pages and hosts a request may come from.
//!
//! A server on this machine's own address is reached by every page that a browser here shows. Two checks
//! keep strangers out: the name in `Host` must be one of this server's (a page whose name was made to
//! point here, by DNS rebinding, carries its own), and an `Origin` must be the server's own page or one
//! that was allowed (a page elsewhere carries its own).

use axum::http::{HeaderMap, HeaderValue, Uri, header};

use crate::fault::{Fault, Result};

/// The checks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate {
    /// Names that this server answers to; `None` for all.
    pub(crate) hosts: Option<Vec<String>>,
    /// Origins beside its own.
    pub(crate) origins: Vec<String>,
}

impl Gate {
    /// Also returns the origin that the answer has to allow, if it is a page from elsewhere.
    ///
    /// # Errors
    /// [`Fault::Host`] and [`Fault::Origin`].
    pub(crate) fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<HeaderValue>> {
        let host = host(uri, headers)?;
        if let Some(hosts) = &self.hosts
            && !hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name(host)))
        {
            return Err(Fault::Host);
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => Ok(None),
            (Some(origin), None) if is_own(origin, host) => Ok(None),
            (Some(origin), None) if self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) => {
                Ok(Some(origin.clone()))
            }
            _ => Err(Fault::Origin),
        }
    }
}

/// The one host that the request names. Where the request's line names one too, both have to agree.
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(Fault::Host) };
    let host = host.to_str().map_err(|_| Fault::Host)?;
    match uri.authority() {
        Some(authority) if authority.as_str() != host => Err(Fault::Host),
        _ => Ok(host),
    }
}

/// A host without its port, which says nothing about who is asking.
fn name(host: &str) -> &str {
    let port = host.rfind(':').filter(|&colon| {
        let digits = &host[colon + 1..];
        !host[..colon].is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
    });
    match port {
        // The colons of an address in brackets are not followed by a port.
        Some(colon) if !host.starts_with('[') || host[..colon].ends_with(']') => &host[..colon],
        _ => host,
    }
}

fn is_own(origin: &HeaderValue, host: &str) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(uri: &str, headers: &[(header::HeaderName, &str)]) -> Result<Option<HeaderValue>> {
        let hosts = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();
        let gate = Gate { hosts: Some(hosts), origins: vec!["https://labels.example".into()] };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        gate.admit(&uri.parse().unwrap(), &map)
    }

    #[test]
    fn only_this_servers_names_are_answered() {
        for host in ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1:8080", "[::1]", "[::1]:8080"] {
            assert!(admit("/", &[(header::HOST, host)]).is_ok(), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost:80:80",
            "localhost@evil.example",
            "evil.example/localhost",
            "",
            ":8080",
            "0.0.0.0:8080",
            "::1",
            "[::1",
            "localhost.",
            "localhost:x",
            "localhost evil.example",
            "[::1]evil.example",
            "\t",
        ] {
            assert!(matches!(admit("/", &[(header::HOST, host)]), Err(Fault::Host)), "{host}");
        }
        assert!(admit("/", &[]).is_err(), "no host");
        assert!(admit("/", &[(header::HOST, "localhost"), (header::HOST, "localhost")]).is_err(), "two hosts");
        assert!(admit("http://evil.example/", &[(header::HOST, "localhost")]).is_err(), "two that differ");
    }

    #[test]
    fn pages_from_elsewhere_are_refused() {
        let host = (header::HOST, "localhost:8080");
        let from = |origin| admit("/", &[host.clone(), (header::ORIGIN, origin)]);
        assert_eq!(from("http://localhost:8080").unwrap(), None);
        assert_eq!(from("https://labels.example").unwrap().unwrap(), "https://labels.example");
        for origin in [
            "http://evil.example",
            "null",
            "",
            "http://localhost:8081",
            "http://localhost",
            "http://127.0.0.1:8080",
            "https://labels.example.evil.example",
            "file://",
            "localhost:8080",
            "http://localhost:8080/",
        ] {
            assert!(matches!(from(origin), Err(Fault::Origin)), "{origin}");
        }
        assert!(admit("/", &[host.clone(), (header::ORIGIN, "null"), (header::ORIGIN, "null")]).is_err());
    }

    #[test]
    fn every_host_is_fine_where_none_was_listed() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("gpt4roi.example"));
        assert!(Gate::default().admit(&Uri::from_static("/"), &headers).is_ok());
    }
}
