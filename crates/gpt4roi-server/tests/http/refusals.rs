use serde_json::{Value, json};

use crate::client::{OCTOPUS, PICTURE, Running, data_url, image_part, question, start};

/// Checks that a request is refused with this status, code and field.
fn check(server: &Running, body: &Value, status: u16, code: &str, param: &str) {
    let error = server.chat(body).error();
    assert_eq!(error, (status, code.into(), param.into()), "{:.300}", body.to_string());
}

#[test]
fn impossible_wishes_are_named() {
    let server = start(|_| {});
    for (field, value, code) in [
        ("n", json!(2), "unsupported_parameter"),
        ("logprobs", json!(true), "unsupported_parameter"),
        ("top_logprobs", json!(3), "unsupported_parameter"),
        ("tools", json!([{"type": "function"}]), "unsupported_parameter"),
        ("logit_bias", json!({"50": 1}), "unsupported_parameter"),
        ("presence_penalty", json!(0.5), "unsupported_parameter"),
        ("response_format", json!({"type": "json_object"}), "unsupported_parameter"),
        ("temperature", json!(-1), "invalid_value"),
        ("temperature", json!(3), "invalid_value"),
        ("temperature", json!("hot"), "invalid_value"),
        ("top_p", json!(0), "invalid_value"),
        ("top_k", json!(-1), "invalid_value"),
        ("max_tokens", json!(0), "invalid_value"),
        ("max_tokens", json!(-1), "invalid_value"),
        ("max_tokens", json!(1.5), "invalid_value"),
        ("max_tokens", json!(1_000_000), "invalid_value"),
        ("max_completion_tokens", json!(1_000_000), "invalid_value"),
        ("seed", json!(1e30), "invalid_value"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "too_many_stops"),
        ("stop", json!(""), "invalid_value"),
        ("choices", json!(["a"]), "invalid_value"),
        ("choices", json!(["a", "a"]), "invalid_value"),
        ("choices", json!("a"), "invalid_value"),
        ("choices", json!(vec!["a"; 1001]), "too_many_choices"),
        ("choices", json!(["a", "b".repeat(16_000)]), "text_too_long"),
        ("stream", json!("yes"), "invalid_value"),
        ("mentions", json!("maybe"), "invalid_value"),
        ("zoom", json!("always"), "invalid_value"),
    ] {
        let mut body = question("?", &Value::Null);
        body[field] = value;
        check(&server, &body, 400, code, field);
    }
    for (field, value) in [("temperature", json!(0.5)), ("stop", json!("a"))] {
        let mut body = question("?", &Value::Null);
        (body["choices"], body[field]) = (json!(["a", "b"]), value);
        check(&server, &body, 400, "unsupported_parameter", field);
    }
    let mut body = question("?", &Value::Null);
    body["model"] = "gpt-4o".into();
    check(&server, &body, 404, "model_not_found", "model");
}

/// Each region is told how probable each choice is.
#[test]
fn many_choices_are_for_few_regions() {
    let server = start(|_| {});
    let describe = |regions: usize, choices: usize| {
        let regions: Vec<Value> = (0..regions).map(|_| json!({"box": OCTOPUS})).collect();
        let choices: Vec<String> = (0..choices).map(|number| number.to_string()).collect();
        let body = json!({"image": data_url(PICTURE), "regions": regions, "choices": choices});
        server.post("/v1/regions/describe", &body)
    };
    assert_eq!(describe(200, 501).error(), (400, "too_many_choices".into(), "choices".into()));
    assert_eq!(describe(2, 501).status, 200);
}

/// Each costs a run of the tower, during which others wait.
#[test]
fn no_question_has_many_regions_looked_at_closely() {
    let server = start(|_| {});
    let ask = |count: usize| {
        let regions: Vec<Value> = (0..count).map(|index| json!({"box": [index, 0, index + 20, 20]})).collect();
        let text: Vec<String> = (1..=count).map(|id| format!("<region{id}>")).collect();
        let mut body = question(&text.join(" "), &json!(regions));
        (body["zoom"], body["max_tokens"]) = ("auto".into(), 1.into());
        body
    };
    assert_eq!(server.chat(&ask(16)).status, 200);
    check(&server, &ask(17), 400, "invalid_value", "zoom");
    let mut many = ask(17);
    many["zoom"] = "off".into();
    assert_eq!(server.chat(&many).status, 200);
    // Large ones cost nothing, and the same small one costs one look, in however many rounds.
    for side in [120, 20] {
        let regions: Vec<Value> =
            (1..=17).map(|id| json!({"id": format!("region{id}"), "box": [0, 0, side, 20]})).collect();
        let mut rounds = ask(1);
        rounds["regions"] = json!(regions);
        rounds["messages"] = json!([]);
        for id in 1..=17 {
            let part = json!({"type": "text", "text": format!("<region{id}>?")});
            let content = if id == 1 { json!([image_part(&Value::Null), part]) } else { json!([part]) };
            let messages = rounds["messages"].as_array_mut().unwrap();
            messages.push(json!({"role": "user", "content": content}));
            if id < 17 {
                messages.push(json!({"role": "assistant", "content": "?"}));
            }
        }
        assert_eq!(server.chat(&rounds).status, 200, "{side}");
    }
}

/// Coordinates are regions too, and each description has those of its question beside its own.
#[test]
fn no_description_has_many_regions_looked_at_closely() {
    let server = start(|_| {});
    let ask = |coordinates: usize, own: i32| {
        let boxes: Vec<String> = (0..coordinates).map(|x| format!("[{x}, 0, {}, 20]", x + 20)).collect();
        let question = format!("Is <region1> beside {}?", boxes.join(" "));
        let regions = json!([{"box": [0, 0, 200, 200]}, {"box": [0, 50, own, 60]}]);
        let body = json!({"image": data_url(PICTURE), "regions": regions, "question": question, "zoom": "auto", "max_tokens": 1});
        server.post("/v1/regions/describe", &body)
    };
    assert_eq!((ask(15, 20).status, ask(16, 200).status), (200, 200));
    for response in [ask(16, 20), ask(17, 200)] {
        assert_eq!(response.error(), (400, "invalid_value".into(), "zoom".into()));
        assert!(response.body.contains("at most 16 small regions, got 17"), "{}", response.body);
    }
}

#[test]
fn regions_that_can_not_be_are_named() {
    let server = start(|_| {});
    let at = "messages[0].content[0].regions[1]";
    for (region, status, code, place) in [
        (json!({"id": "region2", "box": [10, 10, 5, 20]}), 422, "invalid_region", ".box"),
        (json!({"id": "region2", "box": [10, 10, 500, 20]}), 422, "invalid_region", ".box"),
        (json!({"id": "region2", "box": [-1, 10, 50, 20]}), 422, "invalid_region", ".box"),
        (json!({"id": "region2", "bbox": [10, 10, 0, 20]}), 422, "invalid_region", ".bbox"),
        (json!({"id": "region2", "box": [1, 2, 30, 40], "coords": "norm"}), 422, "invalid_region", ".box"),
        (json!({"id": "region2"}), 422, "invalid_region", ""),
        (json!({"id": "region2", "box": [1, 2, 3]}), 400, "invalid_value", ".box"),
        (json!({"id": "region2", "box": [1, 2, 3, null]}), 400, "invalid_value", ".box[3]"),
        (json!({"id": "region2", "box": "1, 2, 3, 4"}), 400, "invalid_value", ".box"),
        (json!({"id": "region1", "box": [1, 2, 3, 4]}), 400, "invalid_value", ".id"),
        (json!({"id": "regionX", "box": [1, 2, 3, 4]}), 400, "invalid_value", ".id"),
        (json!({"box": [1, 2, 3, 4]}), 400, "invalid_value", ".id"),
    ] {
        let body = question("<region1>?", &json!([{"id": "region1", "box": OCTOPUS}, region]));
        check(&server, &body, status, code, &format!("{at}{place}"));
    }
}

#[test]
fn a_mention_of_no_region_is_named_where_it_stands() {
    let server = start(|_| {});
    let regions = json!([{"id": "region1", "box": OCTOPUS}]);
    let body = question("What is <region2>?", &regions);
    check(&server, &body, 400, "unknown_region", "messages[0].content[1].text");
    let parts = json!([image_part(&regions), {"type": "region_ref", "id": "region2"}]);
    let body = json!({"messages": [{"role": "user", "content": parts}]});
    check(&server, &body, 400, "unknown_region", "messages[0].content[1].id");
    let mut body = question("What is <region1>?", &regions);
    let messages = body["messages"].as_array_mut().unwrap();
    messages.extend([
        json!({"role": "assistant", "content": "?"}),
        json!({"role": "user", "content": "And [1, 2, 3000, 4]?"}),
    ]);
    check(&server, &body, 400, "invalid_question", "messages[2].content");
}

#[test]
fn questions_without_an_answer_are_refused() {
    let server = start(|_| {});
    check(&server, &question("  ", &Value::Null), 400, "invalid_question", "");
    check(&server, &question(&"octopus ".repeat(1900), &Value::Null), 400, "context_length_exceeded", "");
    check(&server, &json!({"messages": [{"role": "user", "content": "What is there?"}]}), 400, "image_count", "");
    check(&server, &json!({"messages": []}), 400, "invalid_value", "messages");
    let body = json!({"messages": [{"role": "system", "content": "Be brief."}]});
    check(&server, &body, 400, "unsupported_parameter", "messages[0].role");
}

#[test]
fn bodies_that_are_no_requests_are_refused() {
    let server = start(|_| {});
    let path = "/v1/chat/completions";
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_ignored = format!(r#"{{"messages": [], "x": {deep}}}"#);
    for (body, code) in [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("[]", "invalid_value"),
        ("null", "invalid_value"),
        (r#"{"messages": [], "messages": []}"#, "invalid_value"),
        (r#"{"messages": [{"role": "user", "role": "user", "content": "?"}]}"#, "invalid_value"),
        (r#"{"messages": NaN}"#, "invalid_json"),
        (r#"{"messages": [], "temperature": 1e999}"#, "invalid_json"),
        (r#"{"messages": []} {}"#, "invalid_json"),
        (&deep, "invalid_value"),
        (&deep_ignored, "invalid_value"),
    ] {
        let (status, got, _) = server.post_text(path, body).error();
        assert_eq!((status, got.as_str()), (400, code), "{body:.60}");
    }
    let not_utf8 = server.send("POST", path, &[("content-type", "application/json")], b"{\"messages\": \"\xff\"}");
    assert_eq!(not_utf8.error().0, 400);
    for kind in ["text/plain", "", "application/x-www-form-urlencoded"] {
        let response = server.send("POST", path, &[("content-type", kind)], b"{}");
        assert_eq!(response.error(), (415, "unsupported_media_type".into(), "".into()), "{kind}");
    }
    let fine = server.send("POST", path, &[("content-type", "Application/JSON; charset=utf-8")], b"{");
    assert_eq!(fine.error().1, "invalid_json");
}

#[test]
fn each_limit_has_its_error() {
    let server = start(|options| {
        options.limits.body_bytes = 1 << 20;
        options.limits.picture_bytes = PICTURE.len() - 1;
        options.limits.pixels = 100 * 100;
    });
    let messages = |messages: Value| json!({"messages": messages});
    let user = |content: Value| json!({"role": "user", "content": content});
    let url = data_url(PICTURE);
    let text = json!({"type": "text", "text": "?"});
    let small = data_url(include_bytes!("../../../../docs/example.png").get(..1000).unwrap());
    let image = json!({"type": "image_url", "image_url": {"url": small}});
    for (body, status, code, param) in [
        (messages(json!(vec![user(json!("?")); 300])), 400, "too_many_messages", "messages"),
        (messages(json!([user(json!(vec![text.clone(); 300]))])), 400, "too_many_parts", "messages[0].content"),
        (messages(json!([user(json!(vec![image; 9]))])), 400, "too_many_images", "messages[0].content[8]"),
        (messages(json!([user(json!("x".repeat(16_001)))])), 400, "text_too_long", "messages"),
        (
            messages(json!([user(json!([{"type": "image_url", "image_url": {"url": url}}, text]))])),
            413,
            "image_too_large",
            "messages[0].content[0].image_url.url",
        ),
    ] {
        check(&server, &body, status, code, param);
    }
    let long = server.chat(&messages(json!([user(json!("x".repeat(16_001)))]))).body;
    assert!(long.contains("messages: expected at most 16000 characters, got 16001"), "{long}");
    let many = json!(vec![json!({"box": OCTOPUS}); 101]);
    check(&server, &question("?", &many), 400, "too_many_regions", "messages[0].content[0].regions");
    let described = json!({"image": url, "regions": vec![json!({"box": OCTOPUS}); 1001]});
    let start = start(|_| {});
    assert_eq!(
        start.post("/v1/regions/describe", &described).error(),
        (400, "too_many_regions".into(), "regions".into())
    );

    let uploaded = server.send("POST", "/v1/images", &[("content-type", "image/png")], PICTURE);
    assert_eq!(uploaded.error(), (413, "image_too_large".into(), "body".into()));
    let large = start_with_pixels(100 * 100).send("POST", "/v1/images", &[("content-type", "image/png")], PICTURE);
    assert_eq!(large.error(), (413, "image_too_large".into(), "image".into()));
    assert!(large.body.contains("224×224"), "{}", large.body);
}

fn start_with_pixels(pixels: u64) -> Running {
    start(|options| options.limits.pixels = pixels)
}

#[test]
fn uploads_beyond_the_quota_are_refused_and_not_tried_again() {
    // Room for one picture of 224×224 pixels, three bytes each, and not for two.
    let server = start(|options| options.pictures.max_bytes_per_owner = 200_000);
    let upload = |file: &[u8]| server.send("POST", "/v1/images", &[("content-type", "image/png")], file);
    assert_eq!(upload(PICTURE).status, 200);
    let refused = upload(&[PICTURE, b"another file"].concat());
    assert_eq!(refused.error(), (429, "image_quota_exceeded".into(), "".into()));
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(upload(PICTURE).status, 200, "it is there already");
}

#[test]
fn an_upload_larger_than_the_whole_quota_is_too_large() {
    let server = start(|options| options.pictures.max_bytes_per_owner = 1000);
    let refused = server.send("POST", "/v1/images", &[("content-type", "image/png")], PICTURE);
    assert_eq!(refused.error(), (413, "image_too_large".into(), "image".into()));
}

#[test]
fn descriptions_have_their_own_refusals() {
    let server = start(|_| {});
    let regions = json!([{"box": OCTOPUS}]);
    for (body, status, code, param) in [
        (json!({"regions": regions}), 400, "invalid_value", ""),
        (json!({"image": 7, "regions": regions}), 400, "invalid_value", "image"),
        (json!({"image": "nothing", "regions": regions}), 400, "invalid_value", "image"),
        (json!({"image": data_url(PICTURE), "regions": []}), 400, "invalid_value", "regions"),
        (
            json!({"image": data_url(PICTURE), "regions": [{"box": [1, 2, 3, 4000]}]}),
            422,
            "invalid_region",
            "regions[0].box",
        ),
        (
            json!({"image": data_url(PICTURE), "regions": regions, "question": "What is there?"}),
            400,
            "invalid_value",
            "question",
        ),
        (
            json!({"image": data_url(PICTURE), "regions": regions, "question": "What is <region2>?"}),
            400,
            "unknown_region",
            "question",
        ),
        (
            json!({"image": data_url(PICTURE), "regions": regions, "question": "<region1>?", "detail": "full"}),
            400,
            "invalid_value",
            "question",
        ),
        (json!({"image": data_url(PICTURE), "regions": regions, "detail": "much"}), 400, "invalid_value", "detail"),
        (
            json!({"image": data_url(PICTURE), "regions": regions, "temperature": 9}),
            400,
            "invalid_value",
            "temperature",
        ),
        (json!({"image": data_url(PICTURE), "regions": regions, "model": "x"}), 404, "model_not_found", "model"),
    ] {
        let error = server.post("/v1/regions/describe", &body).error();
        assert_eq!(error, (status, code.into(), param.into()), "{:.300}", body.to_string());
    }
}

#[test]
fn pictures_elsewhere_are_not_fetched() {
    let ask = |server: &Running, url: &str| {
        let content = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]);
        server.chat(&json!({"messages": [{"role": "user", "content": content}]})).error()
    };
    let place = "messages[0].content[0].image_url.url".to_owned();
    let server = start(|_| {});
    assert_eq!(ask(&server, "https://pictures.example/a.png"), (400, "image_fetch_disabled".into(), place.clone()));
    assert_eq!(ask(&server, "file:///etc/passwd"), (400, "invalid_value".into(), place.clone()));
    let fetching = start(|options| options.fetch_images = true);
    for url in [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest",
        "http://[::1]/",
        "http://2130706433/",
        "http://localhost/",
    ] {
        assert_eq!(ask(&fetching, url), (400, "image_fetch_failed".into(), place.clone()), "{url}");
    }
}
