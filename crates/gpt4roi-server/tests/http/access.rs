use std::io::{Read, Write};

use serde_json::json;

use crate::client::{OCTOPUS, PICTURE, question, refused, start};
use gpt4roi_server::Keys;

#[test]
fn every_route_but_health_needs_a_key() {
    let server = start(|options| options.keys = Keys::new(["secret"]));
    let document = server.send("GET", "/openapi.json", &[("authorization", "Bearer secret")], b"").json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let path = path.replace("{id}", "x");
            let open = ["/livez", "/readyz", "/health"].contains(&path.as_str());
            for headers in [
                &[][..],
                &[("authorization", "Bearer wrong")],
                &[("host", "secret")],
                &[("authorization", "Basic secret")],
            ] {
                let response = server.send(&method.to_uppercase(), &path, headers, b"");
                let expected = if headers.first().is_some_and(|(name, _)| *name == "host") {
                    403
                } else if open {
                    200
                } else {
                    401
                };
                assert_eq!(response.status, expected, "{method} {path} {headers:?}");
            }
            let let_in = server.send(&method.to_uppercase(), &path, &[("authorization", "Bearer secret")], b"");
            assert!(![401, 403].contains(&let_in.status), "{method} {path}");
        }
    }
    for path in [
        "/v1",
        "/v1/",
        "/v1/chat/completions/",
        "/V1/models",
        "//v1/models",
        "/v1/models/../models",
        "/nothing",
        "/v1/images/",
    ] {
        assert_eq!(server.get(path).error(), (401, "invalid_api_key".into(), "".into()), "{path}");
        assert!(server.send("GET", path, &[("authorization", "Bearer secret")], b"").status == 404, "{path}");
    }
    assert_eq!(server.get("/").status, 200, "the page is where a key is entered");
    assert_eq!(server.get("/v1/models").header("www-authenticate"), Some("Bearer"));
    assert_eq!(server.send("OPTIONS", "/v1/models", &[], b"").status, 401);
}

/// Clients that send everything before they look for an answer, as Node's do: 8 MB are more than any socket buffers. The
/// connection is still good for another request.
#[test]
fn whoever_is_refused_early_hears_of_it_whatever_they_send() {
    let server = start(|options| options.keys = Keys::new(["secret"]));
    let body = vec![b'x'; 8_000_000];
    for (method, path, headers, status) in [
        ("POST", "/v1/chat/completions", &[][..], "401"),
        ("POST", "/v1/nothing", &[("authorization", "Bearer secret")], "404"),
        ("PUT", "/v1/images", &[("authorization", "Bearer secret")], "405"),
        ("POST", "/v1/images", &[("host", "evil.example")], "403"),
    ] {
        let mut stream = server.connect();
        let request = server.request(method, path, headers, &body);
        let head = String::from_utf8_lossy(&request[..request.len() - body.len()]).replace("connection: close\r\n", "");
        stream.write_all(&[head.as_bytes(), &*body].concat()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[9..], status.as_bytes(), "{method} {path}");
        stream.write_all(&server.request("GET", "/livez", &[], b"")).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("HTTP/1.1 200"), "{method} {path}: {rest}");
    }
}

/// It need not send anything then.
#[test]
fn whoever_asks_before_sending_is_refused_at_once() {
    let server = start(|options| options.keys = Keys::new(["secret"]));
    let request = server.request("POST", "/v1/images", &[("expect", "100-continue")], b"");
    let request = String::from_utf8(request).unwrap().replace("content-length: 0", "content-length: 8000000");
    assert_eq!(server.raw(request.as_bytes()).error(), (401, "invalid_api_key".into(), "".into()));
}

/// Where every host is fine, none of them is a key.
#[test]
fn no_host_replaces_a_key() {
    let server = start(|options| (options.host, options.keys) = ("0.0.0.0".into(), Keys::new(["secret"])));
    for host in [
        "gpt4roi.example",
        "localhost",
        "127.0.0.1",
        "gpt4roi.example/livez",
        "gpt4roi.example/livez?",
        "gpt4roi.example#",
        "x@gpt4roi.example",
        "gpt4roi.example:80:80",
        "/livez",
        "?",
        "[::1",
        "secret",
    ] {
        for path in ["/v1/models", "/v1/models?/livez", "/v1/models#/livez", "/openapi.json", "/metrics"] {
            let status = server.send("GET", path, &[("host", host)], b"").status;
            assert!([400, 401, 403].contains(&status), "{host} {path}: {status}");
        }
    }
    assert_eq!(server.send("GET", "/v1/models", &[("authorization", "Bearer secret")], b"").status, 200);
}

#[test]
fn pictures_belong_to_who_uploaded_them() {
    let server = start(|options| options.keys = Keys::new(["one", "two"]));
    let send = |method: &str, path: &str, key: &str, body: &[u8]| {
        let key = format!("Bearer {key}");
        server.send(method, path, &[("authorization", &key), ("content-type", "image/png")], body)
    };
    let id = send("POST", "/v1/images", "one", PICTURE).json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/images/{id}");
    assert_eq!((send("GET", &path, "one", b"").status, send("GET", &path, "two", b"").status), (200, 404));
    assert_eq!((send("DELETE", &path, "two", b"").status, send("DELETE", &path, "one", b"").status), (404, 200));
}

#[test]
fn names_that_point_here_from_elsewhere_are_refused() {
    let server = start(|options| options.allow_hosts = vec!["labels.example".into()]);
    let port = server.address.port();
    for host in ["evil.example".to_owned(), format!("evil.example:{port}"), "127.0.0.1.evil.example".into()] {
        for path in ["/", "/v1/models", "/livez", "/nothing"] {
            let response = server.send("GET", path, &[("host", &host)], b"");
            assert_eq!(response.error(), (403, "host_not_allowed".into(), "".into()), "{host} {path}");
        }
    }
    for host in [
        "localhost".to_owned(),
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
        "[::1]:1".into(),
        "labels.example".into(),
    ] {
        assert_eq!(server.send("GET", "/v1/models", &[("host", &host)], b"").status, 200, "{host}");
    }
    assert_eq!(server.raw(b"GET /livez HTTP/1.0\r\n\r\n").status, 403, "no host at all");
    assert_eq!(
        server.raw(b"GET http://evil.example/livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").status,
        403
    );
}

#[test]
fn pages_from_elsewhere_may_not_ask() {
    let server = start(|options| options.allow_origins = vec!["https://labels.example".into()]);
    let body = question("What is <region1>?", &json!([{"box": OCTOPUS}])).to_string();
    let ask = |origin: &str| {
        let headers = [("content-type", "application/json"), ("origin", origin)];
        server.send("POST", "/v1/chat/completions", &headers, body.as_bytes())
    };
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        let response = ask(origin);
        assert_eq!(response.error(), (403, "origin_not_allowed".into(), "".into()), "{origin}");
        assert_eq!(response.header("access-control-allow-origin"), None);
    }
    let own = ask(&format!("http://{}", server.address));
    assert_eq!((own.status, own.header("access-control-allow-origin")), (200, None));
    let allowed = ask("https://labels.example");
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://labels.example"));

    let preflight = [("origin", "https://labels.example"), ("access-control-request-method", "POST")];
    let response = server.send("OPTIONS", "/v1/chat/completions", &preflight, b"");
    assert_eq!(response.status, 204);
    let may_send = response.header("access-control-allow-headers").unwrap();
    // The last one comes with `client.chat.completions.stream`.
    for header in ["authorization", "content-type", "x-stainless-retry-count", "x-stainless-helper-method"] {
        assert!(may_send.split(", ").any(|allowed| allowed == header), "{header}: {may_send}");
    }
    assert_eq!(allowed.header("access-control-expose-headers"), Some("retry-after, x-should-retry"));
    let foreign = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
    assert_eq!(server.send("OPTIONS", "/v1/chat/completions", &foreign, b"").status, 403);
}

#[test]
fn nobody_listens_to_a_network_without_a_key() {
    let error = refused(|options| options.host = "0.0.0.0".into());
    assert!(error.contains("API key"), "{error}");
    let open = start(|options| (options.host, options.keys) = ("0.0.0.0".into(), Keys::new(["secret"])));
    assert_eq!(open.send("GET", "/livez", &[("host", "gpt4roi.example")], b"").status, 200, "any name may lead here");
    assert_eq!(open.send("GET", "/v1/models", &[("host", "gpt4roi.example")], b"").status, 401);
    let insecure = start(|options| (options.host, options.insecure_no_auth) = ("0.0.0.0".into(), true));
    assert_eq!(insecure.get("/v1/models").status, 200);
    let taken = refused(|options| options.port = insecure.address.port());
    assert!(taken.contains(&insecure.address.port().to_string()), "{taken}");
}
