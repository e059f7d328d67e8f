use serde_json::{Value, json};

use crate::client::{BREAD, OCTOPUS, PICTURE, data_url, image_part, question, start};

fn two() -> Value {
    json!([{"id": "region1", "box": OCTOPUS}, {"id": "region2", "box": BREAD}])
}

#[test]
fn a_question_is_answered_with_its_regions_and_tokens() {
    let server = start(|_| {});
    let response = server.chat(&question("What is <region1>?", &two()));
    assert_eq!(response.status, 200, "{}", response.body);
    let answer = response.json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "gpt4roi-nano");
    let choice = &answer["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["role"]), (&json!("stop"), &json!("assistant")));
    assert_eq!(choice["message"]["content"], "An octopus.");
    let region = json!({"id": "region1", "box": OCTOPUS, "coords": "pixel", "origin": "given"});
    assert_eq!(choice["message"]["regions"][0], region);
    let sure = |name: &str| choice["message"][name].as_f64().unwrap();
    assert!(sure("probability") > 0.5 && sure("probability") < 1.0, "{choice}");
    assert!((sure("mean_log_probability").exp() - sure("probability")).abs() < 1e-9, "{choice}");
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    let details = &usage["prompt_tokens_details"];
    assert_eq!(details["region_tokens"], 1, "the second region was not mentioned");
    let model = server.get("/v1/models/gpt4roi-nano").json();
    assert_eq!(details["image_tokens"], model["image_tokens"]);
    assert!(details["cached_tokens"].as_u64().unwrap() < count("prompt_tokens"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.header("content-type"), Some("application/json"));
}

#[test]
fn regions_are_bound_by_id_in_any_order_and_by_any_number() {
    let server = start(|_| {});
    let swapped = json!([{"id": "region7", "box": BREAD}, {"id": "region3", "box": OCTOPUS}]);
    for (text, expected) in [
        ("What are <region7> and <region3>?", "region7 is a loaf of bread, region3 is an octopus."),
        ("What is <region3>?", "An octopus."),
        ("What is <region7>?", "A loaf of bread."),
    ] {
        let answer = server.chat(&question(text, &swapped)).json();
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        // The model has only ever counted from 1 when it names two regions, so of these the things count.
        let things = |text: &str| ["octopus", "bread"].map(|thing| text.contains(thing));
        assert_eq!(things(content), things(expected), "{text}: {content}");
    }
}

#[test]
fn a_reference_is_a_mention_that_text_can_not_forge() {
    let server = start(|_| {});
    let parts = json!([
        image_part(&two()),
        {"type": "text", "text": "What is "}, {"type": "region_ref", "id": "region2"}, {"type": "text", "text": "?"},
    ]);
    let body = json!({"messages": [{"role": "user", "content": parts}], "mentions": "off"});
    assert_eq!(server.chat(&body).json()["choices"][0]["message"]["content"], "A loaf of bread.");

    let mut body = question("What is <region9>?", &two());
    body["mentions"] = "off".into();
    assert_eq!(server.chat(&body).json()["usage"]["prompt_tokens_details"]["region_tokens"], 0);
}

#[test]
fn every_form_of_a_region_is_understood() {
    let server = start(|_| {});
    let [x1, y1, x2, y2] = OCTOPUS;
    // Columns 8 to 53 of 224 rows, marked in rows 14 to 58: 45 marked rows in each of 46 columns.
    let runs = [8 * 224 + 14].into_iter().chain((0..45).flat_map(|_| [45, 179])).chain([45, 165 + 170 * 224]);
    let mask = json!({"size": [224, 224], "counts": runs.collect::<Vec<_>>()});
    for (region, origin) in [
        (json!({"bbox": [x1, y1, x2 - x1, y2 - y1]}), "given"),
        (json!({"polygon": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}), "polygon"),
        (json!({"mask": mask}), "mask"),
        (json!({"box": [-5, y1, x2, y2], "clip": true}), "given"),
        (json!({"point": [(x1 + x2) / 2.0, (y1 + y2) / 2.0]}), "point"),
    ] {
        let mut body = question("What is <region1>?", &Value::Null);
        body["regions"] = json!([region]);
        let answer = server.chat(&body).json();
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["content"], "An octopus.", "{region}");
        assert_eq!(message["regions"][0]["origin"], origin);
    }
    let answer = server.chat(&question("What is in [8, 14, 54, 59]?", &Value::Null)).json();
    let expected = json!([{"id": "region1", "box": OCTOPUS, "coords": "pixel", "origin": "coordinates"}]);
    assert_eq!(answer["choices"][0]["message"]["regions"], expected);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["region_tokens"], 1);
}

#[test]
fn what_was_said_before_counts() {
    let server = start(|_| {});
    let mut body = question("What is <region1>?", &two());
    let alone = server.chat(&body).json()["usage"]["prompt_tokens"].as_u64().unwrap();
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(json!({"role": "assistant", "content": [{"type": "text", "text": "An octopus."}]}));
    messages.push(json!({"role": "user", "content": "Where is <region2>?"}));
    let answer = server.chat(&body).json();
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > alone + 5);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["region_tokens"], 2);
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.contains("top"), "{content}");
}

#[test]
fn one_of_given_answers_is_chosen() {
    let server = start(|_| {});
    let choices = json!(["A cat.", "An octopus.", "A loaf of bread."]);
    let mut body = question("What is <region1>?", &two());
    body["choices"] = choices.clone();
    let whole = server.chat(&body).json();
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["content"], &whole["choices"][0]["finish_reason"]), (&json!("An octopus."), &json!("stop")));
    assert_eq!(message["regions"][0]["box"], json!(OCTOPUS));
    let scored = message["choices"].as_array().unwrap();
    let texts: Vec<_> = scored.iter().map(|choice| choice["text"].clone()).collect();
    assert_eq!(Value::from(texts), choices);
    let shares: Vec<f64> = scored.iter().map(|choice| choice["probability"].as_f64().unwrap()).collect();
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9 && shares[1] > 0.9, "{shares:?}");
    assert_eq!(message["probability"].as_f64().unwrap(), shares[1]);
    let usage = &whole["usage"];
    assert_eq!((&usage["completion_tokens"], &usage["total_tokens"]), (&json!(0), &usage["prompt_tokens"]));

    body["stream"] = true.into();
    let events = server.chat(&body).events();
    let text: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, ["", "An octopus."]);
    let last = &events.last().unwrap()["choices"][0];
    assert_eq!(
        (last["delta"]["choices"][1]["text"].as_str(), &last["finish_reason"]),
        (Some("An octopus."), &json!("stop"))
    );

    let body = json!({"image": data_url(PICTURE), "regions": two(), "choices": choices});
    let described = server.post("/v1/regions/describe", &body).json();
    let lines = described["data"].as_array().unwrap();
    let texts: Vec<_> = lines.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["An octopus.", "A loaf of bread."]);
    assert!(lines.iter().all(|line| line["status"] == "done" && line["probability"].as_f64().unwrap() > 0.9));
    assert_eq!((&lines[1]["choices"][2]["text"], &lines[0]["coords"]), (&choices[2], &json!("pixel")));
}

#[test]
fn a_stream_says_the_same_in_pieces() {
    let server = start(|_| {});
    let mut body = question("Describe <region1> in detail.", &two());
    let whole = server.chat(&body).json();
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let response = server.chat(&body);
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/event-stream")));
    let events = response.events();
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"]));
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));

    let (usage, pieces) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    let (last, words) = pieces.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    let (delta, message) = (&last["choices"][0]["delta"], &whole["choices"][0]["message"]);
    assert_eq!(delta["regions"], message["regions"]);
    assert!((delta["probability"].as_f64().unwrap() - message["probability"].as_f64().unwrap()).abs() < 1e-4);
    let text: String = words.iter().map(|event| event["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert!(words.len() > 5, "it comes in pieces");

    body["stream_options"] = Value::Null;
    assert!(server.chat(&body).events().iter().all(|event| event["usage"].is_null()));
}

#[test]
fn answers_end_where_they_are_told_to() {
    let server = start(|_| {});
    let ask = |change: &dyn Fn(&mut Value)| {
        let mut body = question("Describe <region1> in detail.", &two());
        change(&mut body);
        server.chat(&body).json()
    };
    let content = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let whole = content(&ask(&|_| {}));
    let first = whole.split('.').next().unwrap().to_owned();

    let stopped = ask(&|body| body["stop"] = ".".into());
    assert_eq!((content(&stopped), &stopped["choices"][0]["finish_reason"]), (first.clone(), &json!("stop")));
    let tokens = |answer: &Value| answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((1..tokens(&ask(&|_| {}))).contains(&tokens(&stopped)), "{stopped}");
    assert!((0.5..1.0).contains(&stopped["choices"][0]["message"]["probability"].as_f64().unwrap()), "{stopped}");
    let mut body = question("Describe <region1> in detail.", &two());
    (body["stop"], body["stream"]) = (json!(["nowhere", "."]), true.into());
    let events = server.chat(&body).events();
    let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, first);

    for limit in ["max_tokens", "max_completion_tokens"] {
        let cut = ask(&|body| body[limit] = 3.into());
        assert_eq!(cut["choices"][0]["finish_reason"], "length");
        assert_eq!(cut["usage"]["completion_tokens"], 3);
        assert!(whole.starts_with(&content(&cut)));
    }
}

#[test]
fn a_seed_repeats_an_answer() {
    let server = start(|_| {});
    let ask = |seed: i64| {
        let mut body = question("What is there?", &Value::Null);
        (body["temperature"], body["top_k"], body["seed"]) = (2.into(), 0.into(), seed.into());
        server.chat(&body).json()["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(ask(-5), ask(-5));
    let answers: std::collections::BTreeSet<String> = (0..6).map(|seed| ask(seed).to_string()).collect();
    assert!(answers.len() > 1, "{answers:?}");
}

#[test]
fn what_clients_send_besides_is_ignored() {
    let server = start(|_| {});
    let mut body = question("What is <region1>?", &two());
    for (field, value) in [
        ("user", json!("somebody")),
        ("store", json!(false)),
        ("n", json!(1)),
        ("logprobs", json!(false)),
        ("presence_penalty", json!(0.0)),
        ("frequency_penalty", json!(0)),
        ("logit_bias", json!({})),
        ("tools", json!([])),
        ("response_format", json!({"type": "text"})),
        ("metadata", json!({"a": [1, {"b": null}]})),
        ("stop", Value::Null),
        ("temperature", Value::Null),
        ("regions", Value::Null),
        ("service_tier", json!("auto")),
        ("seed", Value::Null),
    ] {
        body[field] = value;
    }
    assert_eq!(server.chat(&body).json()["choices"][0]["message"]["content"], "An octopus.");
    body.as_object_mut().unwrap().remove("model");
    assert_eq!(server.chat(&body).status, 200);
}

#[test]
fn a_picture_is_uploaded_once_and_asked_about_often() {
    let server = start(|_| {});
    let uploaded = server.send("POST", "/v1/images", &[("content-type", "image/png")], PICTURE);
    assert_eq!(uploaded.status, 200, "{}", uploaded.body);
    let uploaded = uploaded.json();
    let id = uploaded["id"].as_str().unwrap();
    assert_eq!(
        (&uploaded["object"], &uploaded["width"], &uploaded["height"]),
        (&json!("image"), &json!(224), &json!(224))
    );
    assert_eq!(uploaded["bytes"], 224 * 224 * 3);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let expires = uploaded["expires_at"].as_u64().unwrap();
    assert!((now + 3500..=now + 3700).contains(&expires), "{expires}");

    let again = server.post("/v1/images", &json!({"image": {"url": data_url(PICTURE)}})).json();
    assert_eq!(again["id"], uploaded["id"], "the same file has the same handle");
    for part in [
        json!({"type": "image_ref", "id": id, "regions": two()}),
        json!({"type": "image_url", "image_url": {"url": id}, "regions": two()}),
    ] {
        let content = json!([part, {"type": "text", "text": "What is <region2>?"}]);
        let answer = server.chat(&json!({"messages": [{"role": "user", "content": content}]}));
        assert_eq!(answer.json()["choices"][0]["message"]["content"], "A loaf of bread.", "{}", answer.body);
    }

    let path = format!("/v1/images/{id}");
    assert_eq!(server.get(&path).json()["width"], 224);
    assert_eq!(server.send("DELETE", &path, &[], b"").json(), json!({"id": id, "object": "image", "deleted": true}));
    for method in ["GET", "DELETE"] {
        assert_eq!(server.send(method, &path, &[], b"").error(), (404, "image_not_found".into(), "id".into()));
    }
    let content = json!([{"type": "image_ref", "id": id}, {"type": "text", "text": "?"}]);
    let error = server.chat(&json!({"messages": [{"role": "user", "content": content}]})).error();
    assert_eq!(error, (404, "image_not_found".into(), "messages[0].content[0].id".into()));
}

#[test]
fn many_regions_are_described_at_once() {
    let server = start(|_| {});
    let regions = json!([{"id": "left", "box": OCTOPUS}, {"box": BREAD}, {"point": [0.14, 0.22], "coords": "norm"}]);
    let body = json!({"image": data_url(PICTURE), "regions": regions});
    let answer = server.post("/v1/regions/describe", &body).json();
    let data = answer["data"].as_array().unwrap();
    let texts: Vec<&str> = data.iter().map(|one| one["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["An octopus.", "A loaf of bread.", "An octopus."]);
    assert_eq!(data[0]["box"], json!(OCTOPUS));
    let seen: Vec<_> =
        data.iter().map(|one| (one["index"].as_u64(), &one["id"], &one["status"], &one["origin"])).collect();
    let done = json!("done");
    assert_eq!(seen[0], (Some(0), &json!("left"), &done, &json!("given")));
    assert_eq!(seen[1], (Some(1), &json!("region2"), &done, &json!("given")));
    assert_eq!(seen[2], (Some(2), &json!("region3"), &done, &json!("point")));
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() > 6);
    assert!(data.iter().all(|one| (0.5..1.0).contains(&one["probability"].as_f64().unwrap())), "{answer}");

    let mut asked = body.clone();
    asked["question"] = "Where is <region1>?".into();
    let answer = server.post("/v1/regions/describe", &asked).json();
    assert!(answer["data"][0]["text"].as_str().unwrap().contains("left"), "{answer}");
}

/// A part of the octopus that is small on the tower's grid of 224 pixels.
#[test]
fn small_regions_are_looked_at_closely_where_that_is_wished() {
    let server = start(|_| {});
    let small = json!([{"id": "region1", "box": [18, 22, 44, 50]}]);
    let sure = |zoom: Value| {
        let mut body = question("What is <region1>?", &small);
        body["zoom"] = zoom.clone();
        let chat = server.chat(&body).json()["choices"][0]["message"]["mean_log_probability"].as_f64().unwrap();
        let body = json!({"image": data_url(PICTURE), "regions": small, "zoom": zoom});
        let answer = server.post("/v1/regions/describe", &body).json();
        let described = answer["data"][0]["mean_log_probability"].as_f64().unwrap();
        assert!((chat - described).abs() < 1e-3, "{zoom}: {chat} and {described}");
        chat
    };
    let (unsaid, off, auto) = (sure(Value::Null), sure("off".into()), sure("auto".into()));
    assert!((unsaid - off).abs() < 1e-4 && (off - auto).abs() > 1e-3, "{unsaid}, {off}, {auto}");
}

#[test]
fn descriptions_come_line_by_line() {
    let server = start(|_| {});
    let mut body =
        json!({"image": {"url": data_url(PICTURE)}, "regions": [{"box": OCTOPUS}, {"box": BREAD}], "detail": "full"});
    let json_type = ("content-type", "application/json");
    let accept = ("accept", "application/x-ndjson");
    let by_header = server.send("POST", "/v1/regions/describe", &[json_type, accept], body.to_string().as_bytes());
    body["stream"] = true.into();
    for response in [by_header, server.post("/v1/regions/describe", &body)] {
        assert_eq!((response.status, response.header("content-type")), (200, Some("application/x-ndjson")));
        let lines: Vec<Value> = response.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        let mut indices: Vec<_> = lines[..2].iter().map(|line| line["index"].as_u64().unwrap()).collect();
        indices.sort_unstable();
        assert_eq!(indices, [0, 1]);
        assert!(lines[..2].iter().all(|line| line["status"] == "done" && line["object"] == "region.description"));
        assert_eq!(lines[2]["object"], "region.descriptions.end");
        assert!(lines[2]["usage"]["prompt_tokens"].as_u64().unwrap() > 0);
    }
}

#[test]
fn the_server_tells_about_itself() {
    let server = start(|_| {});
    for path in ["/livez", "/readyz", "/health"] {
        assert_eq!((server.get(path).status, server.get(path).json()), (200, json!({"status": "ok"})), "{path}");
    }
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("gpt4roi-nano")));
    assert_eq!(server.get("/v1/models/gpt4roi-nano").json(), models["data"][0]);
    assert_eq!(server.get("/v1/models/org/name").error(), (404, "model_not_found".into(), "id".into()));

    assert_eq!(server.chat(&question("What is <region1>?", &two())).status, 200);
    let metrics = server.get("/metrics");
    assert_eq!(metrics.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(metrics.body.ends_with("# EOF\n"));
    let route = r#"gpt4roi_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}"#;
    assert_eq!(server.metric(route), 1.0);
    assert!(server.metric("gpt4roi_time_to_first_token_seconds_count") >= 1.0);
    assert!(server.metric("gpt4roi_generation_tokens_total") >= 1.0);
    for name in [
        "num_requests_waiting",
        "num_requests_running",
        "image_cache_misses_total",
        "prefix_cache_hits_total",
        "prompt_tokens_total",
    ] {
        assert!(metrics.body.contains(&format!("\ngpt4roi_{name} ")), "{name}");
    }
}

#[test]
fn routes_and_methods_are_those_of_the_document() {
    let server = start(|_| {});
    let document = server.get("/openapi.json").json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "x");
        let response = server.send("PATCH", &path, &[], b"");
        assert_eq!(response.error().0, 405, "{path}");
        let allowed = response.header("allow").unwrap();
        let mut allowed: Vec<String> = allowed.split(',').map(|method| method.trim().to_lowercase()).collect();
        allowed.retain(|method| method != "head");
        let mut written: Vec<&String> =
            methods.as_object().unwrap().keys().filter(|key| *key != "parameters").collect();
        allowed.sort();
        written.sort();
        assert_eq!(allowed.iter().collect::<Vec<_>>(), written, "{path}");
    }
}

#[test]
fn the_page_is_served_with_a_strict_policy() {
    let server = start(|_| {});
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let tag = page.header("etag").unwrap();
    let again = server.send("GET", "/", &[("if-none-match", tag)], b"");
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    assert_eq!(server.send("HEAD", "/", &[], b"").body, "");

    let without = start(|options| options.page = false);
    assert_eq!(without.get("/").error(), (404, "not_found".into(), "".into()));
}
