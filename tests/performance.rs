//! What is measured and kept in memory, end to end: `state diagnostics`, `benchmark`,
//! `clear-cache`, `lock`, `health`, and a cache that two processes write behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use chrono::{DateTime, TimeDelta, Utc};
use kit::{Project, QUICK, Ran, Running, plugin_folder, wait_for};
use oxide_flow::app::App;
use oxide_flow::config::{Config, ProjectLocation};
use oxide_flow::model::{PipelineName, PipelineState};
use oxiflow_plugin_api::Expected;
use serde_json::{Value, json};

/// A step that reports until it may end.
const BUSY: &str = r#"
pipeline:
  - name: a
    run: |
      touch ready
      until [ -e go ]; do
        echo '{"records":1}' >&"$OXIFLOW_PROGRESS_FD"
        sleep 0.02
      done
"#;

/// A project whose worker renews often and whose lease lasts however busy the machine is.
fn busy() -> (Project, Running) {
    let project = Project::with_pipeline(BUSY);
    let running = project.start_captured(&["run"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    (project, running)
}

fn data(ran: &Ran, kind: &str) -> Value {
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["kind"], format!("oxide_flow.{kind}/1"));
    document["data"].clone()
}

fn diagnostics(project: &Project) -> Value {
    data(&project.run(&["state", "diagnostics", "--json"]).expect(0), "diagnostics")
}

fn target<'a>(report: &'a Value, figure: &str) -> &'a Value {
    let targets = report["targets"].as_array().unwrap();
    targets.iter().find(|target| target["figure"] == figure).unwrap()
}

/// Runs a command as another person.
fn as_other(project: &Project, arguments: &[&str]) -> Ran {
    Ran::from(project.command(arguments).env("USER", "other").output().unwrap())
}

#[test]
fn diagnostics_of_an_idle_store_say_unknown_where_nothing_was_measured() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    project.run(&["run"]).expect(0);
    let report = diagnostics(&project);
    assert_eq!(report["workers"], json!([]));
    let read = target(&report, "average_read");
    assert!(read["value"].is_number() && read["status"] != "unknown", "it read a lease: {read}");
    for figure in ["average_write", "cache_hit_rate"] {
        let target = target(&report, figure);
        assert_eq!((&target["status"], &target["value"]), (&json!("unknown"), &Value::Null));
    }
    assert_eq!(target(&report, "error_rate")["value"], 0.0);
    assert_eq!(report["growth_bytes_per_day"], Value::Null);
    assert_eq!(report["stored"]["states"]["records"], 1);
    assert_eq!(report["stored"]["leases"]["records"], 1);
    assert_eq!(report["stored"]["backups"], json!({"records": 0, "bytes": 0}));
    assert!(report["used_bytes"].as_u64() > report["stored"]["states"]["bytes"].as_u64());
    assert!(report["free_bytes"].as_u64() > Some(0));

    let text = project.run(&["state", "diagnostics"]).expect(0).stdout;
    assert!(text.contains("Measured by  0 live workers and this command"), "{text}");
    let growth = "Storage growth    unknown: it was first measured less than an hour ago";
    assert!(text.contains(growth), "{text}");
    assert!(!text.contains("CONFLICTS"), "{text}");
    let verbose = project.run(&["state", "diagnostics", "--verbose"]).expect(0).stdout;
    assert!(verbose.contains("CONFLICTS") && verbose.contains("\nfile "), "{verbose}");
}

#[test]
fn diagnostics_tell_how_fast_the_store_grows() {
    let Some(faketime) = kit::faketime() else {
        return kit::skipped("libfaketime is not installed");
    };
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    let text = || project.run(&["state", "diagnostics"]).expect(0).stdout;
    let growth = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("Storage growth")).unwrap();
        line.trim_start_matches("Storage growth").trim().to_owned()
    };
    let never = "unknown: runs and `oxide_flow maintain` measure it, and have not yet";
    assert_eq!(growth(&text()), never);
    // A dry run writes nothing.
    project.run(&["maintain", "--dry-run"]).expect(0);
    assert_eq!(growth(&text()), never);

    let earlier = project
        .command(["maintain"])
        .env("LD_PRELOAD", faketime)
        .env("FAKETIME", "-4d")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .output();
    Ran::from(earlier.unwrap()).expect(0);
    project.run(&["run"]).expect(0);
    for _ in 0..20 {
        project.run(&["state", "backup", "p"]).expect(0);
    }
    let growth = growth(&text());
    assert!(growth.contains(" a day, over the last 4days"), "{growth}");
    let report = diagnostics(&project);
    assert!(report["growth_bytes_per_day"].as_f64() > Some(1000.0), "{report}");
    assert_eq!(report["growth_over_seconds"].as_u64().unwrap() / 3600, 96);
    let checked = project.run(&["state", "verify-integrity"]).expect(0);
    assert!(checked.stdout.contains("usage"), "{}", checked.stdout);
}

#[test]
fn diagnostics_add_up_what_live_workers_left_in_their_leases() {
    let (project, running) = busy();
    let report = wait_for("a worker that wrote", || {
        let report = diagnostics(&project);
        let calls = target(&report, "average_write")["measurements"].as_u64();
        (calls > Some(10)).then_some(report)
    });
    let worker = &report["workers"][0];
    assert_eq!(
        (&worker["pipeline"], report["workers"].as_array().unwrap().len()),
        (&json!("p"), 1)
    );
    assert!(worker["measured_ms"].as_u64() > Some(0));
    assert_ne!(target(&report, "average_write")["status"], "unknown");
    for storage in [&report["logical"], &report["backends"]["file"]] {
        let put = &storage["put"];
        let at = |name: &str| put[name].as_f64().unwrap();
        assert!(0.0 < at("p50_ms") && at("p50_ms") <= at("p95_ms"), "{put}");
        assert!(at("p95_ms") <= at("p99_ms") && at("p99_ms") <= at("max_ms"), "{put}");
        assert!(at("average_ms") <= at("max_ms") && at("bytes_per_second") > 0.0, "{put}");
    }
    assert!(report["serialise"]["calls"].as_u64() > Some(10));
    let lease = std::fs::metadata(project.path().join(".oxiflow/state/leases/p.json")).unwrap();
    assert!(lease.len() < 8192, "the lease has {} bytes", lease.len());
    running.kill();
    assert_eq!(diagnostics(&project)["workers"], json!([]), "a dead worker is not live");
}

#[test]
fn a_request_to_clear_the_cache_reaches_a_running_worker() {
    let (project, running) = busy();
    let asked = data(&project.run(&["state", "clear-cache", "--json"]).expect(0), "clear-cache");
    assert_eq!((&asked[0]["pipeline"], &asked[0]["answer"]), (&json!("p"), &json!("cleared")));
    let lease =
        &data(&project.run(&["worker", "list", "--json"]).expect(0), "worker-list")[0]["lease"];
    assert_eq!(lease["requests"][0]["kind"], "clear_cache");
    assert!(lease["requests"][0]["acknowledged_at"].is_string());
    for _ in 0..12 {
        project.run(&["state", "clear-cache", "p"]).expect(0);
    }
    let lease =
        &data(&project.run(&["worker", "list", "--json"]).expect(0), "worker-list")[0]["lease"];
    assert!(lease["requests"].as_array().unwrap().len() < 12, "old requests are dropped");

    running.suspend();
    let silent = project.run(&["state", "clear-cache", "p", "--wait", "300ms"]).expect(1);
    assert!(silent.stdout.ends_with("of `p` has not answered\n"), "{}", silent.stdout);
    running.signal("-CONT");
    project.write("go", "");
    running.finish().expect(0);
    let nobody = project.run(&["state", "clear-cache"]).expect(0);
    assert!(nobody.stderr.contains("no running workers"), "{}", nobody.stderr);
}

/// The records under `benchmark/`, also while they come and go.
fn benchmark_records(project: &Project) -> usize {
    fn files(folder: &Path) -> usize {
        let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
    }
    files(&project.path().join(".oxiflow/state/other"))
}

#[test]
fn a_benchmark_measures_compares_and_leaves_nothing_behind() {
    let project = Project::new(QUICK);
    let command =
        ["state", "benchmark", "--operations", "50", "--size", "500", "--threads", "3", "--json"];
    let ran = project.run(&command).expect(0);
    assert!(ran.stderr.contains("it is durable"), "{}", ran.stderr);
    let report = data(&ran, "benchmark");
    for operation in ["put", "get", "compare_and_swap"] {
        assert_eq!(report[operation]["calls"], 50, "{operation}");
    }
    assert_eq!((&report["list"]["calls"], &report["durable"]), (&json!(5), &json!(true)));
    assert_eq!(report["targets"][1]["measurements"], 100);
    assert_eq!((&report["records_removed"], benchmark_records(&project)), (&json!(50), 0));

    let lax = Project::new(
        &QUICK.replace("backend: file", "backend: file\n  backend_config: {atomic_writes: false}"),
    );
    let ran = lax.run(&["state", "benchmark", "--operations", "5"]).expect(0);
    assert!(ran.stderr.contains("it is NOT durable"), "{}", ran.stderr);
    project.run(&["state", "benchmark", "--operations", "0"]).expect(2);
}

#[test]
fn an_interrupted_benchmark_removes_what_it_wrote() {
    let project = Project::new(QUICK);
    let running =
        project.start_captured(&["state", "benchmark", "--operations", "1000000", "--json"]);
    wait_for("some records", || (benchmark_records(&project) > 20).then_some(()));
    running.signal("-INT");
    let ran = running.finish().expect(1);
    assert!(ran.stderr.contains("stopped by a signal"), "{}", ran.stderr);
    let report = data(&ran, "benchmark");
    assert_eq!(report["stopped"], true);
    assert_eq!(report["get"]["average_ms"], Value::Null, "what was not measured is not known");
    assert_eq!(benchmark_records(&project), 0);
}

#[test]
fn a_locked_pipeline_is_not_run_until_it_is_unlocked() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    let lock = ["state", "lock", "p", "--reason", "moving the warehouse", "--ttl", "2h"];
    insta::assert_snapshot!(
        project.run(&lock).story(&project), @"
    exit 0
    --- stderr
    locked pipeline `p` until TIME (in 2h); unlock it with `oxide_flow state unlock p`
    ");
    insta::assert_snapshot!(project.run(&["run", "p"]).story(&project), @"
    exit 4
    --- stderr
    error: pipeline `p` is locked by tester@HOST until TIME: moving the warehouse
    hint: wait until it is unlocked, or unlock it with `oxide_flow state unlock p`
    ");
    insta::assert_snapshot!(project.run(&["worker", "list"]).story(&project), @"
    exit 0
    --- stdout
    WORKER  PIPELINE  STATUS  DOES  HOST  PID  EPOCH  RENEWED
    tester@HOST  p  locked  lock: moving the warehouse  -  -  1  AGO
    ");
    let waiting = project.start_captured(&["run", "p", "--wait", "10m"]);
    insta::assert_snapshot!(as_other(&project, &["state", "unlock", "p"]).story(&project), @"
    exit 4
    --- stderr
    pipeline `p` is locked by tester@HOST until TIME: moving the warehouse
    error: it is somebody else's lock; nothing was changed
    hint: ask tester@HOST, or add `--force`
    ");
    project.run(&["run", "p"]).expect(4);
    insta::assert_snapshot!(project.run(&["state", "unlock", "p"]).story(&project), @"
    exit 0
    --- stderr
    pipeline `p` is locked by tester@HOST until TIME: moving the warehouse
    unlocked pipeline `p`
    ");
    waiting.finish().expect(0);
    project.run(&["run", "p"]).expect(0);
}

#[test]
fn a_lock_counts_from_when_it_is_there_and_not_from_when_it_was_asked_for() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    let ran = project
        .run(&["state", "lock", "p", "--reason", "later", "--ttl", "1h", "--json"])
        .expect(0);
    let lock = data(&ran, "lock");
    let workers =
        data(&project.run(&["worker", "list", "--all", "--json"]).expect(0), "worker-list");
    // It is put there under a lease, for which others may have to be waited for.
    let acquired = &workers[0]["lease"]["acquired_at"];
    let at = |time: &Value| time.as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    assert!(at(&lock["locked_at"]) > at(acquired), "{lock}, acquired at {acquired}");
    assert_eq!(at(&lock["expires_at"]) - at(&lock["locked_at"]), TimeDelta::hours(1));
}

#[test]
fn force_takes_another_persons_lock_off() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    as_other(&project, &["state", "lock", "p", "--reason", "mine"]).expect(0);
    project.run(&["state", "lock", "p", "--reason", "no, mine"]).expect(4);
    project.run(&["state", "unlock", "p", "--force"]).expect(0);
    project.run(&["run", "p"]).expect(0);
}

#[test]
fn a_lock_runs_out_by_itself() {
    let Some(faketime) = kit::faketime() else {
        return kit::skipped("libfaketime is not installed");
    };
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    project.run(&["state", "lock", "p", "--reason", "short", "--ttl", "1h"]).expect(0);
    for (later, code) in [("+30m", 4), ("+61m", 0)] {
        let ran = project
            .command(["run", "p"])
            .env("LD_PRELOAD", &faketime)
            .env("FAKETIME", later)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .output();
        Ran::from(ran.unwrap()).expect(code);
    }
}

#[test]
fn a_pipeline_with_a_live_worker_cannot_be_locked() {
    let (project, running) = busy();
    let refused = project.run(&["state", "lock", "p", "--reason", "now"]).expect(4);
    assert!(refused.stderr.contains("is held by worker"), "{}", refused.stderr);
    project.write("go", "");
    running.finish().expect(0);
}

#[test]
fn the_person_who_locked_a_pipeline_maintains_it_under_the_lock_and_others_do_not() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    project.run(&["run", "p"]).expect(0);
    project.run(&["state", "export", "p", "--output", "p.json"]).expect(0);
    project.run(&["state", "lock", "p", "--reason", "repair"]).expect(0);
    let import = ["state", "import", "p", "--file", "p.json", "--yes"];
    as_other(&project, &import).expect(4);
    project.run(&import).expect(0);
    let kept = project.run(&["run", "p"]).expect(4);
    assert!(kept.stderr.contains("repair"), "the lock outlives the import: {}", kept.stderr);
    let shown = data(&project.run(&["state", "show", "p", "--json"]).expect(0), "state");
    assert_eq!(shown["lock"]["reason"], "repair");
}

#[test]
fn health_is_measured_and_an_ill_store_is_exit_1() {
    let project = Project::new(QUICK);
    let report = data(&project.run(&["health", "--json"]).expect(0), "health");
    assert_eq!((&report["healthy"], &report["durable"]), (&json!(true), &json!(true)));
    assert!(report["write_ms"].as_f64() > Some(0.0) && report["read_ms"].as_f64() > Some(0.0));
    assert_eq!(report["server_version"], Value::Null);
    assert_eq!(benchmark_records(&project), 0);

    let folder = project.path().join(".oxiflow/state/other");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    let ran = project.run(&["health", "--json"]).expect(1);
    assert!(ran.stderr.contains("does not make it there and back"), "{}", ran.stderr);
    let report = data(&ran, "health");
    assert_eq!((&report["healthy"], &report["write_ms"]), (&json!(false), &Value::Null));
    assert!(report["error"].is_string());
}

/// Set for the process that writes behind the other one's cache: the project's folder.
const OTHER: &str = "OXIFLOW_TEST_CACHE_FOLDER";
const ROUNDS: u64 = 1000;

fn open(folder: &Path) -> App {
    let env = |_: &str| None;
    App::open(Config::load(&ProjectLocation::Explicit(folder.into()), &env).unwrap(), &env).unwrap()
}

/// Writes this number into the state, and returns what a read through the cache sees then.
fn write(app: &App, pipeline: &PipelineName, number: u64) {
    let stored = app.store.load_state(pipeline).unwrap();
    let expected = Expected::from(stored.as_ref().map(|state| state.version));
    let mut state = stored.map_or_else(
        || PipelineState::new(pipeline, "run", [("a", "a")], app.clock.now()),
        |state| state.value,
    );
    state.batch_number = number;
    app.store.save_state(&mut state, &expected).unwrap();
}

fn seen(app: &App, pipeline: &PipelineName) -> u64 {
    app.store.read_state(pipeline).unwrap().unwrap().batch_number
}

#[test]
fn the_other_process_of_the_cache_test() {
    // Does something only when the test below starts it.
    let Some(folder) = std::env::var_os(OTHER) else { return };
    let (app, pipeline) = (open(Path::new(&folder)), "p".parse().unwrap());
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (verb, number) = line.split_once(' ').unwrap();
        if verb == "write" {
            write(&app, &pipeline, number.parse().unwrap());
        }
        println!("\nseen {}", seen(&app, &pipeline));
    }
}

#[test]
fn the_cache_never_serves_a_record_that_another_process_has_overwritten() {
    let plugins = plugin_folder().display();
    let project = Project::new(&format!("plugins: {{path: [\"{plugins}\"]}}\n{QUICK}"));
    let (app, pipeline) = (open(project.path()), "p".parse().unwrap());
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_process_of_the_cache_test", "--nocapture"])
        .env(OTHER, project.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut say = other.stdin.take().unwrap();
    let mut hear = BufReader::new(other.stdout.take().unwrap()).lines();
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            write(&app, &pipeline, round);
        }
        let verb = if round % 2 == 0 { "look" } else { "write" };
        writeln!(say, "{verb} {round}").unwrap();
        let heard = hear.find_map(|line| Some(line.unwrap().strip_prefix("seen ")?.to_owned()));
        assert_eq!(heard, Some(round.to_string()), "the other process, round {round}");
        // The second read is a hit, so that the cache is there to be wrong in the next round.
        assert_eq!([seen(&app, &pipeline), seen(&app, &pipeline)], [round; 2], "round {round}");
    }
    drop(say);
    assert!(other.wait().unwrap().success());
    let cache = app.store.figures().cache;
    assert_eq!((cache.hits, cache.misses), (ROUNDS, ROUNDS));
}
