//! Plugins in processes of their own: what crashes, hangs and kills do to them, and what a pipeline
//! sees of it.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kit::{PROGRAM, Project, QUICK, wait_for};
use oxide_flow::plugin::{GRACE, Plugin};
use oxiflow_plugin_api::conformance::{Settings, Subject, run_all};
use oxiflow_plugin_api::{BackendError, Call, Change, ErrorKind, Expected, Storage};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const ISOLATED: &str = "plugins: {isolation: process}\n";

/// A store of a plugin in a process of its own.
struct Apart {
    plugin: Plugin,
    folder: TempDir,
}

impl Apart {
    fn of(library: &Path) -> Self {
        let plugin = Plugin::load_apart(library, Path::new(PROGRAM)).expect("the plugin loads");
        Self { plugin, folder: TempDir::with_prefix("oxiflow-isolation-").expect("a folder") }
    }

    fn new(backend: &str) -> Self {
        Self::of(&kit::plugin_library(backend))
    }
}

impl Subject for Apart {
    fn open(&self) -> Result<Box<dyn Storage>, BackendError> {
        self.open_with(json!({}))
    }

    fn open_with(&self, options: Value) -> Result<Box<dyn Storage>, BackendError> {
        let options: Map<String, Value> = options.as_object().cloned().unwrap_or_default();
        self.plugin.open(&options, self.folder.path())
    }

    fn config_schema(&self) -> Option<Value> {
        self.plugin.description().config_schema.clone()
    }

    fn worker_command(&self) -> Option<Command> {
        None
    }
}

fn soon() -> Call {
    Call::within(Duration::from_secs(20))
}

/// The processes of plugins that this process is the parent of.
fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after = stat.rsplit(')').next().unwrap_or_default();
            after.split_whitespace().nth(1) == Some(&parent.to_string()) && is_plugin(*pid)
        })
        .collect()
}

fn is_plugin(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).any(|argument| argument == b"host-plugin")
}

fn kill(pid: u32) {
    let sent = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    assert!(sent.expect("kill starts").success());
}

fn conforms(backend: &str) {
    let subject = Apart::new(backend);
    let report = run_all(&subject, &Settings::with_seed(u64::from(std::process::id())));
    println!("{report}");
    assert!(report.is_conforming(), "{report}");
}

#[test]
fn an_isolated_file_backend_conforms() {
    conforms("file");
}

#[test]
fn an_isolated_sqlite_backend_conforms() {
    conforms("sqlite");
}

#[test]
fn an_isolated_memory_backend_conforms() {
    conforms("memory");
}

#[test]
fn a_pipeline_runs_on_an_isolated_backend() {
    let project = Project::new(&format!("{ISOLATED}{QUICK}"));
    project.write("pipelines/p.yaml", "pipeline:\n  - name: one\n    run: 'true'\n");
    project.run(&["run", "p"]).expect(0);
    assert_eq!(project.state("p").expect("a state")["status"], "Completed");
}
