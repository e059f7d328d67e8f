//! `GET /openapi.json`: the interface, for programs that read interfaces.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};

/// Written by hand, since clients read it more often than it changes; tests hold it against the router and
/// the limits.
const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /openapi.json`
pub(crate) async fn get() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::limits::{MAX_CORNERS, MAX_DESCRIBED, MAX_MESSAGES, MAX_PARTS, MAX_REGIONS, MAX_RUNS, MAX_STOPS};

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn every_route_is_described_and_no_other() {
        let described: BTreeSet<String> = document()["paths"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(described, crate::router::tests::paths().into_iter().collect());
    }

    #[test]
    fn limits_are_those_of_the_program() {
        let document = document();
        for (pointer, limit) in [
            ("/ChatRequest/properties/messages", MAX_MESSAGES),
            ("/ChatRequest/properties/regions", MAX_REGIONS),
            ("/ChatRequest/properties/stop/oneOf/1", MAX_STOPS),
            ("/Message/properties/content/oneOf/1", MAX_PARTS),
            ("/DescribeRequest/properties/regions", MAX_DESCRIBED),
            ("/Region/properties/polygon", MAX_CORNERS),
            ("/Region/properties/mask/oneOf/1/properties/counts/oneOf/1", MAX_RUNS),
        ] {
            let written = document["components"]["schemas"].pointer(pointer).unwrap()["maxItems"].as_u64();
            assert_eq!(written, Some(limit as u64), "{pointer}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(document: &Value, value: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
                    }
                    fields.values().for_each(|value| check(document, value));
                }
                Value::Array(values) => values.iter().for_each(|value| check(document, value)),
                _ => {}
            }
        }
        check(&document(), &document());
    }

    #[test]
    fn examples_are_requests() {
        let document = document();
        let example = |path: &str| {
            let example = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"];
            assert!(example.is_object(), "{path}");
            example.to_string()
        };
        crate::body::tests::from_json::<crate::chat_completions::Request>(&example("/v1/chat/completions")).unwrap();
        crate::body::tests::from_json::<crate::regions_describe::Request>(&example("/v1/regions/describe")).unwrap();
    }
}
