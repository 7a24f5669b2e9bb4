//! Injected errors and kills, by `strace`, at the system calls of one write.

use std::process::Command;
use std::{env, fs};

use oxiflow_plugin_api::Expected;

use super::many::run;
use super::{Store, file_of, store};

/// Whether strace can be used here; says so when it cannot.
fn can_inject() -> bool {
    let works = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status()
        .is_ok_and(|status| status.success());
    assert!(works || env::var_os("OXIFLOW_TEST_REQUIRE_ALL").is_none(), "strace cannot be used");
    if !works {
        println!("skipped: strace cannot be used here");
    }
    works
}

/// Runs a role while strace injects `fault`, with `state/a` at `old` before.
fn inject(role: &str, fault: &str) -> (Vec<String>, Store, tempfile::TempDir) {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    store.put("state/a", b"old", Expected::Any).unwrap();
    let inject = format!("inject={fault}");
    let said = run(role, base.path(), &["strace", "-f", "-o", "/dev/null", "-e", &inject]);
    (said, store, base)
}

#[test]
fn an_error_before_the_rename_changes_nothing_and_one_after_it_is_an_unknown_outcome() {
    if !can_inject() {
        return;
    }
    // The syncs of a put: the parent of the folder, the new file, the folder.
    for (role, fault, said, value) in [
        ("put", "fsync:error=EIO:when=1", "unavailable: cannot sync", Some("old")),
        ("put", "fsync:error=EIO:when=2", "unavailable: cannot sync", Some("old")),
        ("put", "fsync:error=ENOSPC:when=2", "no space: cannot sync", Some("old")),
        ("put", "fsync:error=EIO:when=3", "outcome unknown: written", Some("new")),
        ("put", "rename:error=EROFS:when=1", "denied: cannot replace", Some("old")),
        ("put", "rename:error=EIO:when=1", "unavailable: cannot replace", Some("old")),
        ("put", "flock:error=ENOLCK:when=1", "unavailable: cannot lock", Some("old")),
        ("put", "mkdir:error=EACCES:when=2", "denied: cannot create", Some("old")),
        ("delete", "unlink:error=EPERM:when=1", "denied: cannot remove", Some("old")),
        ("delete", "fsync:error=EIO:when=1", "outcome unknown: removed", None),
    ] {
        let (lines, store, base) = inject(role, fault);
        assert!(lines.len() == 1 && lines[0].starts_with(said), "{role} {fault}: {lines:?}");
        assert!(lines[0].contains(".oxiflow/state"), "{lines:?}");
        let found = store.get("state/a").unwrap().map(|(value, _)| value);
        assert_eq!(found.as_deref(), value.map(str::as_bytes), "{role} {fault}");
        let folder = file_of(base.path(), "state/a").parent().unwrap().to_owned();
        let left = fs::read_dir(folder).unwrap().count();
        assert_eq!(left, usize::from(value.is_some()), "{role} {fault}");
    }
}

#[test]
fn a_kill_at_any_system_call_of_a_write_leaves_old_or_new() {
    if !can_inject() {
        return;
    }
    let mut seen = Vec::new();
    for call in ["openat", "write", "fsync", "rename", "flock", "unlink", "mkdir"] {
        for when in 1.. {
            let (lines, store, _base) =
                inject("put", &format!("{call}:signal=SIGKILL:when={when}"));
            let value = store.value("state/a");
            assert!(value == b"old" || value == b"new", "{call} {when}");
            assert!(lines.is_empty() || value == b"new", "{call} {when}: {lines:?}");
            // The next writer is not in the way of what the killed one left.
            store.put("state/a", b"next", Expected::Any).unwrap();
            if !lines.is_empty() {
                break;
            }
            seen.push(value);
        }
    }
    assert!(seen.iter().any(|value| value == b"old") && seen.iter().any(|value| value == b"new"));
}
