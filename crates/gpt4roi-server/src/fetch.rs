//! Pictures from elsewhere, if the server was told to fetch them: from public addresses only.
//!
//! Who may name an address makes the server ask there in his place (SSRF). So the names are resolved here,
//! every address that comes out has to be public, and the connection goes to one of exactly these: a name
//! that resolves differently a moment later changes nothing. Each redirect is checked anew.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Semaphore;
use ureq::{
    Agent,
    config::Config,
    http::{Uri, header},
    tls::{RootCerts, TlsConfig, TlsProvider},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};
use url::Url;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 3;
/// Pictures that are fetched at a time.
const AT_A_TIME: usize = 4;
/// For one picture, from the first name to the last byte.
const TIME: Duration = Duration::from_secs(10);

/// Why a picture could not be fetched. A client is not told more: what the server sees of a network
/// is not the client's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("expected http or https, port 80 or 443, no user name, and a public address")]
    Forbidden,
    #[error("no picture came from there")]
    Failed,
    #[error("the file is too large")]
    TooLarge,
    #[error("too many redirects")]
    Redirects,
}

/// Fetches pictures.
#[derive(Clone, Debug)]
pub(crate) struct Fetcher {
    agent: Agent,
    allowed: Allowed,
    at_a_time: Arc<Semaphore>,
}

/// Where one may ask. Tests ask a server of their own.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    address: fn(IpAddr) -> bool,
    port: fn(u16) -> bool,
}

const PUBLIC: Allowed = Allowed { address: is_public, port: |port| matches!(port, 80 | 443) };

impl Fetcher {
    /// Asks public addresses.
    pub(crate) fn public() -> Self {
        Self::new(DefaultResolver::default(), PUBLIC)
    }

    fn new(resolver: impl Resolver, allowed: Allowed) -> Self {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = Agent::config_builder()
            .tls_config(tls.build())
            // A proxy would resolve names itself.
            .proxy(None)
            .user_agent(concat!("gpt4roi/", env!("CARGO_PKG_VERSION")))
            .accept("image/png, image/jpeg, image/webp")
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
            .timeout_global(Some(TIME))
            .build();
        let resolver = Checked { resolver, allowed: allowed.address };
        let agent = Agent::with_parts(config, DefaultConnector::default(), resolver);
        Self { agent, allowed, at_a_time: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// The file at an address, of at most so many bytes.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub(crate) async fn fetch(&self, url: &Url, most: usize) -> Result<Vec<u8>, FetchError> {
        let permit = self.at_a_time.clone().acquire_owned().await.map_err(|_| FetchError::Failed)?;
        let (fetcher, url) = (self.clone(), url.clone());
        let fetched = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            fetcher.follow(url, most)
        });
        fetched.await.map_err(|_| FetchError::Failed)?
    }

    fn follow(&self, mut url: Url, most: usize) -> Result<Vec<u8>, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            self.check(&url)?;
            let mut response = self.agent.get(url.as_str()).call().map_err(of_ureq)?;
            match response.status().as_u16() {
                200 => {
                    let body = response.body_mut().with_config().limit(most as u64);
                    return body.read_to_vec().map_err(of_ureq);
                }
                301 | 302 | 303 | 307 | 308 => {
                    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                    url = url.join(location.ok_or(FetchError::Failed)?).map_err(|_| FetchError::Failed)?;
                }
                _ => return Err(FetchError::Failed),
            }
        }
        Err(FetchError::Redirects)
    }

    /// What can be said before a name is resolved.
    fn check(&self, url: &Url) -> Result<(), FetchError> {
        let plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
        let port = url.port_or_known_default().is_some_and(self.allowed.port);
        let host = match url.host() {
            Some(url::Host::Ipv4(address)) => (self.allowed.address)(address.into()),
            Some(url::Host::Ipv6(address)) => (self.allowed.address)(address.into()),
            Some(url::Host::Domain(name)) => !name.is_empty(),
            None => false,
        };
        if plain && port && host { Ok(()) } else { Err(FetchError::Forbidden) }
    }
}

fn of_ureq(error: ureq::Error) -> FetchError {
    match error {
        ureq::Error::BodyExceedsLimit(_) => FetchError::TooLarge,
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => FetchError::Forbidden,
        _ => FetchError::Failed,
    }
}

/// Resolves names, and refuses one as soon as any of its addresses is not allowed.
#[derive(Debug)]
struct Checked<R> {
    resolver: R,
    allowed: fn(IpAddr) -> bool,
}

impl<R: Resolver> Resolver for Checked<R> {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = self.resolver.resolve(uri, config, timeout)?;
        if addresses.iter().all(|address| (self.allowed)(address.ip())) {
            Ok(addresses)
        } else {
            Err(ureq::Error::Io(io::ErrorKind::PermissionDenied.into()))
        }
    }
}

/// Whether an address belongs to the public internet. Everything that is not known to do so does not.
///
/// Source: the special-purpose registries of IANA (RFC 6890 and its successors).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        // This network, private networks, loopback, link-local (where clouds keep their secrets).
        [0 | 10 | 127, ..] | [172, 16..=31, ..] | [192, 168, ..] | [169, 254, ..] => true,
        // Carrier-grade NAT, protocol assignments, 6to4 relays, benchmarks.
        [100, 64..=127, ..] | [192, 0, 0, _] | [192, 88, 99, _] | [198, 18..=19, ..] => true,
        // Documentation.
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => true,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => true,
        _ => false,
    };
    !special
}

/// Global unicast is 2000::/3. Outside lie loopback, the unspecified address, IPv4 in IPv6 (mapped,
/// compatible and by NAT64), unique local, link-local and multicast addresses.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let global = matches!(address.segments()[0], 0x2000..=0x3fff);
    let special = match address.segments() {
        // Protocol assignments with Teredo and benchmarks; documentation.
        [0x2001, 0..=0x01ff, ..] | [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => true,
        // 6to4, which leads to any IPv4 address.
        [0x2002, ..] => true,
        _ => false,
    };
    global && !special
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpListener},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Answers every name with what it was given, one after the other.
    #[derive(Debug)]
    struct Fake(Vec<Vec<SocketAddr>>, AtomicUsize);

    impl Fake {
        fn new(answers: &[&[&str]]) -> Self {
            let parse = |address: &&str| SocketAddr::new(address.parse().unwrap(), 80);
            Self(answers.iter().map(|answer| answer.iter().map(parse).collect()).collect(), AtomicUsize::new(0))
        }
    }

    impl Resolver for Fake {
        fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let turn = self.1.fetch_add(1, Ordering::SeqCst).min(self.0.len() - 1);
            let mut addresses = self.empty();
            self.0[turn].iter().for_each(|&address| addresses.push(address));
            Ok(addresses)
        }
    }

    fn fetch(fetcher: &Fetcher, url: &str) -> Result<Vec<u8>, FetchError> {
        fetcher.follow(Url::parse(url).unwrap(), 1000)
    }

    #[test]
    fn addresses_written_in_any_way_are_refused_unless_public() {
        let fetcher = Fetcher::new(Fake::new(&[&["127.0.0.1"]]), PUBLIC);
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0177.0.0.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://0/",
            "http://0.0.0.0/",
            "http://10.1.2.3/",
            "http://172.16.0.1/",
            "http://172.31.255.255/",
            "http://192.168.1.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://100.64.0.1/",
            "http://100.127.0.1/",
            "http://192.0.0.8/",
            "http://192.0.2.1/",
            "http://192.88.99.1/",
            "http://198.18.0.1/",
            "http://198.51.100.1/",
            "http://203.0.113.1/",
            "http://224.0.0.1/",
            "http://240.0.0.1/",
            "http://255.255.255.255/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:8.8.8.8]/",
            "http://[::127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[64:ff9b:1::1]/",
            "http://[2002:7f00:1::]/",
            "http://[2001::1]/",
            "http://[2001:db8::1]/",
            "http://[3fff::1]/",
            "http://[fc00::1]/",
            "http://[fd12::1]/",
            "http://[fe80::1]/",
            "http://[fec0::1]/",
            "http://[ff02::1]/",
            "http://[100::1]/",
            "http://[5f00::1]/",
            "http://user@8.8.8.8/",
            "http://user:word@8.8.8.8/",
            "http://8.8.8.8:22/",
            "http://8.8.8.8:8080/",
            "ftp://8.8.8.8/",
            "file:///etc/passwd",
            "http://evil.example\\@8.8.8.8:22/",
        ] {
            assert_eq!(fetch(&fetcher, url), Err(FetchError::Forbidden), "{url}");
        }
    }

    #[test]
    fn names_are_refused_if_any_of_their_addresses_is() {
        for answer in [
            &["127.0.0.1"][..],
            &["8.8.8.8", "127.0.0.1"],
            &["::1"],
            &["2001:4860:4860::8888", "fe80::1"],
            &["::ffff:10.0.0.1"],
            &["169.254.169.254"],
            &["64:ff9b::a9fe:a9fe"],
            &["0.0.0.0"],
        ] {
            let fetcher = Fetcher::new(Fake::new(&[answer]), PUBLIC);
            for url in ["http://pictures.example/a.png", "https://localhost./", "http://localhost/"] {
                assert_eq!(fetch(&fetcher, url), Err(FetchError::Forbidden), "{url} {answer:?}");
            }
        }
    }

    #[test]
    fn public_addresses_are_public() {
        for address in [
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "198.20.0.1",
            "2001:4860:4860::8888",
            "2a00:1450::1",
            "2606:4700::1111",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    /// A server that gives each request the next of these answers, and says what it was asked.
    fn server(answers: Vec<String>) -> (SocketAddr, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let serve = |answer: String| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                request.lines().next().unwrap_or_default().to_owned()
            };
            answers.into_iter().map(serve).collect()
        });
        (address, thread)
    }

    const HERE: Allowed = Allowed { address: |address| address == IpAddr::V4(Ipv4Addr::LOCALHOST), port: |_| true };

    /// Every name is this machine.
    #[derive(Debug)]
    struct Here;

    impl Resolver for Here {
        fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let mut addresses = self.empty();
            addresses.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), uri.port_u16().unwrap()));
            Ok(addresses)
        }
    }

    #[test]
    fn redirects_are_followed_a_few_times() {
        let found = |body: &str| {
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        };
        let moved = |to: &str| {
            format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        };
        let fetcher = Fetcher::new(Here, HERE);
        let ask = |answers: Vec<String>| {
            let (address, thread) = server(answers);
            let fetched = fetch(&fetcher, &format!("http://pictures.example:{}/a", address.port()));
            (fetched, thread.join().unwrap())
        };
        let (fetched, asked) = ask(vec![moved("/b"), moved("c"), moved("/d?e"), found("picture")]);
        assert_eq!(fetched.unwrap(), b"picture");
        assert_eq!(asked, ["GET /a HTTP/1.1", "GET /b HTTP/1.1", "GET /c HTTP/1.1", "GET /d?e HTTP/1.1"]);
        assert_eq!(ask(vec![moved("/b"); 4]).0, Err(FetchError::Redirects));
        assert_eq!(ask(vec![moved("http://192.168.0.1/")]).0, Err(FetchError::Forbidden));
        assert_eq!(ask(vec![moved("file:///etc/passwd")]).0, Err(FetchError::Forbidden));
        assert_eq!(ask(vec![found(&"x".repeat(1001))]).0, Err(FetchError::TooLarge));
        assert_eq!(ask(vec!["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".into()]).0, Err(FetchError::Failed));
    }

    #[test]
    fn a_name_is_resolved_once_a_connection() {
        // Whoever resolved it a second time would come to an address that was never checked.
        let (address, thread) = server(vec!["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".into()]);
        #[derive(Debug)]
        struct Rebinding(SocketAddr, Arc<AtomicUsize>);
        impl Resolver for Rebinding {
            fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
                let mut addresses = self.empty();
                let first = self.1.fetch_add(1, Ordering::SeqCst) == 0;
                addresses.push(if first { self.0 } else { SocketAddr::new(Ipv4Addr::new(10, 0, 0, 1).into(), 80) });
                Ok(addresses)
            }
        }
        let asked = Arc::new(AtomicUsize::new(0));
        let fetcher = Fetcher::new(Rebinding(address, asked.clone()), HERE);
        assert_eq!(fetch(&fetcher, "http://rebind.example/").unwrap(), b"ok");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(fetch(&fetcher, "http://rebind.example/"), Err(FetchError::Forbidden), "each fetch checks anew");
        thread.join().unwrap();
    }
}
