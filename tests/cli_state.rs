//! `oxide_flow state show`, `list` and `export`: on healthy records and on damaged ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::os::unix::fs::PermissionsExt;

use kit::{Project, wait_for};
use serde_json::{Value, json};

const STATE_FILE: &str = ".oxiflow/state/states/p.json";

/// A project with three pipelines: `good` ended well, `bad` failed, `p` ended well.
fn three() -> Project {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: oxide_flow progress --records 1500 --failed 2 --last-id x9}]\n",
    );
    project.write("pipelines/good.yaml", "pipeline: [{name: a, run: echo}]\n");
    project.write("pipelines/bad.yaml", "pipeline: [{name: a, run: exit 3}]\n");
    project.run(&["run", "p"]).expect(0);
    project.run(&["run", "good"]).expect(0);
    project.run(&["run", "bad"]).expect(1);
    project
}

fn names(project: &Project, arguments: &[&str]) -> Vec<String> {
    let ran = project.run(&[&["state", "list", "--json"], arguments].concat()).expect(0);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["kind"], "oxide_flow.state-list/1");
    let rows = document["data"].as_array().unwrap();
    rows.iter().map(|row| row["pipeline"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn states_are_listed_and_filtered_by_how_they_ended() {
    let project = three();
    insta::assert_snapshot!(project.run(&["state", "list"]).story(&project), @"
    exit 0
    --- stdout
    PIPELINE  STATUS  STEP  RECORDS  FAILED  SAVED  WORKER
    bad  failed  a  0  0  AGO  -
    good  completed  a  0  0  AGO  -
    p  completed  a  1,500  2  AGO  -
    ");
    assert_eq!(names(&project, &[]), ["bad", "good", "p"]);
    assert_eq!(names(&project, &["--failed"]), ["bad"]);
    assert_eq!(names(&project, &["--completed"]), ["good", "p"]);
    assert_eq!(names(&project, &["--failed", "--completed"]), ["bad", "good", "p"]);
    assert_eq!(names(&project, &["--active"]), [] as [&str; 0]);
    insta::assert_snapshot!(project.run(&["state", "list", "--active"]).story(&project), @"
    exit 0
    --- stderr
    no such pipelines
    ");

    project.write(
        "pipelines/busy.yaml",
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    let running = project.start_captured(&["run", "busy"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    assert_eq!(names(&project, &["--active"]), ["busy"]);
    running.kill();
    assert_eq!(names(&project, &["--active"]), [] as [&str; 0], "an interrupted run is not active");
    insta::assert_snapshot!(project.run(&["state", "list"]).story(&project), @"
    exit 0
    --- stdout
    PIPELINE  STATUS  STEP  RECORDS  FAILED  SAVED  WORKER
    bad  failed  a  0  0  AGO  -
    busy  interrupted  a  0  0  AGO  WORKER
    good  completed  a  0  0  AGO  -
    p  completed  a  1,500  2  AGO  -
    ");
}

#[test]
fn a_pipeline_that_never_ran_has_no_state() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    insta::assert_snapshot!(project.run(&["state", "list"]).story(&project), @"
    exit 0
    --- stderr
    no pipeline has a state yet
    ");
    insta::assert_snapshot!(project.run(&["state", "show", "p"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `p` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    ");
    insta::assert_snapshot!(project.run(&["state", "show", "p", "--json"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `p` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    ");
    insta::assert_snapshot!(project.run(&["state", "export", "p"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `p` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    ");
    assert_eq!(names(&project, &[]), [] as [&str; 0]);
}

#[test]
fn a_state_is_shown_whole() {
    let project = three();
    insta::assert_snapshot!(project.run(&["state", "show", "p"]).story(&project), @"
    exit 0
    --- stdout
    Pipeline  p
    Status  completed
    Run  ID
    Version  N (epoch 1)
    Started  TIME (AGO)
    Last success  TIME (AGO)
    Last saved  TIME (AGO)
    Finished  TIME (AGO)
    Cursor  x9
    Batches  1
    Records  1,500 processed, 2 failed
    Bytes  0
    Retries  0

    STEP  STATUS  RECORDS  FAILED  BATCHES  CURSOR  TIME  RETRIES
    a  completed  1,500  2  1  x9  N.Ns  0
    ");
    let ran = project.run(&["state", "show", "p", "--json"]).expect(0);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["kind"], "oxide_flow.state/1");
    let fields = [
        "pipeline_id",
        "run_id",
        "version",
        "last_processed_id",
        "batch_number",
        "records_processed",
        "records_failed",
        "data_size_processed",
        "current_step",
        "step_states",
        "status",
        "started_at",
        "last_success_timestamp",
        "estimated_completion",
        "errors",
        "retry_count",
        "worker_id",
        "last_heartbeat",
        "schema_version",
        "epoch",
    ];
    for field in fields {
        assert!(document["data"]["state"].get(field).is_some(), "{field}");
    }
}

/// Every command that reads the state of `p` calls it corrupt, and the listing has the others.
fn is_corrupt(project: &Project, how: &str) {
    for arguments in [
        &["state", "show", "p"][..],
        &["state", "show", "p", "--json"],
        &["state", "export", "p"],
        &["state", "export", "p", "--output", "out.json"],
        &["run", "p"],
    ] {
        let ran = project.run(arguments).expect(3);
        assert!(ran.stderr.contains("corrupt"), "{how}: {arguments:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("no state"), "{how}: {arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{how}: {arguments:?}");
    }
    assert!(!project.path().join("out.json").exists());
    let ran = project.run(&["state", "list", "--json"]).expect(3);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let status = |name: &str| {
        let rows = document["data"].as_array().unwrap();
        rows.iter().find(|row| row["pipeline"] == name).unwrap()["status"].clone()
    };
    assert_eq!(
        (status("p"), status("good"), status("bad")),
        (json!("corrupt"), json!("completed"), json!("failed")),
        "{how}"
    );
}

#[test]
fn a_damaged_state_is_corrupt_however_it_was_damaged() {
    let project = three();
    let good = project.read(STATE_FILE);
    let file = project.path().join(STATE_FILE);
    // A step that ran before the damage must not run again because of it.
    let mut seed = 20_260_101_u64;
    for _ in 0..6 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = usize::try_from(seed >> 33).unwrap() % good.len();
        let mut bytes = good.clone().into_bytes();
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        is_corrupt(&project, &format!("byte {at}"));
    }
    for length in [0, 1, good.len() / 2, good.len() - 1] {
        std::fs::write(&file, &good[..length]).unwrap();
        is_corrupt(&project, &format!("cut to {length}"));
    }
    std::fs::copy(project.path().join(".oxiflow/state/states/good.json"), &file).unwrap();
    is_corrupt(&project, "another pipeline's record");
    insta::assert_snapshot!(project.run(&["state", "show", "p"]).story(&project), @"
    exit 3
    --- stderr
    ERROR [oxide_flow::state] State corruption detected pipeline=p
    error: cannot load the state of pipeline `p`
      caused by: the backend reports corrupt
      caused by: the record of `state/p` is that of `state/good`
    hint: see what is wrong with `oxide_flow state validate p`, then mend it with `oxide_flow state repair p`, or go back with `oxide_flow state restore p --at 0s`
    ");
    insta::assert_snapshot!(project.run(&["state", "list"]).story(&project), @"
    exit 3
    --- stdout
    PIPELINE  STATUS  STEP  RECORDS  FAILED  SAVED  WORKER
    bad  failed  a  0  0  AGO  -
    good  completed  a  0  0  AGO  -
    p  corrupt  -  -  -  -  -
    --- stderr
    ERROR [oxide_flow::state] State corruption detected pipeline=p
    warning: `p`: cannot load the state of pipeline `p`: the backend reports corrupt: the record of `state/p` is that of `state/good`
    ");
    insta::assert_snapshot!(project.run(&["run", "p"]).story(&project), @"
    exit 3
    --- stderr
    ERROR [oxide_flow::state] State corruption detected pipeline=p
    error: cannot load the state of pipeline `p`
      caused by: the backend reports corrupt
      caused by: the record of `state/p` is that of `state/good`
    hint: see what is wrong with `oxide_flow state validate p`, then mend it with `oxide_flow state repair p`, or go back with `oxide_flow state restore p --at 0s`
    ");
    std::fs::write(&file, &good).unwrap();
    project.run(&["state", "show", "p"]).expect(0);
}

#[test]
fn a_fresh_run_over_a_damaged_state_keeps_its_bytes() {
    let project = three();
    project.write(STATE_FILE, "damaged");
    let ran = project.run(&["run", "p", "--fresh", "--quiet"]).expect(0);
    assert!(ran.stderr.contains("Damaged state quarantined"), "{}", ran.stderr);
    let kept = project.path().join(".oxiflow/state/other/quarantine/p");
    let kept = std::fs::read_dir(kept).unwrap().next().unwrap().unwrap().file_name();
    let id = kept.to_str().unwrap().trim_end_matches(".json");
    let exported = project.run(&["state", "export", "p", "--quarantined", id]).expect(0);
    assert_eq!(exported.stdout, "damaged");
    assert_eq!(project.state("p").unwrap()["status"], "completed");
}

#[test]
fn an_export_to_a_file_is_whole_private_and_replaces_an_older_one() {
    let project = three();
    let exported = project.run(&["state", "export", "p"]).expect(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&exported).unwrap(), project.state("p").unwrap());
    project.write("out.json", "an older export");
    let file = project.path().join("out.json");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    insta::assert_snapshot!(project.run(&["state", "export", "p", "--output", "out.json"]).story(&project), @"
    exit 0
    --- stderr
    wrote out.json
    ");
    assert_eq!(project.read("out.json"), exported);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    insta::assert_snapshot!(project.run(&["state", "export", "p", "-o", "no/such/out.json"]).story(&project), @"
    exit 1
    --- stderr
    error: cannot write no/such/out.json
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(project.run(&["state", "export", "p", "-o", "pipelines"]).story(&project), @"
    exit 1
    --- stderr
    error: cannot write pipelines
      caused by: Is a directory (os error 21)
    ");
    let entries = kit::contents(project.path()).into_keys();
    let left: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "tmp")).collect();
    assert_eq!(left, [] as [std::path::PathBuf; 0]);
    insta::assert_snapshot!(project.run(&["state", "export", "p", "--format", "xml"]).story(&project), @"
    exit 2
    --- stderr
    error: invalid value 'xml' for '--format <FORMAT>'
      [possible values: json, msgpack, yaml, json+zstd, msgpack+zstd, yaml+zstd]

      tip: a similar value exists: 'yaml'

    For more information, try '--help'.
    ");
}
