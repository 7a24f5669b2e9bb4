//! States of the original program: read as they are, upgraded on request or by the next run, and
//! imported from its files. Nothing of them is lost on any of these ways.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use kit::{PATIENCE, Project, plugin_library, repository, wait_for};
use oxide_flow::clock::SystemClock;
use oxide_flow::layer::{self, Records};
use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{Call, Expected};
use serde_json::{Map, Value, json};

const PIPELINE: &str = r#"
pipeline:
  - {name: parse, run: "oxide_flow progress --records 1 --last-id 9"}
  - {name: load, run: "oxide_flow progress --records 1"}
"#;

fn project() -> Project {
    let project = Project::with_pipeline(PIPELINE);
    project.write("pipelines/orders.yaml", PIPELINE);
    project
}

fn fixture(name: &str) -> String {
    std::fs::read_to_string(repository().join("tests/fixtures/states").join(name)).unwrap()
}

fn records(project: &Project) -> Records {
    let plugin = Plugin::load(&plugin_library("file")).unwrap();
    let storage = plugin.open(&Map::new(), project.path()).unwrap();
    layer::stack(storage, "file", 0, SystemClock::shared())
}

/// Puts a body into the store as a program of this schema would have.
fn seal(project: &Project, pipeline: &str, schema: u32, body: &Value) {
    let body = body.to_string().into_bytes();
    let key = format!("state/{pipeline}");
    // Opened first: it may have to build the plugins.
    let records = records(project);
    let call = Call::within(PATIENCE);
    records.put(&call, &key, schema, &body, &Expected::Any).unwrap();
}

/// Puts a fixture of schema 1 into the store.
fn seal_fixture(project: &Project, name: &str, pipeline: &str) {
    let mut body: Value = serde_json::from_str(&fixture(name)).unwrap();
    body["pipeline_id"] = pipeline.into();
    seal(project, pipeline, 1, &body);
}

fn stored_schema(project: &Project, pipeline: &str) -> u32 {
    let call = Call::within(PATIENCE);
    records(project).get(&call, &format!("state/{pipeline}")).unwrap().unwrap().schema
}

fn data(text: &str, kind: &str) -> Value {
    let mut document: Value = serde_json::from_str(text).unwrap();
    assert_eq!(document["kind"], kind);
    document["data"].take()
}

/// The only backup of a pipeline.
fn backup(project: &Project, pipeline: &str) -> Value {
    let call = Call::within(PATIENCE);
    let records = records(project);
    let listed = records.list(&call, &format!("backup/{pipeline}/"), None, 10).unwrap();
    assert_eq!(listed.len(), 1);
    let record = records.get(&call, &listed[0].key).unwrap().unwrap();
    serde_json::from_slice(&record.body).unwrap()
}

#[test]
fn an_original_record_is_read_and_reading_changes_nothing() {
    let project = project();
    seal_fixture(&project, "v1-unknown-fields.json", "orders");
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["state", "show", "orders"]).story(&project), @"
    exit 0
    --- stdout
    Pipeline  orders
    Status  failed
    Run  f96b7790-240f-408f-94ad-e20190264898
    Version  N (epoch 0)
    Started  TIME (AGO)
    Last success  TIME (AGO)
    Last saved  TIME (AGO)
    Finished  TIME (AGO)
    Cursor  6
    Batches  0
    Records  6 processed, 0 failed
    Bytes  0
    Retries  2

    STEP  STATUS  RECORDS  FAILED  BATCHES  CURSOR  TIME  RETRIES
    Load  failed  0  0  0  N.Ns  2
    Parse  completed  6  0  0  6  N.Ns  0

    Error at TIME (AGO): load: cannot write
      attempt 3

    Error at TIME (AGO): low on space

    Error at TIME (AGO): the disk is full
    ");
    let state = project.state("orders").unwrap();
    assert_eq!(state["schema_version"], 2);
    assert_eq!(state["owner"], "team a");
    assert_eq!(state["limits"], json!({"rows": [1, 2, {"deep": true}]}));
    assert_eq!(state["step_states"]["parse"]["colour"], "blue");
    assert_eq!(state["metadata"]["tags"], json!({"team": "a"}));
    assert_eq!(state["metadata"]["original_status"]["Failed"]["code"], 28);
    assert_eq!(state["started_at"], "2025-08-10T15:15:50.831622289Z");
    assert_eq!(kit::contents(project.path()), before);
}

#[test]
fn a_run_resumes_an_original_state_and_keeps_the_original_as_a_backup() {
    let project = project();
    seal_fixture(&project, "v1-failed.json", "orders");
    let ran = project.run(&["run", "orders"]).expect(0);
    assert!(ran.stderr.contains("parse was done before"), "{}", ran.stderr);
    assert_eq!(stored_schema(&project, "orders"), 2);
    let state = project.state("orders").unwrap();
    assert_eq!((&state["status"], &state["records_processed"]), (&json!("completed"), &json!(7)));
    assert_eq!(state["metadata"]["environment"], "production");
    let backup = backup(&project, "orders");
    assert_eq!(backup["reason"], "before an upgrade");
    assert_eq!(backup["original"]["schema"], 1);
    let original: Value = serde_json::from_str(&fixture("v1-failed.json")).unwrap();
    assert_eq!(backup["original"]["document"], original);
    // Once it is current, a run is no upgrade.
    project.run(&["run", "orders"]).expect(0);
    self::backup(&project, "orders");
}

#[test]
fn upgrade_says_which_states_are_old_and_rewrites_them() {
    let project = project();
    project.run(&["run", "p"]).expect(0);
    insta::assert_snapshot!(project.run(&["state", "upgrade", "--check"]).story(&project), @"
    exit 0
    --- stderr
    nothing to upgrade: all states have schema 2
    ");
    seal_fixture(&project, "v1-running.json", "orders");
    seal_fixture(&project, "v1-paused.json", "other");
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["state", "upgrade", "--check"]).story(&project), @"
    exit 1
    --- stdout
    PIPELINE  SCHEMA  STATUS  BACKUP
    orders  1  old  -
    other  1  old  -
    ");
    insta::assert_snapshot!(project.run(&["state", "upgrade", "--all"]).story(&project), @"
    exit 2
    --- stderr
    this rewrites 2 states in schema 2: `orders`, `other`
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    ");
    insta::assert_snapshot!(project.run(&["state", "upgrade"]).story(&project), @"
    exit 2
    --- stderr
    error: the following required arguments were not provided:
      <PIPELINE|--all|--check>

    Usage: oxide_flow state upgrade <PIPELINE|--all|--check>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(project.run(&["state", "upgrade", "none", "--yes"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `none` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    ");
    assert_eq!(kit::contents(project.path()), before);

    let ran = project.run(&["state", "upgrade", "other", "--yes"]);
    insta::assert_snapshot!(ran.story(&project), @"
    exit 0
    --- stdout
    PIPELINE  SCHEMA  STATUS  BACKUP
    other  1  upgraded  BACKUP
    --- stderr
    this rewrites 1 state in schema 2: `other`
    ");
    assert_eq!((stored_schema(&project, "other"), stored_schema(&project, "orders")), (2, 1));
    let read = project.state("orders").unwrap();
    let ran = project.run(&["state", "upgrade", "--all", "--yes", "--json"]).expect(0);
    let rows = data(&ran.stdout, "oxide_flow.state-upgrade/1");
    assert_eq!(rows[0]["pipeline"], "orders");
    assert_eq!((&rows[0]["schema"], &rows[0]["status"]), (&json!(1), &json!("upgraded")));
    assert_eq!(rows[1]["status"], "current");
    assert_eq!(stored_schema(&project, "orders"), 2);
    // What is stored now is what was read before, but for what every save counts.
    let mut stored = project.state("orders").unwrap();
    assert_eq!((&stored["version"], &stored["epoch"]), (&json!(8), &json!(1)));
    stored["version"] = read["version"].clone();
    stored["epoch"] = read["epoch"].clone();
    assert_eq!(stored, read);
    let original: Value = serde_json::from_str(&fixture("v1-running.json")).unwrap();
    assert_eq!(backup(&project, "orders")["original"]["document"], original);
    let history = project.run(&["state", "history", "orders", "--json"]).expect(0);
    let history = data(&history.stdout, "oxide_flow.state-history/1");
    assert_eq!(
        (&history[0]["kind"], &history[0]["why"]),
        (&json!("upgrade"), &json!("from schema 1 to 2"))
    );
    project.run(&["state", "upgrade", "--check"]).expect(0);
}

#[test]
fn one_state_that_cannot_be_upgraded_does_not_stop_the_others() {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    let running = project.start_captured(&["run", "p"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    // An older worker would write its own schema while it lives.
    let mut body = project.state("p").unwrap();
    body["status"] = json!({"Running": {"started_at": "2025-08-10T15:15:50.9Z"}});
    body["step_states"] = json!({});
    seal(&project, "p", 1, &body);
    seal(&project, "damaged", 1, &json!({"pipeline_id": "damaged", "status": "Exploded"}));
    seal_fixture(&project, "v1-paused.json", "paused");
    let ran = project.run(&["state", "upgrade", "--all", "--yes"]);
    insta::assert_snapshot!(ran.story(&project), @"
    exit 3
    --- stdout
    PIPELINE  SCHEMA  STATUS  BACKUP
    damaged  -  failed  -
    p  1  failed  -
    paused  1  upgraded  BACKUP
    --- stderr
    ERROR [oxide_flow::state] State corruption detected pipeline=damaged
    this rewrites 2 states in schema 2: `p`, `paused`
    error: cannot load the state of pipeline `damaged`
      caused by: the record of `state/damaged` is whole, but not what it should be
      caused by: cannot migrate a state of schema 1
      caused by: `status` is `Exploded`, which is no status of schema 1
    hint: see what is wrong with `oxide_flow state validate damaged`, then mend it with `oxide_flow state repair damaged`
    error: pipeline `p` is held by worker `WORKER` (pid PID on HOST, run, since TIME)
    hint: try again when it is done, or stop it with `oxide_flow worker stop WORKER`
    ");
    assert_eq!((stored_schema(&project, "p"), stored_schema(&project, "paused")), (1, 2));
    running.kill();
}

#[test]
fn a_newer_schema_is_refused_by_every_command_with_the_way_out() {
    let project = project();
    seal(&project, "orders", 3, &json!({"schema_version": 3, "pipeline_id": "orders"}));
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["state", "show", "orders"]).story(&project), @"
    exit 1
    --- stderr
    error: cannot load the state of pipeline `orders`
      caused by: the record of `state/orders` has schema 3, this oxide_flow reads up to 2
    hint: a newer oxide_flow wrote it: install that version or a later one
    ");
    for command in [
        &["run", "orders"][..],
        &["run", "orders", "--fresh"],
        &["state", "upgrade", "orders", "--yes"],
        &["state", "diff", "orders", "orders"],
        &["state", "rollback", "orders", "--to", "-1", "--yes"],
    ] {
        let ran = project.run(command).expect(1);
        assert!(ran.stderr.contains("install that version or a later one"), "{}", ran.stderr);
    }
    assert_eq!(kit::contents(project.path()), before);
}

#[test]
fn files_of_the_original_program_are_imported_from_json_and_yaml() {
    let project = project();
    let import = |name: &str| {
        project.write("in", &fixture(name));
        project.run(&["state", "import", "orders", "--file", "in", "--yes"])
    };
    for name in ["v1-pending", "v1-running", "v1-completed", "v1-failed", "v1-paused"] {
        import(&format!("{name}.json")).expect(0);
        let state = project.state("orders").unwrap();
        let wanted = name.trim_start_matches("v1-").replace("running", "paused");
        assert_eq!((&state["schema_version"], &state["status"]), (&json!(2), &json!(wanted)));
    }
    let steps = |state: Value| (state["step_states"].clone(), state["status"].clone());
    import("v1-running.json").expect(0);
    let from_json = project.state("orders").unwrap();
    import("v1-running.yaml").expect(0);
    let from_yaml = project.state("orders").unwrap();
    assert_eq!(from_yaml["status"], from_json["status"]);
    assert_eq!(from_yaml["started_at"], "2025-08-10T15:15:50.831622289Z");
    for id in ["parse", "load", "report"] {
        for field in ["status", "started_at", "finished_at", "records_processed", "config_hash"] {
            let step = |state: &Value| state["step_states"][id][field].clone();
            assert_eq!(step(&from_yaml), step(&from_json), "{id} {field}");
        }
    }
    // An import of what was exported after a migration is no second migration.
    let exported = project.run(&["state", "export", "orders", "--format", "yaml"]).expect(0).stdout;
    project.write("in", &exported);
    project.run(&["state", "import", "orders", "--file", "in", "--yes"]).expect(0);
    assert_eq!(steps(project.state("orders").unwrap()), steps(from_yaml));
}

#[test]
fn an_original_name_that_is_no_name_here_is_remembered() {
    let project = project();
    project.write("in.json", &fixture("v1-free-name.json"));
    project.run(&["state", "import", "orders", "--file", "in.json"]).expect(0);
    let state = project.state("orders").unwrap();
    assert_eq!(state["pipeline_id"], "orders");
    assert_eq!(state["metadata"]["original_pipeline_id"], "Nightly Load");
    // A name that could be meant is not passed over.
    project.write("in.json", &fixture("v1-paused.json"));
    let ran = project.run(&["state", "import", "p", "--file", "in.json"]).expect(3);
    assert!(ran.stderr.contains("is the state of pipeline `orders`"), "{}", ran.stderr);
}

#[test]
fn a_program_that_looks_through_the_cache_sees_an_original_state_migrated() {
    let project = project();
    seal_fixture(&project, "v1-completed.json", "orders");
    let store = oxide_flow::store::StateStore::new(records(&project));
    let state = store.read_state(&"orders".parse().unwrap()).unwrap().unwrap();
    assert_eq!(state.pipeline_id.as_str(), "orders");
    assert_eq!(stored_schema(&project, "orders"), 1);
}
