//! `oxide_flow worker` and `state unlock`: workers that live, workers that are gone.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use kit::{Project, Running, wait_for};
use serde_json::{Value, json};

const STEP: &str = r#"
pipeline:
  - name: a
    run: |
      trap 'oxide_flow progress --records 1 --last-id last; exit 9' TERM
      oxide_flow progress --records 1 --last-id first
      # What the shell says of a `sleep` that is ended is of no interest.
      exec 2> /dev/null
      touch ready
      while :; do sleep 0.01; done
"#;

/// A project with a running worker of its pipeline `p`, and that worker's id.
fn worker() -> (Project, Running, String) {
    let project = Project::patient(STEP);
    let running = project.start_captured(&["run"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    let id = lease(&project)["worker_id"].as_str().unwrap().to_owned();
    (project, running, id)
}

/// As [`worker`], with the worker killed as in a crash.
fn dead_worker() -> (Project, String) {
    let (project, running, id) = worker();
    running.kill();
    (project, id)
}

fn json_of(project: &Project, arguments: &[&str]) -> Value {
    let ran = project.run(arguments).expect(0);
    serde_json::from_str(&ran.stdout).unwrap()
}

/// The lease of the first worker.
fn lease(project: &Project) -> Value {
    json_of(project, &["worker", "list", "--all", "--json"])["data"][0]["lease"].clone()
}

#[test]
fn a_running_worker_is_listed_and_shown() {
    let (project, running, id) = worker();
    insta::assert_snapshot!(project.run(&["worker", "list"]).story(&project), @"
    exit 0
    --- stdout
    WORKER  PIPELINE  STATUS  DOES  HOST  PID  EPOCH  RENEWED
    WORKER  p  active  run  HOST  PID  1  AGO
    ");
    insta::assert_snapshot!(project.run(&["worker", "show", &id]).story(&project), @"
    exit 0
    --- stdout
    Worker  WORKER
    Pipeline  p
    Status  active
    Does  run
    Host  HOST
    Process  pid PID, alive
    Epoch  1
    Acquired  TIME (AGO)
    Renewed  TIME (AGO)
    Lease lasts  1m
    ");
    let list = json_of(&project, &["worker", "list", "--json"]);
    assert_eq!(list["kind"], "oxide_flow.worker-list/1");
    let shown = json_of(&project, &["worker", "show", &id, "--json"]);
    assert_eq!(shown["kind"], "oxide_flow.worker/1");
    for document in [&list["data"][0], &shown["data"]] {
        assert_eq!(
            (&document["status"], &document["process"]),
            (&json!("active"), &json!("alive"))
        );
        let lease = &document["lease"];
        assert_eq!((&lease["pid"], &lease["pipeline_id"]), (&json!(running.pid()), &json!("p")));
        assert!(document["expires_at"].is_string());
    }
    project.write("pipelines/other.yaml", &project.read("pipelines/p.yaml"));
    let others = project.run(&["worker", "list", "--pipeline", "other"]).expect(0);
    assert_eq!((others.stdout.as_str(), others.stderr.as_str()), ("", "no workers\n"));
    let of_p = json_of(&project, &["worker", "list", "--pipeline", "p", "--json"]);
    assert_eq!(of_p["data"].as_array().unwrap().len(), 1);
    let state = json_of(&project, &["state", "show", "p", "--json"]);
    assert_eq!(
        (&state["data"]["effective_status"], &state["data"]["worker"]["worker_id"]),
        (&json!("running"), &json!(id))
    );
}

#[test]
fn a_worker_that_is_asked_to_stop_obeys_and_says_who_asked() {
    let (project, running, id) = worker();
    insta::assert_snapshot!(project.run(&["worker", "stop", &id]).story(&project), @"
    exit 0
    --- stderr
    asked worker `WORKER` to stop (its process lives)
    waiting until it has stopped
    worker `WORKER` has stopped
    ");
    insta::assert_snapshot!(running.finish().expect(1).story(&project), @"
    exit 1
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    p: stopping by request of tester@HOST; again to stop at once
    p: stopped by request of tester@HOST, 2 records
    resume with `oxide_flow run p`
    ");
    let state = project.state("p").unwrap();
    assert_eq!(
        (
            &state["status"],
            &state["last_processed_id"],
            &state["records_processed"],
            &state["worker_id"]
        ),
        (&json!("paused"), &json!("last"), &json!(2), &Value::Null)
    );
    let lease = lease(&project);
    assert!(lease["released_at"].is_string());
    let request = &lease["requests"][0];
    assert!(request["from"].as_str().unwrap().starts_with("tester@"));
    assert!(request["acknowledged_at"].is_string());
    assert_eq!(project.run(&["worker", "list"]).expect(0).stderr, "no workers\n");
    insta::assert_snapshot!(project.run(&["worker", "list", "--all"]).story(&project), @"
    exit 0
    --- stdout
    WORKER  PIPELINE  STATUS  DOES  HOST  PID  EPOCH  RENEWED
    WORKER  p  released  run  HOST  PID  1  AGO
    ");
    insta::assert_snapshot!(project.run(&["worker", "show", &id]).story(&project), @"
    exit 0
    --- stdout
    Worker  WORKER
    Pipeline  p
    Status  released
    Does  run
    Host  HOST
    Process  pid PID, dead
    Epoch  1
    Acquired  TIME (AGO)
    Renewed  TIME (AGO)
    Lease lasts  1m
    Released  TIME (AGO)
    Asked to stop  by tester@HOST, TIME (AGO); seen TIME (AGO)
    ");
    insta::assert_snapshot!(project.run(&["worker", "stop", &id]).story(&project), @"
    exit 0
    --- stderr
    worker `WORKER` has stopped already
    ");
}

#[test]
fn stop_without_waiting_returns_and_a_short_wait_runs_out() {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: \"trap '' TERM; touch ready; while :; do sleep 0.01; done\"}]\n",
    );
    let running = project.start_captured(&["run"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    let id = lease(&project)["worker_id"].as_str().unwrap().to_owned();
    // Suspended, it does not stop meanwhile.
    running.suspend();
    insta::assert_snapshot!(project.run(&["worker", "stop", &id, "--wait", "0s"]).story(&project), @"
    exit 0
    --- stderr
    asked worker `WORKER` to stop (its process lives)
    ");
    insta::assert_snapshot!(project.run(&["worker", "stop", &id, "--wait", "10ms"]).story(&project), @"
    exit 1
    --- stderr
    asked worker `WORKER` to stop (its process lives)
    waiting until it has stopped
    error: worker `WORKER` has not stopped within 10ms
    hint: look at it with `oxide_flow worker show WORKER`, or take its pipeline from it with `oxide_flow state unlock p --force`
    ");
    let lease = lease(&project);
    assert_eq!(lease["requests"].as_array().unwrap().len(), 1, "asking twice asks once");
    assert_eq!(json_of(&project, &["worker", "list", "--json"])["data"][0]["status"], "stopping");
    running.signal("-CONT");
    running.signal("-TERM");
    running.finish().expect(1);
}

#[test]
fn a_dead_worker_is_told_and_its_lease_is_released() {
    let (project, id) = dead_worker();
    insta::assert_snapshot!(project.run(&["worker", "list"]).story(&project), @"
    exit 0
    --- stdout
    WORKER  PIPELINE  STATUS  DOES  HOST  PID  EPOCH  RENEWED
    WORKER  p  dead  run  HOST  PID  1  AGO
    ");
    insta::assert_snapshot!(project.run(&["worker", "show", &id]).story(&project), @"
    exit 0
    --- stdout
    Worker  WORKER
    Pipeline  p
    Status  dead
    Does  run
    Host  HOST
    Process  pid PID, dead
    Epoch  1
    Acquired  TIME (AGO)
    Renewed  TIME (AGO)
    Lease lasts  1m
    ");
    let state = json_of(&project, &["state", "show", "p", "--json"]);
    assert_eq!(state["data"]["effective_status"], "interrupted");
    insta::assert_snapshot!(project.run(&["worker", "stop", &id]).story(&project), @"
    exit 0
    --- stderr
    the process of worker `WORKER` (pid PID on HOST) is gone
    released the lease of pipeline `p`
    ");
    assert!(lease(&project)["released_at"].is_string());
    insta::assert_snapshot!(project.run(&["worker", "stop", &id]).story(&project), @"
    exit 0
    --- stderr
    worker `WORKER` has stopped already
    ");
    let resumed = project.start_captured(&["run"]);
    wait_for("a resumed run", || (lease(&project)["worker_id"] != json!(id)).then_some(()));
    // That worker no longer names the pipeline.
    project.run(&["worker", "stop", &id]).expect(1);
    drop(resumed);
}

#[test]
fn unknown_workers_are_not_found() {
    let project = Project::with_pipeline(STEP);
    insta::assert_snapshot!(project.run(&["worker", "list"]).story(&project), @"
    exit 0
    --- stderr
    no workers
    ");
    insta::assert_snapshot!(project.run(&["worker", "show", "nobody"]).story(&project), @"
    exit 1
    --- stderr
    error: no lease names a worker `nobody`
    hint: list workers with `oxide_flow worker list`
    ");
    insta::assert_snapshot!(project.run(&["worker", "stop", "no\nbody"]).story(&project), @r"
    exit 1
    --- stderr
    error: no lease names a worker `no\nbody`
    hint: list workers with `oxide_flow worker list`
    ");
    insta::assert_snapshot!(project.run(&["worker", "show"]).story(&project), @"
    exit 2
    --- stderr
    error: the following required arguments were not provided:
      <WORKER>

    Usage: oxide_flow worker show <WORKER>

    For more information, try '--help'.
    ");
    let empty = json_of(&project, &["worker", "list", "--json"]);
    assert_eq!(empty, json!({"kind": "oxide_flow.worker-list/1", "data": []}));
}

#[test]
fn unlock_refuses_a_living_worker_and_force_fences_it() {
    let (project, running, _) = worker();
    insta::assert_snapshot!(project.run(&["state", "unlock", "p"]).story(&project), @"
    exit 4
    --- stderr
    pipeline `p` is held by worker `WORKER` (pid PID on HOST, renewed TIME (AGO)); its process lives
    error: its worker may be alive; nothing was changed
    hint: stop it with `oxide_flow worker stop WORKER`, or add `--force`
    ");
    assert!(lease(&project)["released_at"].is_null());
    insta::assert_snapshot!(project.run(&["state", "unlock", "p", "--force"]).story(&project), @"
    exit 0
    --- stderr
    pipeline `p` is held by worker `WORKER` (pid PID on HOST, renewed TIME (AGO)); its process lives
    released the lease of pipeline `p`
    ");
    insta::assert_snapshot!(running.finish().expect(4).story(&project), @"
    exit 4
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    error: the lease of pipeline `p` was released by force
    hint: this worker stopped; what it had not checkpointed is done again by the next one
    ");
}

#[test]
fn unlock_releases_a_dead_worker_without_force() {
    let (project, _) = dead_worker();
    let epoch = lease(&project)["epoch"].as_u64();
    insta::assert_snapshot!(project.run(&["state", "unlock", "p"]).story(&project), @"
    exit 0
    --- stderr
    pipeline `p` is held by worker `WORKER` (pid PID on HOST, renewed TIME (AGO)); its process is gone
    released the lease of pipeline `p`
    ");
    assert!(lease(&project)["epoch"].as_u64() > epoch);
    insta::assert_snapshot!(project.run(&["state", "unlock", "p"]).story(&project), @"
    exit 0
    --- stderr
    nobody holds pipeline `p`
    ");
}

#[test]
fn unlock_of_a_pipeline_that_nobody_ever_ran_changes_nothing() {
    let project = Project::with_pipeline(STEP);
    project.run(&["state", "list"]).expect(0);
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["state", "unlock", "never", "--force"]).story(&project), @"
    exit 1
    --- stderr
    error: there is no pipeline `never`: it has no file, and nothing is stored
    hint: `oxide_flow pipeline list` shows those with a file, `oxide_flow state list` those with a state
    ");
    assert_eq!(kit::contents(project.path()), before);
}

#[test]
fn a_damaged_lease_is_told_and_replaced_only_by_force() {
    let (project, _) = dead_worker();
    let file = ".oxiflow/state/leases/p.json";
    project.write(file, &project.read(file).replace("\"epoch\":1", "\"epoch\":7"));
    insta::assert_snapshot!(project.run(&["worker", "list"]).story(&project), @"
    exit 3
    --- stderr
    warning: the lease of `p` cannot be read: cannot load the lease of `p`: the backend reports corrupt: DIR/.oxiflow/state/leases/p.json failed its checksum
    ");
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 3
    --- stderr
    error: cannot load the lease of `p`
      caused by: the backend reports corrupt
      caused by: DIR/.oxiflow/state/leases/p.json failed its checksum
    hint: make sure that no worker runs it, then mend it with `oxide_flow state repair p`
    ");
    insta::assert_snapshot!(project.run(&["state", "unlock", "p"]).story(&project), @"
    exit 3
    --- stderr
    error: the damaged lease does not say who holds it; nothing was changed
      caused by: cannot load the lease of `p`
      caused by: the backend reports corrupt
      caused by: DIR/.oxiflow/state/leases/p.json failed its checksum
    hint: make sure that no worker runs it, then `oxide_flow state unlock p --force`
    ");
    insta::assert_snapshot!(project.run(&["state", "unlock", "p", "--force"]).story(&project), @"
    exit 0
    --- stderr
    warning: the lease of `p` is damaged: cannot load the lease of `p`: the backend reports corrupt: DIR/.oxiflow/state/leases/p.json failed its checksum
    the damaged bytes are kept in quarantine as BACKUP
    replaced the damaged lease of pipeline `p`
    ");
    project.run(&["worker", "list", "--all"]).expect(0);
    let state = project.state("p").unwrap();
    assert!(lease(&project)["epoch"].as_u64() > state["epoch"].as_u64());
}
