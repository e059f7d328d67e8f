//! The page, embedded in the program.

use std::sync::LazyLock;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use include_dir::{Dir, include_dir};
use sha2::{Digest, Sha256};

static FILES: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/page/dist");

/// A file of the page.
struct Asset {
    name: String,
    content: &'static [u8],
    /// Its digest, in quotes, as a browser sends it back.
    etag: String,
}

/// All of them. Their names are compared whole, so that no path of anybody's is ever opened.
static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let mut assets = Vec::new();
    collect(&FILES, &mut assets);
    assets
});

fn collect(dir: &Dir<'static>, assets: &mut Vec<Asset>) {
    for file in dir.files() {
        let digest = Sha256::digest(file.contents());
        let etag = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
        let name = file.path().to_string_lossy().replace('\\', "/");
        assets.push(Asset { name, content: file.contents(), etag: format!("\"{etag}\"") });
    }
    dir.dirs().for_each(|dir| collect(dir, assets));
}

/// What the page may do: load what lies beside it, show pictures that were made in it, and ask this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
    font-src 'self'; connect-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// The file at a path, `/` being `index.html`; none if there is no such file.
pub(crate) fn get(method: &Method, path: &str, headers: &HeaderMap) -> Option<Response> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let name = if path == "/" { "index.html" } else { path.strip_prefix('/')? };
    let asset = ASSETS.iter().find(|asset| asset.name == name)?;
    let unchanged = headers.get_all(header::IF_NONE_MATCH).iter().any(|tags| {
        let tags = tags.to_str().unwrap_or_default();
        tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == asset.etag || tag.trim() == "*")
    });
    let mut response = if unchanged {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, kind(&asset.name))], Body::from(asset.content)).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, HeaderValue::from_str(&asset.etag).ok()?);
    // A browser asks each time, and is told that nothing has changed.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("cross-origin-opener-policy", "same-origin"),
        ("permissions-policy", "camera=(self), microphone=(self), geolocation=()"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    Some(response)
}

fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str) -> Option<u16> {
        get(&Method::GET, path, &HeaderMap::new()).map(|response| response.status().as_u16())
    }

    #[test]
    fn files_are_served_by_their_whole_name() {
        assert_eq!((status("/"), status("/index.html")), (Some(200), Some(200)));
        for path in [
            "",
            "//",
            "/../Cargo.toml",
            "/./index.html",
            "/%2e%2e/Cargo.toml",
            "/..%2fCargo.toml",
            "/index.html/",
            "//index.html",
            "/index.html%00",
            "/etc/passwd",
            "/\\..\\Cargo.toml",
            "/INDEX.HTML",
        ] {
            assert_eq!(status(path), None, "{path}");
        }
        assert!(get(&Method::POST, "/", &HeaderMap::new()).is_none());
    }

    #[test]
    fn what_a_browser_has_is_not_sent_again() {
        let first = get(&Method::GET, "/", &HeaderMap::new()).unwrap();
        let tag = first.headers()[header::ETAG].clone();
        let with = |tag: HeaderValue| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, tag)]);
            get(&Method::GET, "/", &headers).unwrap().status().as_u16()
        };
        assert_eq!(with(tag.clone()), 304);
        assert_eq!(with(HeaderValue::from_str(&format!("\"other\", W/{}", tag.to_str().unwrap())).unwrap()), 304);
        assert_eq!(with(HeaderValue::from_static("\"other\"")), 200);
        assert!(first.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    }
}
