//! One process: values, keys, expectations, damage, listings.

use std::fs;
use std::time::Duration;

use oxiflow_plugin_api::{Backend, Capabilities, ErrorKind, Expected};

use super::{file_of, open, store, temporary_files};
use crate::backend::FileBackend;

#[test]
fn values_come_back_after_reopening_and_read_as_they_were_written() {
    let base = tempfile::tempdir().unwrap();
    let version = store(base.path()).put("state/orders", b"{\"n\":1}", Expected::Absent).unwrap();
    let reopened = store(base.path());
    assert_eq!(reopened.get("state/orders").unwrap().unwrap(), (b"{\"n\":1}".to_vec(), version));
    let text = fs::read_to_string(file_of(base.path(), "state/orders")).unwrap();
    assert_eq!(text.lines().next(), Some("{\"n\":1}"));
    assert!(text.ends_with("\"}\n"), "{text}");
}

#[test]
fn any_bytes_up_to_the_limit_are_taken_and_more_is_too_large() {
    let base = tempfile::tempdir().unwrap();
    let store = open(base.path(), r#"{"max_value_bytes": 16777216}"#).unwrap();
    let mut value: Vec<u8> = (0..16 * 1024 * 1024_u32).map(|n| ((n * 31) >> 7) as u8).collect();
    for value in [&b""[..], b"\n", &[0; 4096], &value] {
        store.put("a", value, Expected::Any).unwrap();
        assert!(store.value("a") == value);
    }
    value.push(0);
    let error = store.put("a", &value, Expected::Any).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(store.value("a").len(), 16 * 1024 * 1024);
}

#[test]
fn a_stale_expectation_changes_nothing_and_carries_the_current_version() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    let first = store.put("a", b"1", Expected::Absent).unwrap();
    let second = store.put("a", b"2", Expected::Version(first)).unwrap();
    for expected in [Expected::Absent, Expected::Version(first)] {
        for error in
            [store.put("a", b"3", expected).unwrap_err(), store.delete("a", expected).unwrap_err()]
        {
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert_eq!(error.current(), Some(&second));
        }
    }
    assert_eq!(store.value("a"), b"2");
    assert!(store.delete("a", Expected::Version(second)).unwrap());
    assert!(!store.delete("a", Expected::Any).unwrap());
    assert_eq!(store.get("a").unwrap(), None);
    let error = store.put("a", b"3", Expected::Version(second)).unwrap_err();
    assert_eq!((error.kind(), error.current()), (ErrorKind::Conflict, None));
}

#[test]
fn every_kind_of_key_works_and_stays_inside_the_store() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    let keys = [
        "state",
        "state/",
        "state/.json",
        "a",
        "a/b",
        "a.json",
        "a.json/b",
        "a/",
        "/",
        "//",
        "..",
        "../..",
        "../escape",
        "/etc/passwd",
        ".",
        "\0",
        "\n",
        "%",
        "%2E",
        "%_",
        "%~",
        "é",
        "a~",
        ".a.json.tmp",
        "locks/00",
        "A",
        "a/b.json",
        "a/b.json/c",
    ];
    let long = ["/".repeat(512), "x".repeat(512), "é".repeat(256), "ab/".repeat(170)];
    let mut keys: Vec<&str> = keys.into_iter().chain(long.iter().map(String::as_str)).collect();
    for key in &keys {
        store.put(key, key.as_bytes(), Expected::Absent).unwrap();
    }
    keys.sort_unstable();
    assert_eq!(store.keys("", None, 1000), keys);
    for key in &keys {
        assert_eq!(store.value(key), key.as_bytes());
        let below: Vec<_> = keys.iter().filter(|other| other.starts_with(key)).collect();
        assert_eq!(store.keys(key, None, 1000).iter().collect::<Vec<_>>(), below);
        let after: Vec<_> = keys.iter().filter(|other| other > &key).collect();
        assert_eq!(store.keys("", Some(key), 1000).iter().collect::<Vec<_>>(), after);
    }
    let outside: Vec<_> = fs::read_dir(base.path()).unwrap().collect();
    assert_eq!(outside.len(), 1);
    for key in &keys {
        assert!(store.delete(key, Expected::Any).unwrap());
    }
    assert!(store.keys("", None, 1000).is_empty());
}

#[test]
fn a_listing_is_paged_and_skips_what_is_not_of_the_store() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    let keys: Vec<_> = (0..25).map(|n| format!("backup/orders/b-{n:02}")).collect();
    for key in &keys {
        store.put(key, b"four", Expected::Any).unwrap();
    }
    store.put("backup/other/b-1", b"", Expected::Any).unwrap();
    let folder = file_of(base.path(), &keys[0]).parent().unwrap().to_owned();
    for name in [".b-99.json.tmp", "notes.txt", "b 1.json", "%zz.json"] {
        fs::write(folder.join(name), b"not ours").unwrap();
    }
    let mut seen = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list("backup/orders/", after.as_deref(), 10);
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 10);
        after = Some(last.key.clone());
        for row in page {
            let (_, version) = store.get(&row.key).unwrap().unwrap();
            assert_eq!((row.version, row.size), (version, 4));
            assert!(row.modified.unwrap().elapsed().unwrap() < Duration::from_secs(600));
            seen.push(row.key);
        }
    }
    assert_eq!(seen, keys);
}

#[test]
fn a_damaged_file_is_listed_and_can_be_replaced_or_removed() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    for key in ["state/a", "state/b", "state/c"] {
        store.put(key, b"{}", Expected::Any).unwrap();
    }
    let damage = || fs::write(file_of(base.path(), "state/b"), b"{\"tor").unwrap();
    damage();
    let error = store.get("state/b").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("states/b.json"), "{error}");
    let rows = store.list("state/", None, 10);
    assert_eq!(rows.len(), 3);
    let seen = rows[1].version;
    assert!(seen.to_string().starts_with("corrupt-"));
    let error = store.put("state/b", b"", Expected::Absent).unwrap_err();
    assert_eq!(error.current(), Some(&seen));
    let repaired = store.put("state/b", b"{}", Expected::Version(seen)).unwrap();
    assert_eq!(store.get("state/b").unwrap().unwrap().1, repaired);
    let error = store.delete("state/b", Expected::Version(seen)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    damage();
    store.put("state/b", b"new", Expected::Any).unwrap();
    damage();
    assert!(store.delete("state/b", Expected::Any).unwrap());
    assert_eq!(store.get("state/b").unwrap(), None);
}

#[test]
fn a_call_that_is_late_leaves_nothing_behind() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    store.put("state/a", b"1", Expected::Any).unwrap();
    let error = store.put_within(Duration::ZERO, "state/a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(store.value("state/a"), b"1");
    let folder = file_of(base.path(), "state/a").parent().unwrap().to_owned();
    assert_eq!(temporary_files(&folder), 0);
}

#[test]
fn threads_with_several_handles_lose_no_update() {
    let base = tempfile::tempdir().unwrap();
    let stores: Vec<_> = (0..3).map(|_| store(base.path())).collect();
    stores[0].put("a", b"0", Expected::Absent).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..6 {
            let store = &stores[worker % stores.len()];
            scope.spawn(move || {
                for _ in 0..20 {
                    super::many::increment(store, "a");
                }
            });
        }
    });
    assert_eq!(stores[1].value("a"), b"120");
}

#[test]
fn without_atomic_writes_the_durable_capability_is_off() {
    let base = tempfile::tempdir().unwrap();
    let fast = open(base.path(), r#"{"atomic_writes": false}"#).unwrap();
    let promised = fast.backend.capabilities();
    assert!(!promised.contains(Capabilities::DURABLE));
    assert!(promised.contains(Capabilities::MULTI_PROCESS));
    fast.put("state/a", b"1", Expected::Absent).unwrap();
    let safe = store(base.path());
    assert!(safe.backend.capabilities().contains(FileBackend::CAPABILITIES));
    assert_eq!(safe.value("state/a"), b"1");
}
