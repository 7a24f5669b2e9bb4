//! The folder itself: leftovers, locks, permissions, and what is there when it is opened.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{Backend, BackendConfig, Call, ErrorKind, Expected};

use super::{file_of, host, open, store, temporary_files};
use crate::backend::FileBackend;
use crate::lock::Locks;

#[test]
fn a_leftover_of_a_killed_writer_is_replaced_and_never_followed() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    store.put("state/a", b"1", Expected::Any).unwrap();
    let folder = file_of(base.path(), "state/a").parent().unwrap().to_owned();
    let leftover = folder.join(".a.json.tmp");
    fs::write(&leftover, b"half a va").unwrap();
    assert_eq!(store.value("state/a"), b"1");
    store.put("state/a", b"2", Expected::Any).unwrap();
    let victim = base.path().join("victim");
    fs::write(&victim, b"untouched").unwrap();
    std::os::unix::fs::symlink(&victim, &leftover).unwrap();
    store.put("state/a", b"3", Expected::Any).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
    assert_eq!(store.value("state/a"), b"3");
    assert_eq!(temporary_files(&folder), 0);
}

#[test]
fn waiting_for_a_lock_ends_at_the_timeout_or_the_deadline_and_names_the_file() {
    let base = tempfile::tempdir().unwrap();
    let quick = open(base.path(), r#"{"lock_timeout": "150ms"}"#).unwrap();
    let store = store(base.path());
    let folder = base.path().join(".oxiflow/state/locks");
    let locks = Locks::new(&folder, Duration::from_secs(1));
    let held = locks.acquire("a", &Call::unbounded()).unwrap();
    // The one that is shorter by far counts.
    for (store, timeout, expected) in [(&quick, 600_000, 150), (&store, 2000, 2000)] {
        let started = Instant::now();
        let error = store.put_within(Duration::from_millis(timeout), "a").unwrap_err();
        let took = started.elapsed();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        let number = crc32fast::hash(b"a") % 64;
        assert!(error.message().contains(&format!("locks/{number:02}.lock")), "{error}");
        assert!(took >= Duration::from_millis(expected - 1) && took < Duration::from_secs(25));
    }
    // Within one handle, threads wait for each other the same way.
    let error = locks.acquire("a", &Call::within(Duration::from_millis(20)));
    assert_eq!(error.err().unwrap().kind(), ErrorKind::Timeout);
    drop(held);
    store.put("a", b"", Expected::Any).unwrap();
}

#[test]
fn a_lock_file_that_was_removed_is_not_trusted() {
    let base = tempfile::tempdir().unwrap();
    let (one, two) = (store(base.path()), store(base.path()));
    one.put("a", b"1", Expected::Any).unwrap();
    let locks = base.path().join(".oxiflow/state/locks");
    fs::remove_dir_all(&locks).unwrap();
    two.put("a", b"2", Expected::Any).unwrap();
    let other = Locks::new(&locks, Duration::from_secs(1));
    let held = other.acquire("a", &Call::unbounded()).unwrap();
    let error = one.put_within(Duration::from_millis(50), "a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    drop(held);
    one.put("a", b"3", Expected::Any).unwrap();
}

#[test]
fn a_folder_removed_under_an_open_store_is_made_again_but_a_store_that_is_gone_is_no_empty_one() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    store.put("backup/a/b", b"1", Expected::Any).unwrap();
    fs::remove_dir_all(base.path().join(".oxiflow/state/backups")).unwrap();
    assert_eq!(store.get("backup/a/b").unwrap(), None);
    store.put("backup/a/b", b"2", Expected::Any).unwrap();
    assert_eq!(store.value("backup/a/b"), b"2");
    fs::remove_dir_all(base.path().join(".oxiflow/state")).unwrap();
    assert_eq!(store.get("backup/a/b").unwrap_err().kind(), ErrorKind::Unavailable);
    let error = store.put("backup/a/b", b"3", Expected::Any).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn health_reports_what_is_used_and_free() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    store.put("state/a", &[7; 1000], Expected::Any).unwrap();
    let health = store.backend.health(&Call::unbounded()).unwrap();
    let size = fs::metadata(file_of(base.path(), "state/a")).unwrap().len();
    assert_eq!(health.used_bytes, Some(size));
    assert!(health.free_bytes.unwrap() > 0 && health.latency.unwrap() > Duration::ZERO);
    assert_eq!(health.server_version, None);
}

#[test]
fn a_state_dir_that_is_a_file_is_refused_by_the_options_name() {
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("file"), b"").unwrap();
    std::os::unix::fs::symlink("nowhere", base.path().join("link")).unwrap();
    for state_dir in ["file", "file/below/it", "link"] {
        let options = format!(r#"{{"state_dir": "{state_dir}"}}"#);
        let error = open(base.path(), &options).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.message().starts_with("option `state_dir`: "), "{error}");
    }
}

#[test]
fn a_folder_others_can_read_is_warned_about() {
    let base = tempfile::tempdir().unwrap();
    let root = base.path().join("shared");
    fs::create_dir(&root).unwrap();
    let warnings = |mode: u32| {
        fs::set_permissions(&root, fs::Permissions::from_mode(mode)).unwrap();
        let lines = Arc::new(Mutex::new(String::new()));
        let sink = Lines(Arc::clone(&lines));
        let config = BackendConfig::from_json(br#"{"state_dir": "shared"}"#).unwrap();
        tracing::subscriber::with_default(sink, || {
            FileBackend::open(&host(base.path()), &config).unwrap();
        });
        let lines = lines.lock().unwrap();
        lines.clone()
    };
    assert_eq!(warnings(0o700), "");
    let text = warnings(0o755);
    assert!(text.contains("shared has mode 0755"), "{text}");
}

/// Collects the messages of warnings.
struct Lines(Arc<Mutex<String>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            self.0.lock().unwrap().push_str(&format!("{value:?}\n"));
        });
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
