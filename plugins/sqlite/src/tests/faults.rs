//! Injected errors and kills, by `strace`, at the system calls of one write.
//!
//! The write is made by the test [`child`] in a process of its own, in the folder that
//! `OXIFLOW_SQLITE_TEST_BASE` names.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use oxiflow_plugin_api::{Backend, BackendError, Call, ErrorKind, Expected};

use super::{SqliteBackend, file_of, get, put, store};

const BASE: &str = "OXIFLOW_SQLITE_TEST_BASE";
const HOG: &str = "OXIFLOW_SQLITE_TEST_HOG";

/// Not a test of its own: opens the store and writes, once or for ever.
#[test]
fn child() {
    let Some(base) = env::var_os(BASE) else { return };
    let store = store(Path::new(&base));
    if env::var_os(HOG).is_some() {
        for number in 0_u64.. {
            put(&store, &hog(std::process::id()), &number.to_ne_bytes()).unwrap();
            if number == 0 {
                println!("\n> started");
            }
        }
    }
    let answer = match put(&store, "a", b"new") {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{}: {error}", error.kind()),
    };
    println!("\n> {answer}");
    // Closing would bring the log into the database, which is not the write.
    std::process::exit(0);
}

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

/// Makes a write while strace injects `fault` into calls about the log, with `a` at `old` before.
/// Gives what the writer said, and the store.
fn inject(fault: &str) -> (Option<String>, SqliteBackend, tempfile::TempDir) {
    let base = tempfile::tempdir().unwrap();
    let holder = store(base.path());
    put(&holder, "a", b"old").unwrap();
    let log = base.path().canonicalize().unwrap().join(".oxiflow/state.db-wal");
    let output = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e"])
        .arg(format!("inject={fault}"))
        .arg("-P")
        .arg(log)
        .arg(env::current_exe().unwrap())
        .args(["--exact", "tests::faults::child", "--nocapture"])
        .env(BASE, base.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = text.lines().find_map(|line| line.strip_prefix("> ")).map(str::to_owned);
    (said, holder, base)
}

#[test]
fn an_error_before_the_sync_changes_nothing_and_one_of_the_sync_is_an_unknown_outcome() {
    if !can_inject() {
        return;
    }
    for (fault, said, values) in [
        ("pwrite64:error=ENOSPC:when=1", "no space: cannot", &["old"][..]),
        ("pwrite64:error=ENOSPC:when=2", "no space: cannot", &["old"]),
        ("pwrite64:error=EIO:when=2", "outcome unknown: may have failed to commit", &["old"]),
        ("fsync:error=EIO:when=1", "outcome unknown: may have failed to commit", &["old", "new"]),
    ] {
        let (answer, store, base) = inject(fault);
        let answer = answer.unwrap_or_default();
        assert!(answer.starts_with(said) && answer.contains("state.db"), "{fault}: {answer}");
        let value = String::from_utf8(get(&store, "a").unwrap().unwrap()).unwrap();
        assert!(values.contains(&value.as_str()), "{fault}: {value}");
        // The store goes on, and nothing of the failed write comes back later.
        put(&store, "a", b"next").unwrap();
        drop(store);
        assert_eq!(get(&super::store(base.path()), "a").unwrap().unwrap(), b"next");
    }
}

#[test]
fn an_acknowledged_write_was_synced() {
    if !can_inject() {
        return;
    }
    // A sync that never returns: the writer is killed in it, and has said nothing.
    let (answer, _store, _base) = inject("fsync:signal=SIGKILL:when=1");
    assert_eq!(answer, None);
    let (answer, store, _base) = inject("fsync:signal=SIGKILL:when=9");
    assert_eq!(answer.as_deref(), Some("ok"));
    assert_eq!(get(&store, "a").unwrap().unwrap(), b"new");
}

#[test]
fn a_kill_at_any_system_call_of_a_write_leaves_old_or_new() {
    if !can_inject() {
        return;
    }
    let mut kills = 0;
    for call in ["openat", "pwrite64", "fsync", "pread64"] {
        for when in 1.. {
            let (answer, store, base) = inject(&format!("{call}:signal=SIGKILL:when={when}"));
            let value = get(&store, "a").unwrap().unwrap();
            assert!(value == b"old" || value == b"new", "{call} {when}");
            assert!(answer.is_none() || value == b"new", "{call} {when}: {answer:?}");
            // The next writer is not in the way of what the killed one left.
            put(&store, "a", b"next").unwrap();
            drop(store);
            let store = super::store(base.path());
            assert_eq!(get(&store, "a").unwrap().unwrap(), b"next", "{call} {when}");
            if answer.is_some() {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills >= 4, "only {kills} kills");
}

/// The key under which a process that writes for ever counts its writes.
fn hog(pid: u32) -> String {
    format!("hog-{pid}")
}

#[test]
fn processes_that_write_without_pause_starve_nobody() {
    // In memory, so that the disk's speed and other users do not matter.
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { env::temp_dir() };
    let base = tempfile::tempdir_in(place).unwrap();
    let store = store(base.path());
    let mut hogs: Vec<_> = (0..4)
        .map(|_| {
            let mut hog = Command::new(env::current_exe().unwrap())
                .args(["--exact", "tests::faults::child", "--nocapture"])
                .env(BASE, base.path())
                .env(HOG, "1")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let output = BufReader::new(hog.stdout.take().unwrap());
            output.lines().find(|line| line.as_deref().unwrap() == "> started").unwrap().unwrap();
            hog
        })
        .collect();
    let written = || -> Result<u64, BackendError> {
        let counts = hogs.iter().map(|process| get(&store, &hog(process.id())));
        counts.map(|count| Ok(u64::from_ne_bytes(count?.unwrap().try_into().unwrap()))).sum()
    };
    // How many writes of others one write of ours waited for.
    let overtaken: Result<Vec<u64>, BackendError> = (0..100)
        .map(|_| {
            // Time for the others to be well under way.
            thread::sleep(Duration::from_millis(2));
            let before = written()?;
            put(&store, "a", b"x")?;
            Ok(written()? - before)
        })
        .collect();
    for hog in &mut hogs {
        hog.kill().unwrap();
        hog.wait().unwrap();
    }
    let mut overtaken = overtaken.unwrap();
    overtaken.sort_unstable();
    println!("overtaken {overtaken:?} times");
    // All have the same chance, so that many in a row do not happen, but for the few times that this
    // process has to wait for a processor.
    assert!(overtaken[90] < 200, "overtaken {overtaken:?} times");
}

#[test]
fn a_file_that_may_not_be_written_is_denied() {
    // Root may write to everything but what is on a read-only file system.
    let base = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "none"])
        .arg(base.path())
        .status()
        .is_ok_and(|status| status.success());
    assert!(mounted || env::var_os("OXIFLOW_TEST_REQUIRE_ALL").is_none(), "cannot mount");
    if !mounted {
        println!("skipped: cannot mount a file system");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        put(&store(base.path()), "a", b"old").unwrap();
        let remount = |how: &str| {
            let status = Command::new("mount").args(["-o", how]).arg(base.path()).status();
            assert!(status.unwrap().success());
        };
        remount("remount,ro");
        let error = super::open(base.path(), "{}").err().expect("a refusal");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        remount("remount,rw");
        let store = store(base.path());
        assert!(store.delete(&Call::unbounded(), "a", &Expected::Any).unwrap());
        assert!(fs::metadata(file_of(base.path())).is_ok());
    });
    let unmounted = Command::new("umount").arg("-l").arg(base.path()).status();
    assert!(unmounted.unwrap().success());
    result.unwrap();
}
