//! The sqlite backend behind the program: other processes that hold its lock, a full disk, and the
//! weather example.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::disk::Small;
use kit::example::{Undisturbed, weather_on};
use kit::{PATIENCE, Project, plugin_library};
use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{Call, ErrorKind, Expected, Storage};
use serde_json::{Map, Value, json};

const CONFIGURATION: &str = "project: {name: test}\nstate: {backend: sqlite}\n";

fn open(folder: &Path, options: &Value) -> Box<dyn Storage> {
    let plugin = Plugin::load(&plugin_library("sqlite")).expect("the plugin loads");
    let options: Map<String, Value> = options.as_object().cloned().unwrap_or_default();
    plugin.open(&options, folder).expect("the store opens")
}

/// Another process that holds the write lock until it is dropped.
struct Holder(Child);

impl Holder {
    /// `None`, said on standard error, when Python has no SQLite.
    fn of(database: &Path) -> Option<Self> {
        let program = "import sqlite3, sys; \
             c = sqlite3.connect(sys.argv[1], isolation_level=None); \
             c.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("it prints");
        let holder = Self(child);
        if line.trim() == "held" {
            return Some(holder);
        }
        kit::skipped("python3 has no sqlite3");
        None
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

#[test]
fn a_lock_held_past_the_deadline_is_a_timeout_and_reads_go_on() {
    let project = Project::new(CONFIGURATION);
    let store = open(project.path(), &json!({ "lock_timeout": "4s" }));
    store.put(&Call::unbounded(), "a", b"1", &Expected::Absent).expect("a write");
    let Some(holder) = Holder::of(&project.path().join(".oxiflow/state.db")) else { return };
    // The deadline of the call, and where there is none, the lock timeout.
    for time in [Some(Duration::from_millis(1500)), None] {
        let call = time.map_or_else(Call::unbounded, Call::within);
        let started = Instant::now();
        let error = store.put(&call, "a", b"2", &Expected::Any).expect_err("a timeout");
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.message().contains("state.db"), "{error}");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(50) && took < PATIENCE / 3, "{took:?}");
        let entry = store.get(&Call::unbounded(), "a").expect("a read").expect("a value");
        assert_eq!(entry.value, b"1");
    }
    drop(holder);
    store.put(&Call::unbounded(), "a", b"2", &Expected::Any).expect("a write");
}

#[test]
fn a_full_disk_is_no_space_and_leaves_the_store_as_it_was() {
    let project = Project::new(CONFIGURATION);
    let Some(disk) = Small::mount(&project.path().join(".oxiflow"), "1m") else { return };
    let store = open(project.path(), &json!({}));
    let call = Call::unbounded();
    let version = store.put(&call, "a", b"old", &Expected::Absent).expect("a write");
    disk.fill();
    // Some of these still fit into what is allocated; then there is no space.
    let mut last = (b"old".to_vec(), version);
    let error = (0..1_000u32)
        .find_map(|number| {
            let value = number.to_string().repeat(10_000).into_bytes();
            match store.put(&call, "a", &value, &Expected::Version(last.1)) {
                Ok(version) => {
                    last = (value, version);
                    None
                }
                Err(error) => Some(error),
            }
        })
        .expect("the disk is full");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let entry = store.get(&call, "a").expect("a read").expect("a value");
    assert_eq!((entry.value, entry.version), last);
    disk.make_room();
    store.put(&call, "a", b"new", &Expected::Version(last.1)).expect("a write");
    drop(store);
    let store = open(project.path(), &json!({}));
    assert_eq!(store.get(&call, "a").expect("a read").expect("a value").value, b"new");
}

#[test]
fn a_store_that_is_not_synced_is_said_to_be_not_durable() {
    let project = Project::new(
        "state: {backend: sqlite, backend_config: {synchronous: normal}, heartbeat_interval: 1s}\n",
    );
    project.write("pipelines/p.yaml", "pipeline: [{name: a, run: \"true\"}]\n");
    let ran = project.run(&["run"]).expect(0);
    assert!(ran.stderr.contains("the `sqlite` backend is not durable as it is configured"));
    project.write("oxiflow.yaml", CONFIGURATION);
    assert!(!project.run(&["run"]).expect(0).stderr.contains("durable"));
}

#[test]
fn the_example_gives_the_expected_output_also_when_it_was_killed() {
    let weather = || weather_on("  backend: sqlite\n");
    let undisturbed = Undisturbed::run(&weather());
    for point in 1..6 {
        undisturbed.kill_and_resume(&weather(), point, 6);
    }
}
