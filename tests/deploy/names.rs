//! What a worker is called: by its host, or by `OXIFLOW_WORKER_NAME`.

use std::process::Stdio;

use serde_json::Value;

use crate::kit::{Project, Running, wait_for};

const WAITING: &str = "pipeline:\n  - {name: a, run: 'touch ready; exec sleep 600'}\n";

#[test]
fn a_worker_is_shown_and_stopped_by_the_name_it_was_given() {
    let project = Project::with_pipeline(WAITING);
    let name = "node-3:prod:orders-29401-x7k2p";
    let mut command = project.command(["run"]);
    command.env("OXIFLOW_WORKER_NAME", name);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = Running::from(command.spawn().expect("the program starts"));
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    let listed = project.run(&["worker", "list", "--json"]).expect(0);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let lease = &listed["data"][0]["lease"];
    let id = lease["worker_id"].as_str().expect("an id");
    assert!(id.starts_with(&format!("{name}-{}-", running.pid())), "{id}");
    // The name is for people; what tells processes apart stays what it is.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    assert_eq!(lease["host"], host.trim());
    let table = project.run(&["worker", "list"]).expect(0).stdout;
    assert!(table.contains(id), "{table}");
    project.run(&["worker", "stop", id]).expect(0);
    running.finish().expect(1);
}

#[test]
fn a_name_that_is_none_is_told_before_anything_runs() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: 'touch ran'}]");
    let mut command = project.command(["run"]);
    // What Kubernetes leaves of a variable that is defined too late.
    command.env("OXIFLOW_WORKER_NAME", "$(NODE_NAME)");
    insta::assert_snapshot!(crate::ran(&mut command).story(&project), @"
    exit 2
    --- stderr
    error: `$(NODE_NAME)` in OXIFLOW_WORKER_NAME cannot name a worker
    hint: use 1 to 255 letters, digits, `.`, `_`, `-`, `@` and `:`, not beginning with a dash; or unset it for the host's name
    ");
    assert!(!project.path().join("ran").exists());
}
