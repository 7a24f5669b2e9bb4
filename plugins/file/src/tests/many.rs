//! Several processes on one folder.
//!
//! A test that needs another process starts its own executable with the ignored test
//! [`child`], which does what `OXIFLOW_FILE_TEST` says in the folder `OXIFLOW_FILE_TEST_BASE`.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use oxiflow_plugin_api::{ErrorKind, Expected};

use super::{Store, file_of, open, store};

/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);

const ROLE: &str = "OXIFLOW_FILE_TEST";
const BASE: &str = "OXIFLOW_FILE_TEST_BASE";

/// Adds one to a number by compare-and-swap.
pub(super) fn increment(store: &Store, key: &str) {
    loop {
        let (value, version) = store.get(key).unwrap().unwrap();
        let number: u32 = String::from_utf8(value).unwrap().parse().unwrap();
        let next = (number + 1).to_string();
        match store.put(key, next.as_bytes(), Expected::Version(version)) {
            Ok(_) => return,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
        }
    }
}

fn command(role: &str, base: &Path, wrapper: &[&str]) -> Command {
    let program = env::current_exe().unwrap();
    let mut words: Vec<_> = wrapper.iter().map(std::ffi::OsStr::new).collect();
    words.push(program.as_os_str());
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .args(["--exact", "tests::many::child", "--nocapture"])
        .env(ROLE, role)
        .env(BASE, base)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn spawn(role: &str, base: &Path) -> Child {
    command(role, base, &[]).spawn().unwrap()
}

/// Runs a role to its end, and gives the lines it printed that start with `> `.
pub(super) fn run(role: &str, base: &Path, wrapper: &[&str]) -> Vec<String> {
    let output = command(role, base, wrapper).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| Some(line.split_once("> ")?.1.to_owned())).collect()
}

#[test]
fn child() {
    let Ok(role) = env::var(ROLE) else { return };
    let base = env::var_os(BASE).unwrap();
    let base = Path::new(&base);
    match role.as_str() {
        "increment" => {
            let store = store(base);
            (0..50).for_each(|_| increment(&store, "state/a"));
        }
        "hog" => {
            let store = store(base);
            for count in 0_u64.. {
                store.put("state/a", count.to_string().as_bytes(), Expected::Any).unwrap();
                if count == 0 {
                    println!("> started");
                }
            }
        }
        "modes" => {
            rustix::process::umask(rustix::fs::Mode::empty());
            let store = store(base);
            store.put("backup/a/b", b"1", Expected::Any).unwrap();
        }
        "rewrite" => {
            let store = open(base, r#"{"atomic_writes": false}"#).unwrap();
            for round in 0.. {
                for number in 0..200 {
                    let key = format!("state/{number}");
                    store.put(&key, b"1", Expected::Any).unwrap();
                }
                if round == 0 {
                    println!("> started");
                }
            }
        }
        "put" | "delete" => {
            let store = store(base);
            let result = match role.as_str() {
                "put" => store.put("state/a", b"new", Expected::Any).map(|_| ()),
                _ => store.delete("state/a", Expected::Any).map(|_| ()),
            };
            match result {
                Ok(()) => println!("> ok"),
                Err(error) => println!("> {}: {error}", error.kind()),
            }
        }
        "write" => {
            let store = store(base);
            for number in 0_u64.. {
                let value = number.to_string().repeat(1 + number as usize % 500);
                store.put("state/a", value.as_bytes(), Expected::Any).unwrap();
                println!("> {number}");
            }
        }
        _ => panic!("unknown role {role}"),
    }
}

fn wait_for_start(child: &mut Child) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("> started")));
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn processes_lose_no_update() {
    let base = tempfile::tempdir().unwrap();
    let store = store(base.path());
    store.put("state/a", b"0", Expected::Absent).unwrap();
    let children: Vec<_> = (0..4).map(|_| spawn("increment", base.path())).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(store.value("state/a"), b"200");
}

#[test]
fn a_process_that_writes_without_pause_starves_no_other() {
    let base = tempfile::tempdir().unwrap();
    let mut hog = spawn("hog", base.path());
    wait_for_start(&mut hog);
    let store = store(base.path());
    let written = || {
        let started = Instant::now();
        loop {
            if let Ok(count) = String::from_utf8(store.value("state/a")).unwrap().parse::<u64>() {
                return count;
            }
            assert!(started.elapsed() < PATIENCE, "the other process writes no more");
        }
    };
    // How many of its writes came before each of ours; time would tell of the disk as well.
    let mut overtaken: Vec<u64> = (0..20)
        .map(|_| {
            let before = written();
            store.put("state/a", b"ours", Expected::Any).unwrap();
            written() - before
        })
        .collect();
    end(hog);
    overtaken.sort_unstable();
    // This process may have to wait for a processor now and then, but not every other time.
    assert!(overtaken[10] < 20, "{overtaken:?}");
}

#[test]
fn a_writer_that_was_stopped_in_the_middle_of_a_write_is_named() {
    let base = tempfile::tempdir().unwrap();
    let mut hog = spawn("hog", base.path());
    wait_for_start(&mut hog);
    let pid = hog.id().to_string();
    let signal =
        |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    let store = open(base.path(), r#"{"lock_timeout": "50ms"}"#).unwrap();
    // Most of the time it is in the middle of a write; in between it holds nothing.
    let refused = (0..1000).find_map(|_| {
        signal("-STOP");
        let refused = store.put("state/a", b"2", Expected::Any).err();
        signal("-CONT");
        refused.filter(|error| error.message().contains("stopped"))
    });
    end(hog);
    let refused = refused.unwrap();
    assert_eq!(refused.kind(), ErrorKind::Timeout);
    assert!(refused.message().contains(&format!("now process {pid} (")), "{refused}");
}

#[test]
fn a_listing_misses_no_key_that_is_being_rewritten() {
    // tmpfs gives a renamed name a new place in its folder, so it is the hard case.
    let shared_memory = Path::new("/dev/shm");
    let place = if shared_memory.is_dir() { shared_memory } else { &env::temp_dir() };
    let base = tempfile::tempdir_in(place).unwrap();
    let mut writer = spawn("rewrite", base.path());
    wait_for_start(&mut writer);
    let store = store(base.path());
    let counts: Vec<_> = (0..300).map(|_| store.list("state/", None, 1000).len()).collect();
    end(writer);
    assert!(counts.iter().all(|&count| count == 200), "{counts:?}");
}

#[test]
fn a_killed_writer_leaves_the_last_value_or_the_one_under_way() {
    let base = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let mut child = spawn("write", base.path());
        let mut acknowledged = None;
        let reader = BufReader::new(child.stdout.take().unwrap());
        for line in reader.lines() {
            let Some(number) = line.unwrap().split_once("> ").map(|(_, text)| text.to_owned())
            else {
                continue;
            };
            let number: u64 = number.parse().unwrap();
            acknowledged = Some(number);
            if number == 3 + round * 2 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let acknowledged = acknowledged.unwrap();
        let found = store(base.path()).value("state/a");
        let value = |number: u64| number.to_string().repeat(1 + number as usize % 500).into_bytes();
        assert!([acknowledged, acknowledged + 1].iter().any(|&number| found == value(number)));
    }
    let folder = file_of(base.path(), "state/a").parent().unwrap().to_owned();
    assert!(fs::read_dir(folder).unwrap().count() <= 2);
}

#[test]
fn files_and_folders_are_private_whatever_the_umask() {
    let base = tempfile::tempdir().unwrap();
    run("modes", base.path(), &[]);
    let mode = |path: &str| {
        let metadata = fs::metadata(base.path().join(".oxiflow").join(path)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    let number = crc32fast::hash(b"backup/a/b") % 64;
    for (path, expected) in [
        ("", 0o700),
        ("state", 0o700),
        ("state/locks", 0o700),
        (&format!("state/locks/{number:02}.lock"), 0o600),
        ("state/backups", 0o700),
        ("state/backups/a", 0o700),
        ("state/backups/a/b.json", 0o600),
    ] {
        assert_eq!(mode(path), expected, "{path}");
    }
}
