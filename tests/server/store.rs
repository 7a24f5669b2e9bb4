//! The storage interface: RFC 9110 as a client sees it.

use crate::client::{ask, get};
use crate::kit::{Project, QUICK, Served};

#[test]
fn a_value_is_written_read_and_removed() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let at = served.address();
    get(at, "/v1/store/a/b").expect(404);
    let created = ask(at, "PUT /v1/store/a/b", &[], b"one").expect(201);
    let tag = created.header("etag").expect("a tag").to_owned();
    let found = get(at, "/v1/store/a%2Fb").expect(200);
    assert_eq!((found.body.as_slice(), found.header("etag")), (&b"one"[..], Some(tag.as_str())));
    assert_eq!(found.header("cache-control"), Some("no-store"));
    let head = ask(at, "HEAD /v1/store/a/b", &[], b"").expect(200);
    assert_eq!((head.header("content-length"), head.body.len()), (Some("3"), 0));
    assert_eq!(head.header("etag"), Some(tag.as_str()));
    let replaced = ask(at, "PUT /v1/store/a/b", &[], b"two").expect(204);
    assert_ne!(replaced.header("etag"), Some(tag.as_str()));
    ask(at, "DELETE /v1/store/a/b", &[], b"").expect(204);
    ask(at, "DELETE /v1/store/a/b", &[], b"").expect(404);
}

#[test]
fn a_precondition_that_does_not_hold_changes_nothing_and_tells_the_version() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let at = served.address();
    let put = |headers: &[&str], body: &[u8]| ask(at, "PUT /v1/store/k", headers, body);
    let absent = put(&["If-Match: \"b25l\""], b"x").expect(412);
    assert_eq!((absent.header("etag"), &absent.json()["absent"]), (None, &true.into()));
    put(&["If-Match: *"], b"x").expect(412);
    let first = put(&["If-None-Match: *"], b"one").expect(201);
    let first = first.header("etag").expect("a tag").to_owned();
    let conflict = put(&["If-None-Match: *"], b"x").expect(412);
    assert_eq!(conflict.header("etag"), Some(first.as_str()));
    assert_eq!(conflict.json()["code"], "conflict");
    assert_eq!(conflict.header("content-type"), Some("application/problem+json"));
    let second = put(&[&format!("If-Match: {first}")], b"two").expect(204);
    let second = second.header("etag").expect("a tag").to_owned();
    put(&[&format!("If-Match: {first}")], b"x").expect(412);
    put(&[&format!("If-Match: W/{second}")], b"x").expect(412);
    put(&[&format!("If-None-Match: {second}")], b"x").expect(412);
    put(&["If-Match: nonsense"], b"x").expect(400);
    ask(at, "DELETE /v1/store/k", &[&format!("If-Match: {first}")], b"").expect(412);
    assert_eq!(get(at, "/v1/store/k").expect(200).body, b"two");
    // A list, a star and a negative list are more than one compare-and-swap, and work.
    let third = put(&[&format!("If-Match: {first}, {second}")], b"three").expect(204);
    put(&["If-Match: *"], b"four").expect(204);
    let third = third.header("etag").expect("a tag");
    put(&[&format!("If-None-Match: {third}")], b"five").expect(204);
    let now = get(at, "/v1/store/k").expect(200);
    let now = now.header("etag").expect("a tag");
    let condition = format!("If-None-Match: {now}");
    assert!(ask(at, "GET /v1/store/k", &[&condition], b"").expect(304).body.is_empty());
    ask(at, "GET /v1/store/k", &[&format!("If-Match: {first}")], b"").expect(412);
}

#[test]
fn a_value_is_whole_or_refused() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let at = served.address();
    ask(at, "PUT /v1/store/k", &["Content-Range: bytes 0-0/2"], b"x").expect(400);
    ask(at, "PUT /v1/store/k", &["Content-Encoding: gzip"], b"x").expect(415);
    ask(at, "PUT /v1/store/k", &["Oxiflow-Timeout-Ms: soon"], b"x").expect(400);
    let late = ask(at, "PUT /v1/store/k", &["Oxiflow-Timeout-Ms: 0"], b"x");
    assert!([503, 504].contains(&late.status), "{late:?}");
    get(at, "/v1/store/k").expect(404);
}

#[test]
fn keys_are_listed_in_byte_order_and_in_pages() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let at = served.address();
    for key in ["l/b", "l/a%00", "l/a", "m", "~bC_vv70"] {
        ask(at, &format!("PUT /v1/store/{key}"), &[], b"1234").expect(201);
    }
    let page = get(at, "/v1/store?prefix=l/&limit=2").expect(200).json();
    let keys = |page: &serde_json::Value| -> Vec<String> {
        let rows = page["entries"].as_array().expect("rows").iter();
        rows.map(|row| row["key"].as_str().expect("a key").to_owned()).collect()
    };
    assert_eq!(keys(&page), ["l/a", "l/a\0"]);
    assert_eq!((&page["next"], &page["entries"][0]["size"]), (&"l/a\0".into(), &4.into()));
    let tag = get(at, "/v1/store/l/a").expect(200);
    let version = format!("\"{}\"", page["entries"][0]["version"].as_str().expect("a version"));
    assert_eq!(tag.header("etag"), Some(version.as_str()));
    let rest = get(at, "/v1/store?prefix=l/&limit=9&after=l%2Fa%00").expect(200).json();
    assert_eq!(
        (keys(&rest), &rest["next"]),
        (vec!["l/b".to_owned(), "l/\u{fffd}".to_owned()], &serde_json::Value::Null)
    );
    for wrong in ["limit=0", "limit=1001", "limit=x"] {
        get(at, &format!("/v1/store?{wrong}")).expect(400);
    }
}

#[test]
fn damage_is_told_with_what_is_left_and_can_be_replaced() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let at = served.address();
    ask(at, "PUT /v1/store/state/p", &[], b"a whole value").expect(201);
    project.write(".oxiflow/state/states/p.json", "half a val");
    let damaged = get(at, "/v1/store/state/p").expect(500);
    let problem = damaged.json();
    assert_eq!(
        (&problem["code"], &problem["remains"]),
        (&"corrupt".into(), &"aGFsZiBhIHZhbA==".into())
    );
    let condition = format!("If-Match: {}", damaged.header("etag").expect("a tag"));
    ask(at, "PUT /v1/store/state/p", &[&condition], b"repaired").expect(204);
    assert_eq!(get(at, "/v1/store/state/p").expect(200).body, b"repaired");
}
