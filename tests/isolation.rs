//! Plugins in processes of their own: what crashes, hangs and kills do to them, and what a pipeline
//! sees of it.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

#[path = "isolation/kills.rs"]
mod kills;
#[path = "isolation/opening.rs"]
mod opening;
#[path = "isolation/secrets.rs"]
mod secrets;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use kit::{PROGRAM, Project, QUICK, is_plugin, plugin_processes as children, wait_for};
use oxide_flow::plugin::{GRACE, Plugin, Trust};
use oxiflow_plugin_api::conformance::{Report, Settings, Subject, run_all};
use oxiflow_plugin_api::{BackendError, Call, ErrorKind, Expected, Storage};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const ISOLATED: &str = "plugins: {isolation: process}\n";

/// A few heartbeats of the runs here.
const BEATS: Duration = Duration::from_millis(250);

/// A store of a plugin in a process of its own.
struct Apart {
    plugin: Plugin,
    folder: TempDir,
}

impl Apart {
    fn of(library: &Path) -> Self {
        Self::started_by(library, Path::new(PROGRAM))
    }

    /// As [`of`](Self::of), by a program that becomes ours.
    fn started_by(library: &Path, program: &Path) -> Self {
        let plugin =
            Plugin::load_apart(library, &Trust::default(), program).expect("the plugin loads");
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

fn kill(pid: u32) {
    let sent = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    assert!(sent.expect("kill starts").success());
}

/// Held by tests that count the processes, threads and descriptors of this one, or time it; the
/// others hold [`beside`].
static TESTS: RwLock<()> = RwLock::new(());

fn alone() -> RwLockWriteGuard<'static, ()> {
    TESTS.write().unwrap_or_else(PoisonError::into_inner)
}

fn beside() -> RwLockReadGuard<'static, ()> {
    TESTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// A plugin in C that does what its keys say.
fn wild(folder: &Path) -> PathBuf {
    compiled(folder, &["-DWILD"])
}

/// The same with these flags, named `wild`.
fn compiled(folder: &Path, flags: &[&str]) -> PathBuf {
    let library = folder.join("liboxiflow_backend_wild.so");
    let built = Command::new("cc")
        .args(["-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC", "-pthread"])
        .args(flags)
        .arg("-DNAME=\"wild\"")
        .arg("-I")
        .arg(kit::repository().join("plugin-api/include"))
        .arg(kit::repository().join("tests/fixtures/plugins/c/backend.c"))
        .arg("-o")
        .arg(&library)
        .status();
    assert!(built.expect("cc starts").success());
    library
}

fn conforms(subject: &Apart) -> Report {
    let report = run_all(subject, &Settings::with_seed(u64::from(std::process::id())));
    println!("{report}");
    assert!(report.is_conforming(), "{report}");
    report
}

#[test]
fn an_isolated_file_backend_conforms() {
    let _beside = beside();
    conforms(&Apart::new("file"));
}

#[test]
fn an_isolated_sqlite_backend_conforms() {
    let _beside = beside();
    let report = conforms(&Apart::new("sqlite"));
    let skipped = report.skips().find(|(outcome, _)| outcome.number == 15);
    assert!(skipped.is_none(), "the batches of the backend are those of its process: {skipped:?}");
}

#[test]
fn an_isolated_backend_in_c_conforms() {
    let _beside = beside();
    let folder = TempDir::new().expect("a folder");
    let made = Command::new("make")
        .args(["--silent", "--directory"])
        .arg(kit::repository().join("plugins/example-c"))
        .arg(format!("OUTPUT={}", folder.path().display()))
        .status();
    assert!(made.expect("make starts").success());
    conforms(&Apart::of(&folder.path().join("liboxiflow_backend_cfolder.so")));
}

#[test]
fn a_plugin_that_ends_its_process_fails_the_call_and_is_started_again() {
    let _alone = alone();
    let folder = TempDir::new().expect("a folder");
    let store = Apart::of(&wild(folder.path())).open().expect("a store");
    for (key, told) in [
        ("segfault", "was ended by signal SIGSEGV"),
        ("abort", "was ended by signal SIGABRT"),
        ("exit", "ended by itself with exit code 7"),
    ] {
        store.put(&soon(), "kept", b"inside", &Expected::Any).expect("a write");
        let error = store.get(&soon(), key).expect_err("the process ends");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.message().contains(told), "{error}");
        // It kept everything in its memory: that it is gone is told, once.
        let lost = store.get(&soon(), "kept").expect_err("the loss is told");
        assert_eq!(lost.kind(), ErrorKind::Internal, "{lost}");
        assert!(lost.message().contains("is gone with it"), "{lost}");
        assert_eq!(store.get(&soon(), "kept").expect("a read"), None);
    }
}

#[test]
fn a_call_that_hangs_is_answered_by_its_deadline_and_ends_the_process() {
    let _alone = alone();
    let folder = TempDir::new().expect("a folder");
    let store = Apart::of(&wild(folder.path())).open().expect("a store");
    let started = Instant::now();
    let hung = store.get(&Call::within(Duration::from_millis(200)), "hang").expect_err("it hangs");
    assert_eq!(hung.kind(), ErrorKind::Timeout);
    assert!(started.elapsed() < GRACE / 2, "{:?}", started.elapsed());
    // Others go on beside it until the grace is over.
    store.put(&soon(), "beside", b"it", &Expected::Absent).expect("a write");
    assert!(store.get(&soon(), "beside").expect("a read").is_some());
    let end = wait_for("the end of the process", || store.get(&soon(), "beside").err());
    assert!(started.elapsed() >= GRACE, "{end} after {:?}", started.elapsed());
    assert!(end.message().contains("did not return"), "{end}");
}

#[test]
fn a_run_goes_on_while_the_process_of_its_backend_is_killed_again_and_again() {
    let _beside = beside();
    let project = Project::new(&format!("{ISOLATED}{QUICK}"));
    let step = format!(
        "i=0; while [ ! -e enough ]; do i=$((i+1)); \
         {PROGRAM} progress --records 1 --last-id $i; sleep 0.02; done; echo $i > count"
    );
    project.write("pipelines/p.yaml", &format!("pipeline:\n  - name: one\n    run: {step:?}\n"));
    let run = project.start_captured(&["run", "p"]);
    let mut killed = Vec::new();
    while killed.len() < 50 {
        let pid = wait_for("a process of the plugin", || {
            children(run.pid()).into_iter().find(|pid| !killed.contains(pid))
        });
        // One that never answers is started ever later, so it gets the time for a few heartbeats.
        let (seen, before) = (Instant::now(), renewed(&project));
        wait_for("calls to have been made", || {
            (seen.elapsed() > BEATS && renewed(&project) != before).then_some(())
        });
        kill(pid);
        killed.push(pid);
    }
    project.write("enough", "");
    let ran = run.finish().expect(0);
    let count: u64 = project.read("count").trim().parse().expect("a number");
    let state = project.state("p").expect("a state");
    assert_eq!(state["status"], "completed", "{}", ran.stderr);
    assert_eq!(state["last_processed_id"], count.to_string(), "{state}");
}

/// When the lease was written last, if it is there.
fn renewed(project: &Project) -> Option<SystemTime> {
    let lease = project.path().join(".oxiflow/state/leases/p.json");
    lease.metadata().ok().map(|file| file.modified().expect("a time"))
}

#[test]
fn the_process_of_a_plugin_ends_with_the_host_however_that_ends() {
    let _beside = beside();
    let project = Project::new(&format!("{ISOLATED}{QUICK}"));
    project.write("pipelines/p.yaml", "pipeline:\n  - name: one\n    run: sleep 60\n");
    let run = project.start(&["run", "p"]);
    let child = wait_for("a process of the plugin", || children(run.pid()).pop());
    // Also one that is stopped.
    let stopped = Command::new("kill").args(["-STOP", &child.to_string()]).status();
    assert!(stopped.expect("kill starts").success());
    run.kill();
    wait_for("the end of the plugin's process", || (!is_plugin(child)).then_some(()));
}

#[test]
fn nothing_grows_over_many_calls_and_many_restarts() {
    let _alone = alone();
    let apart = Apart::new("file");
    let store = apart.open_with(json!({ "atomic_writes": false })).expect("a store");
    let me = std::process::id();
    let count = |what: &str| std::fs::read_dir(what).expect("a folder").count();
    let memory = || {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
    };
    let mut before = None;
    for round in 0..51 {
        for _ in 0..200 {
            store.put(&soon(), "key", &[7; 2048], &Expected::Any).expect("a write");
            store.get(&soon(), "key").expect("a read").expect("a value");
        }
        let [child] = children(me)[..] else { panic!("not one child: {:?}", children(me)) };
        // The first round is there to warm up.
        if round == 0 {
            before = Some((count("/proc/self/fd"), count("/proc/self/task"), memory()));
        }
        kill(child);
        wait_for("the end to be noticed", || {
            let error = store.get(&soon(), "key").err();
            (error.is_some() || children(me) != [child]).then_some(())
        });
        wait_for("the store to be back", || store.get(&soon(), "key").ok());
    }
    let (descriptors, threads, bytes) = before.expect("a first round");
    wait_for("threads and descriptors to be as before", || {
        let now = (count("/proc/self/fd"), count("/proc/self/task"));
        (now.0 <= descriptors && now.1 <= threads).then_some(())
    });
    assert!(memory() < bytes + (8 << 20), "{bytes} bytes before, {} after", memory());
    drop(store);
    drop(apart);
    assert!(children(me).is_empty(), "a process is left");
}

#[test]
fn what_an_operator_looks_at_says_that_the_backend_is_isolated() {
    let _beside = beside();
    let says = |isolation: &str, is_isolated: bool| {
        let project = Project::new(&format!("{isolation}{QUICK}"));
        let run = |arguments: &[&str]| project.run(arguments).expect(0).stdout;
        let own = "file, in a process of its own";
        assert_eq!(run(&["health"]).contains(own), is_isolated);
        assert_eq!(run(&["state", "diagnostics"]).contains(own), is_isolated);
        assert_eq!(run(&["plugin", "list"]).contains("in use, isolated"), is_isolated);
        let json = |arguments: &[&str]| -> Value {
            let printed = run(&[arguments, &["--json"]].concat());
            serde_json::from_str::<Value>(&printed).expect("JSON")["data"].clone()
        };
        assert_eq!(json(&["health"])["isolated"], is_isolated);
        assert_eq!(json(&["state", "diagnostics"])["isolated"], is_isolated);
        let plugins = json(&["plugin", "list"]);
        let rows = plugins.as_array().expect("rows");
        let isolated = rows.iter().filter(|row| row["isolated"] == true);
        let isolated: Vec<&Value> = isolated.map(|row| &row["backend"]).collect();
        assert_eq!(isolated, if is_isolated { vec!["file"] } else { vec![] });
    };
    says("", false);
    says(ISOLATED, true);
}

#[test]
fn another_isolation_than_there_is_is_a_mistake_in_the_file() {
    let _beside = beside();
    let project = Project::new("plugins: {isolation: jail}\n");
    let ran = project.run(&["health"]).expect(2);
    assert!(ran.stderr.contains("`jail` is no isolation"), "{}", ran.stderr);
}
