//! Processes that are killed one right after the other, and in the middle of a batch.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use oxide_flow::layer::Retry;
use oxiflow_plugin_api::conformance::Subject;
use oxiflow_plugin_api::{
    BackendError, BatchMode, Call, Capabilities, Change, Changed, Entry, ErrorKind, Expected,
    Health, Listed, Storage, Version, batch,
};
use tempfile::TempDir;

use crate::kit::{self, PROGRAM, Project, Running, wait_for};
use crate::{Apart, ISOLATED, beside, children, kill, soon};

/// Counts on after its cursor until the file `enough` is there.
const COUNTING: &str = r#"
pipeline:
  - name: count
    run: |
      n="${OXIFLOW_LAST_PROCESSED_ID:-0}"
      until [ -e enough ]; do
        n=$((n + 1))
        echo "$n" >> counted
        echo "{\"records\":1,\"last_id\":\"$n\"}" >&"$OXIFLOW_PROGRESS_FD"
        sleep 0.01
      done
"#;

/// A project whose plugin's processes are killed as soon as they appear, while the file `deaths`
/// says that any are left to die.
fn doomed(lease_ttl: &str) -> (Project, TempDir) {
    let configuration = kit::quick_with_lease(lease_ttl);
    let project = Project::new(&format!("{ISOLATED}{configuration}"));
    project.write("pipelines/p.yaml", COUNTING);
    let folder = TempDir::new().expect("a folder");
    let lines = format!(
        "left=$(cat deaths 2>/dev/null)\n\
         if [ \"${{left:-0}}\" -gt 0 ]; then\n  \
           echo $((left - 1)) > deaths.next && mv deaths.next deaths\n  \
           kill -KILL $$\n\
         fi\n\
         exec {PROGRAM} \"$@\"\n"
    );
    script(folder.path(), &lines);
    (project, folder)
}

/// A program of these lines for the shell.
fn script(folder: &Path, lines: &str) -> PathBuf {
    let path = folder.join("program");
    std::fs::write(&path, format!("#!/bin/sh\n{lines}")).expect("a script");
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a mode");
    path
}

fn start(project: &Project, program: &TempDir) -> Running {
    let mut command = project.command(["run", "p"]);
    command.env("OXIFLOW_PROGRAM", program.path().join("program"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = Running::from(command.spawn().expect("it starts"));
    wait_for("a checkpoint", || {
        (project.state("p")?["records_processed"].as_u64()? > 0).then_some(())
    });
    run
}

/// Kills the process of a run, and the next so many as they appear.
fn kill_in_a_row(project: &Project, run: &Running, further: u32) {
    project.write("deaths", &further.to_string());
    let child = wait_for("a process of the plugin", || children(run.pid()).pop());
    kill(child);
}

fn counted(project: &Project) -> Vec<u64> {
    project.read("counted").lines().map(|line| line.parse().expect("a number")).collect()
}

/// Fails unless the run is complete and knows of everything that its step counted.
fn assert_complete(project: &Project) {
    let counted = counted(project);
    let state = project.state("p").expect("a state");
    assert_eq!(state["status"], "completed", "{state}");
    assert_eq!(state["last_processed_id"], counted[counted.len() - 1].to_string(), "{state}");
}

#[test]
fn a_run_goes_on_after_a_row_of_kills() {
    let _beside = beside();
    let (project, program) = doomed("60s");
    let run = start(&project, &program);
    kill_in_a_row(&project, &run, 5);
    wait_for("the last of them", || (project.read("deaths").trim() == "0").then_some(()));
    let before = counted(&project).len() as u64;
    wait_for("a later checkpoint", || {
        (project.state("p")?["records_processed"].as_u64()? > before).then_some(())
    });
    project.write("enough", "");
    run.finish().expect(0);
    assert_complete(&project);
    let counted = counted(&project);
    assert!(counted.iter().copied().eq(1..=counted.len() as u64), "the step ran once: {counted:?}");
}

#[test]
fn a_run_whose_processes_are_all_killed_ends_with_its_lease_and_is_resumed() {
    let _beside = beside();
    let (project, program) = doomed("10s");
    let run = start(&project, &program);
    kill_in_a_row(&project, &run, 1_000_000);
    // Nobody tells the step to end: the run does, while it may still hold the lease.
    let ran = run.finish().expect(4);
    assert!(ran.stderr.contains("p: DEGRADED: the store is away"), "{}", ran.stderr);
    assert!(ran.stderr.contains(".oxiflow/spool/p/"), "{}", ran.stderr);
    let last = counted(&project).last().copied();
    project.write("enough", "");
    let again = project.run(&["run", "p"]).expect(0);
    assert!(again.stderr.contains("p: put the spooled state of run"), "{}", again.stderr);
    let state = project.state("p").expect("a state");
    assert_eq!(state["status"], "completed", "{state}");
    // The step may have been ended between what it did and its report of it, and in nothing else.
    let known: u64 =
        state["last_processed_id"].as_str().and_then(|id| id.parse().ok()).expect("id");
    assert!(last == Some(known) || last == Some(known + 1), "{last:?} and {state}");
}

/// A storage that counts the batches whose outcome is unknown: the ones that were made, and the others.
struct Watched {
    inner: Box<dyn Storage>,
    not_made: Arc<AtomicU32>,
    made: Arc<AtomicU32>,
}

impl Storage for Watched {
    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        let results = self.inner.apply(call, changes, mode);
        if results.as_ref().is_err_and(|error| error.kind() == ErrorKind::OutcomeUnknown) {
            let stored = wait_for("the store to be back", || self.get(call, changes[0].key).ok());
            let stored = stored.map(|entry| entry.version);
            let untouched = changes[0].expected.check(stored.as_ref()).is_ok();
            let which = if untouched { &self.not_made } else { &self.made };
            which.fetch_add(1, Ordering::Relaxed);
        }
        results
    }

    fn supports_batch(&self) -> bool {
        self.inner.supports_batch()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        self.inner.get(call, key)
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.inner.put(call, key, value, expected)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        self.inner.delete(call, key, expected)
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        self.inner.list(call, prefix, after, limit)
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        self.inner.health(call)
    }
}

/// A plugin that is killed at its write of the number in the file, which the write after that of the
/// file takes away.
fn dying_at_a_write(folder: &Path, backend: &str) -> (Apart, PathBuf) {
    let (library, armed) = (folder.join("dies_writing.so"), folder.join("armed"));
    let built = Command::new("cc")
        .args(["-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC", "-Wall", "-Werror"])
        .arg(format!("-DARMED=\"{}\"", armed.display()))
        .arg(kit::repository().join("tests/fixtures/faults/dies_writing.c"))
        .arg("-o")
        .arg(&library)
        .status();
    assert!(built.expect("cc starts").success());
    let preload = library.display();
    let program = script(folder, &format!("LD_PRELOAD={preload} exec {PROGRAM} \"$@\"\n"));
    (Apart::started_by(&kit::plugin_library(backend), &program), armed)
}

/// More writes than a batch of the test below takes.
const MOST_WRITES: u32 = 200;

#[test]
fn a_batch_whose_process_is_killed_at_any_write_is_made_once() {
    let _beside = beside();
    let folder = TempDir::new().expect("a folder");
    let (apart, armed) = dying_at_a_write(folder.path(), "sqlite");
    let (not_made, made) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let inner = apart.open().expect("a store");
    assert!(inner.supports_batch(), "the promise crosses the socket");
    let watched = Watched { inner, not_made: Arc::clone(&not_made), made: Arc::clone(&made) };
    let store = Retry::new(Arc::new(watched));
    let keys: Vec<String> = (0..5).map(|number| format!("counter/{number}")).collect();
    let mut versions = vec![Expected::Absent; keys.len()];
    let killed = || not_made.load(Ordering::Relaxed) + made.load(Ordering::Relaxed);
    let mut point = 0;
    while killed() == point {
        point += 1;
        assert!(point < MOST_WRITES, "the process is killed before any batch is made");
        std::fs::write(&armed, point.to_string()).expect("a number");
        let value = format!("{point} {}", "x".repeat(2000));
        let pairs = keys.iter().zip(&versions);
        let changes: Vec<Change<'_>> =
            pairs.map(|(key, version)| Change::put(key, value.as_bytes(), *version)).collect();
        let results = store.apply(&soon(), &changes, BatchMode::Independent).expect("a batch");
        for (version, result) in versions.iter_mut().zip(results) {
            let changed = result.expect("each change is settled");
            let Changed::Put(made) = changed else { panic!("{changed:?}") };
            *version = Expected::Version(made);
        }
        // The version that was told is the one that is there, of what was written last.
        for (key, version) in keys.iter().zip(&versions) {
            let entry = store.get(&soon(), key).expect("a read").expect("a counter");
            assert_eq!(entry.value, value.as_bytes(), "{key}");
            assert_eq!(Expected::Version(entry.version), *version, "{key}");
        }
    }
    let (not_made, made) = (not_made.load(Ordering::Relaxed), made.load(Ordering::Relaxed));
    println!("killed at {not_made} writes before the batch was made, and at {made} after it");
    assert!(not_made > 1 && made > 0, "{not_made} and {made}");
}
