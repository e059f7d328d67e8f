//! Which request goes where, and what it has to pass on the way.

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};

use crate::{
    app::App, body, chat_completions, fault::Fault, health, images, metrics, models, openapi, page, regions_describe,
};

/// Everything that needs a key, if there are keys.
fn guarded() -> Vec<(&'static str, MethodRouter<App>)> {
    vec![
        ("/v1/chat/completions", post(chat_completions::create)),
        ("/v1/regions/describe", post(regions_describe::create)),
        ("/v1/images", post(images::create)),
        ("/v1/images/{id}", get(images::get).delete(images::delete)),
        ("/v1/models", get(models::list)),
        ("/v1/models/{*id}", get(models::get)),
        ("/metrics", get(metrics::get)),
        ("/openapi.json", get(openapi::get)),
    ]
}

/// What load balancers ask, who have no key, and learn one bit.
fn open() -> Vec<(&'static str, MethodRouter<App>)> {
    vec![("/livez", get(health::live)), ("/readyz", get(health::ready)), ("/health", get(health::ready))]
}

/// The whole application. A request is counted, then its host and origin are checked, then its key.
pub(crate) fn router(app: App) -> Router {
    let mut router = Router::new();
    for (path, methods) in guarded() {
        router = router.route(path, methods.fallback(not_allowed).layer(from_fn_with_state(app.clone(), admit)));
    }
    for (path, methods) in open() {
        router = router.route(path, methods.fallback(not_allowed));
    }
    router
        .fallback(page_or_nothing)
        .layer(from_fn_with_state(app.clone(), check_origin))
        .layer(from_fn_with_state(app.clone(), metrics::observe))
        .with_state(app)
}

/// Lets a request pass that has a key, and says whose it is.
async fn admit(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match app.keys.admit(request.headers()) {
        Ok(owner) => {
            request.extensions_mut().insert(owner);
            next.run(request).await
        }
        Err(fault) => refuse(&app, request, fault).await,
    }
}

/// Refuses a request whose body nobody has read, in a way that its client hears of.
async fn refuse(app: &App, request: Request, fault: Fault) -> Response {
    let (head, body) = request.into_parts();
    body::discard(&head.headers, body, &app.limits, &app.times).await;
    fault.into_response()
}

async fn not_allowed(State(app): State<App>, request: Request) -> Response {
    refuse(&app, request, Fault::MethodNotAllowed).await
}

/// A file of the page, which holds nothing secret and has to load before somebody can enter a key;
/// whoever asks for anything else needs one even to hear that it is not there.
async fn page_or_nothing(State(app): State<App>, request: Request) -> Response {
    let file = app.page.then(|| page::get(request.method(), request.uri().path(), request.headers())).flatten();
    match file {
        Some(file) => file,
        None => {
            let fault = app.keys.admit(request.headers()).err().unwrap_or(Fault::NotFound);
            refuse(&app, request, fault).await
        }
    }
}

/// Turns away what comes from the wrong place, and answers browsers that ask whether they may ask.
async fn check_origin(State(app): State<App>, request: Request, next: Next) -> Response {
    let allowed = match app.gate.admit(request.uri(), request.headers()) {
        Ok(allowed) => allowed,
        Err(fault) => return with_common_headers(refuse(&app, request, fault).await),
    };
    let asks = request.method() == Method::OPTIONS && request.headers().contains_key("access-control-request-method");
    let mut response = if allowed.is_some() && asks { preflight() } else { next.run(request).await };
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        // What OpenAI's client looks at to see whether and when it should try again.
        let exposed = HeaderValue::from_static("retry-after, x-should-retry");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    with_common_headers(response)
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
        // The last ones are what OpenAI's client sends from a page.
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, x-stainless-os, x-stainless-arch, x-stainless-lang, x-stainless-runtime, \
             x-stainless-runtime-version, x-stainless-package-version, x-stainless-retry-count, x-stainless-timeout, \
             x-stainless-helper-method",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers, Body::empty()).into_response()
}

fn with_common_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every path, as OpenAPI writes it.
    pub(crate) fn paths() -> Vec<String> {
        let paths = guarded().into_iter().chain(open()).map(|(path, _)| path.replace("{*", "{"));
        paths.collect()
    }
}
