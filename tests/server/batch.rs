//! Batches: the request as a client sees it, and the plugin over servers that take them, that do not,
//! and that lose answers.

use std::sync::Arc;

use oxide_flow::layer::Retry;
use oxiflow_plugin_api::batch::Results;
use oxiflow_plugin_api::{BackendError, BatchMode, Change, Changed, ErrorKind, Expected, Storage};
use serde_json::{Value, json};

use crate::client::{Answer, ask, get};
use crate::kit::{Project, QUICK, Served, plugin_library};
use crate::plugin::{call, canned_as, open};
use crate::proxy::{Behaviour, Proxy};
use crate::{READ_TOKEN, TOKEN};

const JSON: &str = "Content-Type: application/json";

fn post(at: &str, batch: &Value) -> Answer {
    ask(at, "POST /v1/batch", &[JSON], batch.to_string().as_bytes())
}

/// A project whose backend makes atomic batches.
fn over_sqlite() -> Project {
    Project::new(&QUICK.replace("backend: file", "backend: sqlite"))
}

#[test]
fn each_change_has_its_result_as_the_description_says() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let at = served.address();
    let kept = ask(at, "PUT /v1/store/kept", &[], b"kept").expect(201);
    let tag = kept.header("etag").expect("a tag").trim_matches('"').to_owned();
    let answer = post(
        at,
        &json!({"changes": [
            {"op": "put", "key": "a/b", "value": "b25l", "if_none_match": "*"},
            {"op": "put", "key": "kept", "value": "", "if_none_match": "*"},
            {"op": "put", "key": "a/b", "value": "AAEC/w=="},
            {"op": "delete", "key": "none"},
            {"op": "delete", "key": "none", "if_match": tag},
            {"op": "delete", "key": "kept", "if_match": tag},
        ]}),
    );
    let answer = answer.expect(200).json();
    let results = answer["results"].as_array().expect("results");
    let outcomes: Vec<_> = results.iter().map(|result| &result["outcome"]).collect();
    assert_eq!(outcomes, ["put", "failed", "put", "absent", "failed", "deleted"]);
    assert_eq!((&results[1]["code"], &results[1]["version"]), (&json!("conflict"), &json!(tag)));
    assert_eq!((&results[4]["code"], &results[4]["version"]), (&json!("conflict"), &Value::Null));
    let found = get(at, "/v1/store/a/b").expect(200);
    assert_eq!(found.body, [0, 1, 2, 255]);
    let version = results[2]["version"].as_str().expect("a version");
    assert_eq!(found.header("etag"), Some(format!("\"{version}\"").as_str()));
    get(at, "/v1/store/kept").expect(404);

    let api = get(at, "/v1/openapi.json").expect(200).json();
    let described = &api["paths"]["/v1/batch"]["post"]["responses"]["200"]["content"];
    let mut schema = described["application/json"]["schema"].clone();
    schema["components"] = api["components"].clone();
    assert!(jsonschema::validator_for(&schema).expect("a schema").is_valid(&answer), "{answer}");
    let metrics = String::from_utf8(get(at, "/metrics").expect(200).body).expect("text");
    let line = r#"oxiflow_http_requests_total{route="/v1/batch",method="POST",status="200"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn an_atomic_batch_is_made_wholly_or_refused() {
    let project = over_sqlite();
    let served = Served::start(&project, &[]);
    let at = served.address();
    let mut batch = json!({"atomic": true, "changes": [
        {"op": "put", "key": "a", "value": "", "if_none_match": "*"},
        {"op": "put", "key": "b", "value": "", "if_match": "b25l"},
    ]});
    let refused = post(at, &batch).expect(412).json();
    assert_eq!((&refused["code"], &refused["change"]), (&json!("conflict"), &json!(1)));
    get(at, "/v1/store/a").expect(404);
    batch["changes"][1].as_object_mut().expect("a change").remove("if_match");
    post(at, &batch).expect(200);
    get(at, "/v1/store/b").expect(200);
    // A file for each key cannot be written at once.
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let refused = post(served.address(), &batch).expect(501).json();
    assert_eq!(refused["code"], "unsupported");
    get(served.address(), "/v1/store/a").expect(404);
}

#[test]
fn what_is_no_batch_changes_nothing() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let at = served.address();
    let good = json!({"op": "put", "key": "good", "value": ""});
    let body = json!({"changes": [good]}).to_string();
    // What a page of another site can make a browser send without asking.
    for form in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let form = format!("Content-Type: {form}");
        ask(at, "POST /v1/batch", &[&form], body.as_bytes()).expect(415);
    }
    ask(at, "POST /v1/batch", &[], body.as_bytes()).expect(415);
    ask(at, "POST /v1/batch", &[JSON, "Content-Encoding: gzip"], body.as_bytes()).expect(415);
    ask(at, "POST /v1/batch", &[JSON], b"{").expect(400);
    get(at, "/v1/batch").expect(405);
    for wrong in [
        json!({"op": "delete", "key": ""}),
        json!({"op": "put", "key": "k", "value": "not base64"}),
        json!({"op": "delete", "key": "k", "if_match": "not a version"}),
    ] {
        let refused = post(at, &json!({"changes": [good, wrong]})).expect(400).json();
        assert_eq!((&refused["code"], &refused["change"]), (&json!("invalid"), &json!(1)));
    }
    let many: Vec<_> = (0..=1000).map(|_| &good).collect();
    let refused = post(at, &json!({"changes": many})).expect(413).json();
    assert_eq!(refused["code"], "too-large");
    get(at, "/v1/store/good").expect(404);
}

#[test]
fn a_token_for_reading_makes_no_batch() {
    let tokens = "server: {tokens: {read_env: READ, write_env: WRITE}}\n";
    let project = Project::new(&format!("{QUICK}{tokens}"));
    let served = Served::start_with(&project, &[], &[("READ", READ_TOKEN), ("WRITE", TOKEN)]);
    let batch = json!({"changes": [{"op": "delete", "key": "k"}]}).to_string();
    let with = |headers: &[&str]| {
        let headers = [&[JSON], headers].concat();
        ask(served.address(), "POST /v1/batch", &headers, batch.as_bytes())
    };
    with(&[]).expect(401);
    with(&[&format!("Authorization: Bearer {READ_TOKEN}")]).expect(403);
    with(&[&format!("Authorization: Bearer {TOKEN}")]).expect(200);
}

#[test]
fn the_plugin_keeps_the_clause_of_batches_over_a_backend_that_makes_atomic_ones() {
    let project = over_sqlite();
    let served = Served::start(&project, &[]);
    let library = plugin_library("http");
    let url = format!("url={}", served.url);
    let library = library.to_str().expect("text");
    let arguments = ["plugin", "certify", library, "--quick", "--only", "C15", "--json"];
    let ran = project.run(&[&arguments[..], &["--option", &url]].concat());
    let certificate: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let tests = certificate["data"]["tests"].as_array().expect("tests");
    let passed = tests.iter().filter(|test| test["result"] == "passed").count();
    assert!(passed == tests.len() && passed >= 5, "{certificate:#}");
}

/// `a` and `b` are put, which must be absent, and `c` is deleted.
fn apply(storage: &dyn Storage, mode: BatchMode) -> Result<Results, BackendError> {
    let changes = [
        Change::put("a", b"1", Expected::Absent),
        Change::put("b", b"2", Expected::Absent),
        Change::delete("c", Expected::Any),
    ];
    storage.apply(&call(), &changes, mode)
}

/// Answers of a server.
fn answer(status: &str, document: &str) -> String {
    let length = document.len();
    let form = if status.starts_with('2') { "json" } else { "problem+json" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/{form}\r\nContent-Length: {length}\r\n\r\n\
         {document}"
    )
}

const WRITTEN: &str = "HTTP/1.1 201 Created\r\nETag: \"b25l\"\r\nContent-Length: 0\r\n\r\n";
const GONE: &str = "HTTP/1.1 204 No Content\r\n\r\n";

fn info(more: &str) -> String {
    format!(r#"{{"protocol":"oxiflow-store/1","capabilities":["durable"]{more}}}"#)
}

#[test]
fn a_server_that_takes_no_batches_gets_one_request_for_each_change() {
    let project = Project::new(QUICK);
    let refused = answer("404 Not Found", r#"{"code":"not-found"}"#);
    let limits = r#","batch":{"max_bytes":100000,"max_changes":10}"#;
    // It never did; it says so and has been replaced by an older one since.
    for (more, first) in [("", None), (limits, Some(refused.as_str()))] {
        let answers: Vec<&str> = first.into_iter().chain([WRITTEN, WRITTEN, GONE]).collect();
        let url = canned_as(&info(more), &answers);
        let storage = open(&json!({"url": url}), &project).expect("it opens");
        let results = apply(&*storage, BatchMode::Independent).expect("results");
        assert!(matches!(
            results[..],
            [Ok(Changed::Put(_)), Ok(Changed::Put(_)), Ok(Changed::Deleted)]
        ));
    }
    let url = canned_as(&info(""), &[]);
    let storage = open(&json!({"url": url}), &project).expect("it opens");
    let error = apply(&*storage, BatchMode::Atomic).expect_err("it cannot");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn what_is_too_much_for_one_request_goes_in_several_and_each_change_has_its_result() {
    let project = Project::new(QUICK);
    let two =
        r#"{"results":[{"outcome":"put","version":"b25l"},{"outcome":"put","version":"dHdv"}]}"#;
    let limits = r#","batch":{"max_bytes":100000,"max_changes":2}"#;
    let url = canned_as(&info(limits), &[&answer("200 OK", two), ""]);
    let storage = open(&json!({"url": url}), &project).expect("it opens");
    let results = apply(&*storage, BatchMode::Independent).expect("results");
    assert!(results[..2].iter().all(Result::is_ok), "{results:?}");
    let unknown = results[2].as_ref().expect_err("the connection broke");
    assert_eq!(unknown.kind(), ErrorKind::OutcomeUnknown, "{unknown}");
    let error = apply(&*storage, BatchMode::Atomic).expect_err("it is too much");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");

    // A change that no batch has room for goes by itself, in its turn.
    let one = r#"{"results":[{"outcome":"deleted"}]}"#;
    let limits = r#","batch":{"max_bytes":150,"max_changes":9}"#;
    let url = canned_as(&info(limits), &[WRITTEN, &answer("200 OK", one)]);
    let storage = open(&json!({"url": url}), &project).expect("it opens");
    let changes =
        [Change::put("a", &[b'x'; 1000], Expected::Any), Change::delete("b", Expected::Any)];
    let results = storage.apply(&call(), &changes, BatchMode::Independent).expect("results");
    assert!(matches!(results[..], [Ok(Changed::Put(_)), Ok(Changed::Deleted)]), "{results:?}");
}

#[test]
fn what_cannot_be_known_of_a_batch_is_unknown() {
    let project = Project::new(QUICK);
    let busy = answer("503 Service Unavailable", r#"{"code":"unavailable"}"#);
    let refused = answer("412 Precondition Failed", r#"{"code":"conflict","change":1}"#);
    for (given, kind) in [
        ("", ErrorKind::OutcomeUnknown),
        ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", ErrorKind::OutcomeUnknown),
        (&answer("200 OK", r#"{"results":[]}"#), ErrorKind::OutcomeUnknown),
        (&answer("200 OK", "<html>"), ErrorKind::OutcomeUnknown),
        (&busy, ErrorKind::Unavailable),
        (&refused, ErrorKind::Conflict),
    ] {
        let limits = r#","batch":{"max_bytes":100000,"max_changes":10}"#;
        let url = canned_as(&info(limits), &[given]);
        let storage = open(&json!({"url": url}), &project).expect("it opens");
        let error = apply(&*storage, BatchMode::Atomic).expect_err(given);
        assert_eq!(error.kind(), kind, "{given}: {error}");
        assert_eq!(error.change(), (kind == ErrorKind::Conflict).then_some(1), "{given}");
    }
}

#[test]
fn a_batch_whose_answer_is_lost_is_settled_change_by_change() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let port = served.address().rsplit_once(':').expect("a port").1.parse().expect("a number");
    let proxy = Proxy::to_port(port);
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let storage: Arc<dyn Storage> =
        Arc::from(open(&json!({"url": url}), &project).expect("a store"));
    storage.put(&call(), "c", b"3", &Expected::Absent).expect("a put");
    proxy.behave(Behaviour::LoseReply);
    let results = apply(&Retry::new(Arc::clone(&storage)), BatchMode::Independent);
    let results = results.expect("results");
    assert!(proxy.swallowed() > 0);
    // Whether it was this batch that removed `c`, nobody can tell from its absence alone; it is gone.
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let keys: Vec<_> = storage.list(&call(), "", None, 10).expect("a listing");
    let keys: Vec<_> = keys.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(keys, ["a", "b"]);
}
