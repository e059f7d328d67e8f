//! Where the hub and the cache are, and how patient to be: the settings that the hub's other clients read.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ureq::Proxy;

use crate::{
    cache::Cache,
    error::{HubError, Result},
    retry::Retry,
};

/// Everything that a [`crate::Hub`] has to know.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The hub: scheme, host, perhaps a path.
    pub endpoint: String,
    /// The directory with a `models--ORG--NAME` for each model.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Option<Token>,
    /// Whether to stay off the network.
    pub offline: bool,
    /// Files that are downloaded at a time; 0 is one, too.
    pub connections: usize,
    /// How long a connection may take to be made.
    pub connect_limit: Duration,
    /// How long a server may send nothing.
    pub stall_limit: Duration,
    /// When to try again.
    pub retry: Retry,
    /// Through which proxy, if any.
    pub proxy: Option<Proxy>,
}

/// The hub that is meant when none is named.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A secret that says who asks. It is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as it stands in a variable or a file, white space around it included; `None` if there is
    /// nothing else.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl HubConfig {
    /// This hub and this cache, nobody's token, and default patience.
    pub fn new(endpoint: impl Into<String>, cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: endpoint.into(),
            cache: cache.into(),
            token: None,
            offline: false,
            connections: 4,
            connect_limit: Duration::from_secs(10),
            stall_limit: Duration::from_secs(10),
            retry: Retry::default(),
            proxy: None,
        }
    }

    /// Reads the variables of [the hub's own client](https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables)
    /// from `lookup`: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`,
    /// `HF_HUB_DOWNLOAD_TIMEOUT` (seconds without a byte), `HF_HUB_DISABLE_IMPLICIT_TOKEN`, and the older
    /// `HUGGINGFACE_HUB_CACHE` and `HUGGING_FACE_HUB_TOKEN`. Without `HF_TOKEN` the token file is read. The proxy
    /// is that of `HTTPS_PROXY`, or else of `ALL_PROXY`; hosts in `NO_PROXY` are reached without. Small letters do, too.
    ///
    /// # Errors
    /// If a value can't be, there is no home directory to put the cache in, or the token file can't be read.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variables = Variables(lookup);
        let endpoint = variables.text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let mut config = Self::new(endpoint, variables.cache()?);
        config.token = variables.token()?;
        config.offline = variables.is_on("HF_HUB_OFFLINE");
        if let Some(limit) = variables.seconds("HF_HUB_DOWNLOAD_TIMEOUT")? {
            config.stall_limit = limit;
        }
        config.proxy = variables.proxy()?;
        Ok(config)
    }
}

impl Cache {
    /// The cache that [`HubConfig::from_env`] names.
    ///
    /// # Errors
    /// If there is no home directory to put it in.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Ok(Self::new(Variables(lookup).cache()?))
    }
}

/// Named texts, read as the hub's own client reads them.
struct Variables<F>(F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    /// A variable that is empty counts as not set.
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|text| !text.trim().is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        let text = self.text(name)?;
        let below_home = text.strip_prefix("~/").or_else(|| text.strip_prefix("~\\").filter(|_| cfg!(windows)));
        Some(match (below_home, self.user()) {
            (Some(rest), Some(user)) => user.join(rest),
            _ => PathBuf::from(text),
        })
    }

    /// As Python has it: on Windows the profile counts, also in a shell that sets `HOME`.
    fn user(&self) -> Option<PathBuf> {
        let [first, second] = if cfg!(windows) { ["USERPROFILE", "HOME"] } else { ["HOME", "USERPROFILE"] };
        self.text(first).or_else(|| self.text(second)).map(PathBuf::from)
    }

    /// The directory of everything that hub clients keep.
    fn home(&self) -> Option<PathBuf> {
        let caches = || self.path("XDG_CACHE_HOME").or_else(|| Some(self.user()?.join(".cache")));
        self.path("HF_HOME").or_else(|| Some(caches()?.join("huggingface")))
    }

    fn cache(&self) -> Result<PathBuf> {
        let named = self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE"));
        let expected = "a directory for the cache, since there is no HOME to put it in";
        let homeless = || HubError::Setting { setting: "HF_HOME", expected, got: String::new() };
        named.or_else(|| Some(self.home()?.join("hub"))).ok_or_else(homeless)
    }

    fn is_on(&self, name: &str) -> bool {
        self.text(name).is_some_and(|text| ["1", "ON", "YES", "TRUE"].contains(&text.to_uppercase().as_str()))
    }

    fn seconds(&self, name: &'static str) -> Result<Option<Duration>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let seconds = text.parse().ok().filter(|&seconds| seconds > 0.0);
        let limit = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        limit.map(Some).ok_or(HubError::Setting { setting: name, expected: "seconds above zero", got: text })
    }

    /// A variable that other programs write in small letters, too.
    fn either(&self, name: &'static str) -> Option<String> {
        self.text(name).or_else(|| self.text(&name.to_ascii_lowercase()))
    }

    fn proxy(&self) -> Result<Option<Proxy>> {
        let named = |name| Some((name, self.either(name)?));
        let Some((setting, text)) = named("HTTPS_PROXY").or_else(|| named("ALL_PROXY")) else { return Ok(None) };
        let excepted = self.either("NO_PROXY").unwrap_or_default();
        let proxy = Proxy::new(&text).and_then(|proxy| with_exceptions(&proxy, &excepted));
        // Before the last `@` may stand a password.
        let got = text.rsplit('@').next().unwrap_or_default().to_owned();
        proxy.map(Some).map_err(|_| HubError::Setting { setting, expected: "a proxy like http://proxy:8080", got })
    }

    fn token(&self) -> Result<Option<Token>> {
        let given = self.text("HF_TOKEN").or_else(|| self.text("HUGGING_FACE_HUB_TOKEN"));
        if let Some(token) = given {
            return Ok(Token::new(&token));
        }
        match self.path("HF_TOKEN_PATH").or_else(|| Some(self.home()?.join("token"))) {
            Some(file) if !self.is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") => token_file(&file),
            _ => Ok(None),
        }
    }
}

/// The proxy for all hosts but some, which stand between commas. An address alone has none of these exceptions.
fn with_exceptions(proxy: &Proxy, hosts: &str) -> Result<Proxy, ureq::Error> {
    let mut builder = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    if let Some(user) = proxy.username() {
        builder = builder.username(user);
    }
    if let Some(password) = proxy.password() {
        builder = builder.password(password);
    }
    let hosts = hosts.split(',').map(str::trim).filter(|host| !host.is_empty());
    hosts.fold(builder, |builder, host| builder.no_proxy(host)).build()
}

fn token_file(file: &Path) -> Result<Option<Token>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Token::new(&text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(HubError::file(file)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<HubConfig> {
        let variables: Vec<_> = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        HubConfig::from_env(move |name| {
            variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        })
    }

    #[test]
    fn the_cache_is_where_other_clients_have_it() {
        for (variables, expected) in [
            (&[("HOME", "/home/a")][..], "/home/a/.cache/huggingface/hub"),
            (&[("USERPROFILE", "/users/a")], "/users/a/.cache/huggingface/hub"),
            (&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HOME", "/home/a"), ("HF_HOME", "~/hf")], "/home/a/hf/hub"),
            (&[("HOME", "/home/a"), ("HF_HOME", r"~\hf")], if cfg!(windows) { "/home/a/hf/hub" } else { r"~\hf/hub" }),
            (
                &[("HOME", "/1"), ("USERPROFILE", "/2"), ("HF_HOME", "~/hf")],
                if cfg!(windows) { "/2/hf/hub" } else { "/1/hf/hub" },
            ),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "")], "/hf/hub"),
        ] {
            assert_eq!(config(variables).unwrap().cache, Path::new(expected), "{variables:?}");
        }
        assert!(config(&[]).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn the_token_comes_from_its_variable_or_its_file() {
        let home = tempfile::tempdir().unwrap();
        let hf_home = ("HF_HOME", home.path().to_str().unwrap());
        let token = |variables: &[(&str, &str)]| config(variables).unwrap().token.map(|token| token.0);
        assert_eq!(token(&[hf_home]), None);
        fs::write(home.path().join("token"), "from-file\n").unwrap();
        fs::write(home.path().join("other"), "from-other\n").unwrap();
        let other = home.path().join("other");
        assert_eq!(token(&[hf_home]).as_deref(), Some("from-file"));
        assert_eq!(token(&[hf_home, ("HF_TOKEN_PATH", other.to_str().unwrap())]).as_deref(), Some("from-other"));
        assert_eq!(token(&[hf_home, ("HF_TOKEN", " given ")]).as_deref(), Some("given"));
        assert_eq!(token(&[hf_home, ("HUGGING_FACE_HUB_TOKEN", "old")]).as_deref(), Some("old"));
        assert_eq!(token(&[hf_home, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn switches_and_limits() {
        for (text, expected) in [("1", true), ("true", true), ("YES", true), ("0", false), ("", false), ("no", false)] {
            assert_eq!(config(&[("HOME", "/"), ("HF_HUB_OFFLINE", text)]).unwrap().offline, expected, "{text}");
        }
        let limit = |text| config(&[("HOME", "/"), ("HF_HUB_DOWNLOAD_TIMEOUT", text)]);
        assert_eq!(limit("2.5").unwrap().stall_limit, Duration::from_millis(2500));
        for text in ["0", "-1", "soon", "nan", "inf", "1e40"] {
            assert!(limit(text).unwrap_err().to_string().contains("HF_HUB_DOWNLOAD_TIMEOUT"), "{text}");
        }
    }

    #[test]
    fn the_proxy_is_that_of_the_variables_given() {
        let proxy = |variables: &[(&str, &str)]| {
            let proxy = config(&[&[("HOME", "/")], variables].concat()).unwrap().proxy?;
            let excepted = |uri: &str| proxy.is_no_proxy(&uri.parse().unwrap());
            Some((proxy.uri().to_string(), excepted("https://hub.example"), excepted("https://a.b")))
        };
        let (first, second) = ("http://first:1/", "http://second:2/");
        for (variables, expected) in [
            (&[][..], None),
            (&[("HTTPS_PROXY", "")], None),
            (&[("HTTP_PROXY", first)], None),
            (&[("https_proxy", first), ("ALL_PROXY", second)], Some((first, false, false))),
            (&[("HTTPS_PROXY", first), ("https_proxy", second)], Some((first, false, false))),
            (&[("all_proxy", second), ("NO_PROXY", "hub.example")], Some((second, true, false))),
            (&[("HTTPS_PROXY", first), ("no_proxy", "x, .b,*.hub.example")], Some((first, false, true))),
            (&[("HTTPS_PROXY", first), ("NO_PROXY", "*")], Some((first, true, true))),
        ] {
            assert_eq!(proxy(variables), expected.map(|(uri, a, b)| (uri.to_owned(), a, b)), "{variables:?}");
        }
        let with_user = config(&[("HOME", "/"), ("HTTPS_PROXY", "http://me:p%40ss@first:1")]).unwrap().proxy.unwrap();
        assert_eq!((with_user.username(), with_user.password()), (Some("me"), Some("p@ss")));
    }

    #[test]
    fn a_proxy_that_is_none_is_refused_without_its_password() {
        let error = config(&[("HOME", "/"), ("ALL_PROXY", "carrier://me:secret@pigeon")]).unwrap_err().to_string();
        assert!(error.starts_with("ALL_PROXY: expected a proxy") && error.ends_with("`pigeon`"), "{error}");
    }

    #[test]
    fn a_token_is_not_printed() {
        let mut config = HubConfig::new(DEFAULT_ENDPOINT, "/cache");
        config.token = Token::new("hf_secret");
        assert!(!format!("{config:?}").contains("secret"));
    }
}
