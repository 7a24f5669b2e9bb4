//! What the conformance suite does not know of: the file itself, and its log. Injected errors are
//! in `faults`.

mod faults;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, Call, Capabilities, ErrorKind, Expected, Host, LogLevel,
    ValueSink, Version,
};
use rusqlite::Connection;

use crate::backend::SqliteBackend;

fn open(base: &Path, options: &str) -> Result<SqliteBackend, BackendError> {
    let config = BackendConfig::from_json(options.as_bytes())?;
    SqliteBackend::open(&Host::new(base, LogLevel::Trace, |_| {}), &config)
}

/// A store with default options in `<base>/.oxiflow/state.db`.
fn store(base: &Path) -> SqliteBackend {
    open(base, "{}").unwrap()
}

fn file_of(base: &Path) -> PathBuf {
    base.join(".oxiflow/state.db")
}

fn put(store: &SqliteBackend, key: &str, value: &[u8]) -> Result<Version, BackendError> {
    store.put(&Call::unbounded(), key, value, &Expected::Any)
}

fn get(store: &SqliteBackend, key: &str) -> Result<Option<Vec<u8>>, BackendError> {
    let mut found = None;
    let mut emit = |value: &[u8], _: &Version| found = Some(value.to_vec());
    store.get(&Call::unbounded(), key, ValueSink::new(&mut emit))?;
    Ok(found)
}

#[track_caller]
fn refused(base: &Path, kind: ErrorKind, part: &str) {
    let error = open(base, "{}").err().expect("a refusal");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(part), "{error}");
    assert!(error.message().contains("state.db"), "{error}");
}

#[test]
fn files_and_folders_are_for_their_owner_only() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    put(&store, "a", b"1").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&base.path().join(".oxiflow")), 0o700);
    for file in ["state.db", "state.db-wal", "state.db-shm", "state.db-queue"] {
        assert_eq!(mode(&base.path().join(".oxiflow").join(file)), 0o600, "{file}");
    }
}

#[test]
fn the_last_to_close_leaves_the_database_and_the_queue() {
    let base = tempfile::tempdir().unwrap();
    let (first, second) = (store(base.path()), store(base.path()));
    put(&first, "a", b"1").unwrap();
    drop(first);
    assert_eq!(get(&second, "a").unwrap().unwrap(), b"1");
    drop(second);
    let left = fs::read_dir(base.path().join(".oxiflow")).unwrap();
    let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["state.db", "state.db-queue"]);
    assert_eq!(get(&store(base.path()), "a").unwrap().unwrap(), b"1");
}

#[test]
fn a_path_is_a_path_whatever_it_means_to_sqlite() {
    for path in [":memory:", "file:x?mode=memory", "a b/c'd.db"] {
        let base = tempfile::tempdir().unwrap();
        let options = serde_json::json!({ "path": path }).to_string();
        put(&open(base.path(), &options).unwrap(), "a", b"1").unwrap();
        assert!(base.path().join(path).is_file(), "{path}");
        assert_eq!(get(&open(base.path(), &options).unwrap(), "a").unwrap().unwrap(), b"1");
    }
}

#[test]
fn the_database_of_another_application_is_refused_and_left_alone() {
    for tables in
        ["CREATE TABLE record (key)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"]
    {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join(".oxiflow")).unwrap();
        Connection::open(file_of(base.path())).unwrap().execute_batch(tables).unwrap();
        let before = fs::read(file_of(base.path())).unwrap();
        refused(base.path(), ErrorKind::Invalid, "option `path`");
        assert_eq!(fs::read(file_of(base.path())).unwrap(), before, "{tables}");
    }
}

#[test]
fn a_newer_layout_is_refused_and_says_what_to_install() {
    let base = tempfile::tempdir().unwrap();
    drop(store(base.path()));
    Connection::open(file_of(base.path())).unwrap().pragma_update(None, "user_version", 2).unwrap();
    refused(base.path(), ErrorKind::Unsupported, "install a newer sqlite plugin");
}

#[test]
fn a_damaged_file_is_corrupt_and_never_absent() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    for number in 0..200 {
        put(&store, &format!("key-{number}"), &[b'x'; 1000]).unwrap();
    }
    drop(store);
    let whole = fs::read(file_of(base.path())).unwrap();
    // The header.
    let mut bytes = whole.clone();
    bytes[..16].fill(b'?');
    fs::write(file_of(base.path()), &bytes).unwrap();
    refused(base.path(), ErrorKind::Corrupt, "not a database");
    // Everything after the first page, which has the tables.
    let mut bytes = whole;
    bytes[4096..].fill(0xa5);
    fs::write(file_of(base.path()), &bytes).unwrap();
    let store = self::store(base.path());
    assert_eq!(get(&store, "key-7").unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(put(&store, "key-7", b"y").unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_is_in_the_way_of_the_file_is_named() {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir_all(file_of(base.path())).unwrap();
    refused(base.path(), ErrorKind::Invalid, "is not a file");
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("f"), "").unwrap();
    let error = open(base.path(), r#"{"path": "f/x.db"}"#).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.message().contains("`path`") && error.message().contains("/f is not a directory")
    );
}

#[test]
fn a_store_whose_file_was_removed_or_replaced_takes_no_writes() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    put(&store, "a", b"1").unwrap();
    fs::rename(file_of(base.path()), base.path().join("moved")).unwrap();
    assert_eq!(put(&store, "a", b"2").unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(get(&store, "a").unwrap_err().kind(), ErrorKind::Unavailable);
    fs::write(file_of(base.path()), "").unwrap();
    let error = put(&store, "a", b"2").unwrap_err();
    assert!(error.message().contains("was replaced while it was open"), "{error}");
    fs::rename(base.path().join("moved"), file_of(base.path())).unwrap();
    put(&store, "a", b"3").unwrap();
}

#[test]
fn a_file_that_something_else_in_the_process_has_open_is_refused() {
    let base = tempfile::tempdir().unwrap();
    drop(store(base.path()));
    let other = File::open(file_of(base.path())).unwrap();
    refused(base.path(), ErrorKind::Unsupported, "another copy of SQLite");
    drop(other);
    let first = store(base.path());
    // This library's own descriptors are no objection.
    drop((store(base.path()), first));
}

#[test]
fn durability_is_not_promised_without_syncs() {
    let base = tempfile::tempdir().unwrap();
    let normal = open(base.path(), r#"{"synchronous": "normal"}"#).unwrap();
    assert!(!normal.capabilities().contains(Capabilities::DURABLE));
    assert!(normal.capabilities().contains(Capabilities::MULTI_PROCESS));
    assert!(store(base.path()).capabilities().contains(Capabilities::DURABLE));
}

#[test]
fn readers_without_a_pause_do_not_make_the_log_grow_for_ever() {
    let base = tempfile::tempdir().unwrap();
    let writer = store(base.path());
    // Of a value that is there already SQLite writes nothing again.
    let value = |number: u8| vec![number; 4 << 20];
    put(&writer, "big", &value(0)).unwrap();
    let writing = AtomicBool::new(true);
    let longest = std::thread::scope(|scope| {
        scope.spawn(|| {
            let readers = [(); 2].map(|()| Connection::open(file_of(base.path())).unwrap());
            let begin = |reader: &Connection| {
                reader.execute_batch("BEGIN").unwrap();
                let count = "SELECT count(*) FROM record";
                reader.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap();
            };
            begin(&readers[0]);
            for turn in (0..2).cycle() {
                std::thread::sleep(Duration::from_millis(2));
                begin(&readers[1 - turn]);
                // Only now, so that at every moment somebody reads.
                readers[turn].execute_batch("COMMIT").unwrap();
                if !writing.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let log = base.path().join(".oxiflow/state.db-wal");
        let sizes = (1..=60).map(|number| {
            put(&writer, "big", &value(number)).unwrap();
            fs::metadata(&log).unwrap().len()
        });
        let longest = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sizes.max()));
        writing.store(false, Ordering::Relaxed);
        longest.unwrap().unwrap()
    });
    // 240 MiB were written.
    assert!(longest < 100 << 20, "{longest} bytes");
}

#[test]
fn a_reader_does_not_wait_for_a_writer() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    put(&store, "a", b"1").unwrap();
    let mut other = Connection::open(file_of(base.path())).unwrap();
    let writing =
        other.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    writing.execute("DELETE FROM record", []).unwrap();
    assert_eq!(get(&store, "a").unwrap().unwrap(), b"1");
    let started = Instant::now();
    let call = Call::within(Duration::from_millis(100));
    let error = store.put(&call, "a", b"2", &Expected::Any).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    // Much less than the thirty seconds that it has without a deadline.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    writing.rollback().unwrap();
    assert_eq!(get(&store, "a").unwrap().unwrap(), b"1");
}

#[test]
fn health_tells_what_is_known() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    let used = || store.health(&Call::unbounded()).unwrap().used_bytes.unwrap();
    let before = used();
    put(&store, "a", &vec![0; 1 << 20]).unwrap();
    assert!((before + (1 << 20)..before + (2 << 20)).contains(&used()));
    store.delete(&Call::unbounded(), "a", &Expected::Any).unwrap();
    assert!(used() < before + (1 << 16), "space of what was deleted counts as free");
    let health = store.health(&Call::unbounded()).unwrap();
    assert!(health.latency.is_some() && health.free_bytes.is_some());
    assert!(health.server_version.unwrap().starts_with("SQLite 3."));
}
