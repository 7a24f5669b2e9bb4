//! The example in C++: it is certified like the other backends, with batches; and what the suite
//! does not see of it, since it needs two processes or a store that is full.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use oxide_flow::plugin::{Plugin, Trust};
use oxiflow_plugin_api::{Call, ErrorKind, Expected, MIN_MAX_VALUE_BYTES, Storage};
use serde_json::Map;
use tempfile::TempDir;

use crate::{backends, clauses, kit};

/// The smallest map, in bytes.
const SMALL: u64 = 128 << 20;

/// How many of the largest values it has no room for.
const TOO_MANY: usize = 10;

/// Whether what the example is made with is there, beside what Rust needs itself.
fn can_build() -> bool {
    let headers = ["lmdb.h", "nlohmann/json.hpp"];
    headers.into_iter().all(|header| {
        let found = Command::new("g++")
            .args(["-x", "c++", "-fsyntax-only", "-include", header, "/dev/null"])
            .stderr(Stdio::null())
            .status();
        found.is_ok_and(|status| status.success())
    })
}

/// The library, built once by the example's own Makefile; `None` where that is not possible.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        can_build().then(|| {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example-cpp");
            std::fs::create_dir_all(&folder).expect("a folder");
            backends::make("example-cpp", &folder);
            folder.join("liboxiflow_backend_lmdb.so")
        })
    });
    if library.is_none() {
        kit::skipped("g++, liblmdb-dev and nlohmann-json3-dev are not all installed");
    }
    library.as_deref()
}

/// Opens the store in this folder, in a process of its own.
fn open(library: &Path, base: &TempDir, map_size: u64) -> Box<dyn Storage> {
    let plugin = Plugin::load_apart(library, &Trust::default(), Path::new(kit::PROGRAM))
        .expect("the plugin loads");
    let options = Map::from_iter([("map_size".to_owned(), map_size.into())]);
    plugin.open(&options, base.path()).expect("the store opens")
}

fn soon() -> Call {
    Call::within(kit::PATIENCE)
}

fn large(number: usize) -> Vec<u8> {
    vec![u8::try_from(number).expect("a small number"); MIN_MAX_VALUE_BYTES]
}

#[test]
fn the_example_in_cpp_is_built_by_its_own_makefile_and_certified_with_batches() {
    let Some(library) = library() else { return };
    let certificate = backends::file_is_certified(library, &[], &[]);
    assert_eq!(clauses(&certificate, &["skipped"]).get("C15"), None, "{certificate:#}");
}

#[test]
fn a_full_store_says_so_changes_nothing_and_takes_what_there_is_room_for_again() {
    let Some(library) = library() else { return };
    let base = TempDir::new().expect("a folder");
    let store = open(library, &base, SMALL);
    let keys: Vec<String> = (0..TOO_MANY).map(|number| format!("large/{number}")).collect();
    let put = |number: usize, expected| store.put(&soon(), &keys[number], &large(number), expected);
    let (full, error) = (0..TOO_MANY)
        .find_map(|number| Some((number, put(number, &Expected::Absent).err()?)))
        .expect("the store is full");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.message().contains("`map_size`"), "{error}");
    assert!(full > 4, "{full} values fit into 128 MiB");
    for (number, key) in keys[..full].iter().enumerate() {
        let entry = store.get(&soon(), key).expect("a read").expect("the key is there");
        assert!(entry.value == large(number), "{number}");
    }
    assert_eq!(store.get(&soon(), &keys[full]).expect("a read"), None);
    for key in &keys[..2] {
        assert!(store.delete(&soon(), key, &Expected::Any).expect("a delete"));
    }
    put(full, &Expected::Absent).expect("there is room again");
}

#[test]
fn a_store_that_another_process_has_grown_is_read_and_written() {
    let Some(library) = library() else { return };
    let base = TempDir::new().expect("a folder");
    let small = open(library, &base, SMALL);
    let other = open(library, &base, 8 * SMALL);
    small.put(&soon(), "first", b"small", &Expected::Absent).expect("a write");
    for number in 0..TOO_MANY {
        let key = format!("large/{number}");
        other.put(&soon(), &key, &large(number), &Expected::Absent).expect("a write");
    }
    let last = format!("large/{}", TOO_MANY - 1);
    let entry = small.get(&soon(), &last).expect("a read").expect("the key is there");
    assert!(entry.value == large(TOO_MANY - 1));
    small.put(&soon(), "more", &large(0), &Expected::Absent).expect("a write");
    assert!(other.get(&soon(), "more").expect("a read").is_some());
}

#[test]
fn a_writer_waits_for_one_that_is_stopped_until_its_deadline_and_readers_do_not() {
    let Some(library) = library() else { return };
    let base = TempDir::new().expect("a folder");
    let store = open(library, &base, SMALL);
    let version = store.put(&soon(), "key", b"before", &Expected::Absent).expect("a write");
    let stopped = File::open(base.path().join("lmdb/write.lock")).expect("the lock");
    stopped.lock().expect("it is free");
    let brief = Call::within(Duration::from_millis(100));
    let error = store.put(&brief, "key", b"after", &Expected::Any).expect_err("no turn");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let entry = store.get(&soon(), "key").expect("a read").expect("the key is there");
    assert_eq!((entry.value.as_slice(), entry.version), (&b"before"[..], version));
    stopped.unlock().expect("it was locked");
    store.put(&soon(), "key", b"after", &Expected::Version(version)).expect("a write");
}
