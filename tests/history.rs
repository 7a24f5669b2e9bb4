//! The history of pipelines: what is recorded, how it is bounded, and going back to it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::os::unix::fs::PermissionsExt;

use kit::{Project, QUICK, wait_for};
use serde_json::{Value, json};

const FOLDER: &str = ".oxiflow/state/history/p";

/// Three records up to the cursor in a file, and a failure while the file `broken` is there.
const PIPELINE: &str = r#"
pipeline:
  - {name: a, run: "oxide_flow progress --records 3 --last-id $(cat cursor) && test ! -e broken"}
"#;

fn project() -> Project {
    let project = Project::with_pipeline(PIPELINE);
    project.write("cursor", "c1");
    project
}

/// Runs `p` to its end with this cursor.
fn run_to(project: &Project, cursor: &str) {
    project.write("cursor", cursor);
    project.run(&["run", "p"]).expect(0);
}

fn data(text: &str, kind: &str) -> Value {
    let mut document: Value = serde_json::from_str(text).unwrap();
    assert_eq!(document["kind"], format!("oxide_flow.{kind}/1"));
    document["data"].take()
}

/// The records of `p`, newest first.
fn history(project: &Project) -> Vec<Value> {
    let ran = project.run(&["state", "history", "p", "--json", "--limit", "1000"]).expect(0);
    data(&ran.stdout, "state-history").as_array().unwrap().clone()
}

fn kinds(project: &Project) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    history(project)
        .iter()
        .map(|record| format!("{} {}", text(&record["kind"]), text(&record["status"])))
        .collect()
}

/// What a command says, without what depends on how quick the machine is: how many checkpoints
/// came in between, and whether two runs took the same time.
fn story(project: &Project, arguments: &[&str]) -> String {
    let story = project.run(arguments).story(project);
    [(r"changes \d+ fields", "changes N fields"), (r"  \d+  WORKER", "  N  WORKER")]
        .into_iter()
        .fold(story, |story, (pattern, shown)| {
            regex::Regex::new(pattern).unwrap().replace_all(&story, shown).into_owned()
        })
}

fn files(project: &Project) -> usize {
    std::fs::read_dir(project.path().join(FOLDER)).map_or(0, Iterator::count)
}

#[test]
fn every_run_that_ends_leaves_a_record_with_the_state_after_it() {
    let project = project();
    run_to(&project, "c1");
    project.write("broken", "");
    project.run(&["run", "p"]).expect(1);
    let failed = project.state("p").unwrap();
    std::fs::remove_file(project.path().join("broken")).unwrap();
    run_to(&project, "c2");
    insta::assert_snapshot!(story(&project, &["state", "history", "p"]), @"
    exit 0
    --- stdout
    ID  AT  KIND  STATUS  RECORDS  FAILED  VERSION  WHO  WHY
    RECORD  TIME (AGO)  run  completed  6  0  N  WORKER  all steps are done
    RECORD  TIME (AGO)  run  failed  3  0  N  WORKER  step a: it ended with exit code 1
    RECORD  TIME (AGO)  run  completed  3  0  N  WORKER  all steps are done
    ");
    insta::assert_snapshot!(
        story(&project, &["state", "history", "p", "--limit", "1"]), @"
    exit 0
    --- stdout
    ID  AT  KIND  STATUS  RECORDS  FAILED  VERSION  WHO  WHY
    RECORD  TIME (AGO)  run  completed  6  0  N  WORKER  all steps are done
    --- stderr
    3 records in all; `--limit 3` shows them
    ");
    insta::assert_snapshot!(story(&project, &["state", "history", "p", "--limit", "0"]), @"
    exit 0
    --- stderr
    3 records in all; `--limit 3` shows them
    ");
    let records = history(&project);
    let record = &records[1];
    for field in ["run_id", "epoch", "version", "status", "records_processed", "retry_count"] {
        assert_eq!(record[field], failed[field], "{field}");
    }
    assert_eq!(record["why"], "step a: it ended with exit code 1");
    assert_eq!(record["steps"][0]["status"], "failed");
    assert_eq!(record["has_state"], true);
    // The whole state is in the record.
    let reference = format!("p@{}", record["history_id"].as_str().unwrap());
    project.write("failed.json", &failed.to_string());
    let ran = project.run(&["state", "diff", &reference, "failed.json", "--json"]).expect(0);
    assert_eq!(data(&ran.stdout, "state-diff")["differences"], json!([]));
}

#[test]
fn a_run_that_is_stopped_is_recorded_as_paused_by_its_worker() {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    let running = project.start_captured(&["run", "p"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    let worker = project.state("p").unwrap()["worker_id"].clone();
    running.signal("-TERM");
    running.finish().expect(1);
    let records = history(&project);
    assert_eq!(records.len(), 1);
    assert_eq!((&records[0]["status"], &records[0]["who"]), (&json!("paused"), &worker));
}

#[test]
fn administrative_changes_are_recorded_with_who_made_them() {
    let project = project();
    run_to(&project, "c1");
    project.run(&["run", "p", "--fresh"]).expect(0);
    let state = project.state("p").unwrap();
    project.write("in.json", &state.to_string());
    project.run(&["state", "import", "p", "--file", "in.json", "--yes"]).expect(0);
    project.run(&["state", "rollback", "p", "--to", "-1", "--yes"]).expect(0);
    assert_eq!(
        kinds(&project),
        [
            "rollback completed",
            "import completed",
            "run completed",
            "fresh_start running",
            "run completed"
        ]
    );
    let records = history(&project);
    assert!(records[1]["who"].as_str().unwrap().starts_with("tester@"));
    assert_eq!(records[1]["why"], "from in.json");
    assert_eq!(
        records[0]["why"],
        json!(format!("to {}", records[2]["history_id"].as_str().unwrap()))
    );

    let stuck = Project::with_pipeline(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    let running = stuck.start_captured(&["run", "p"]);
    wait_for("the step", || stuck.path().join("ready").exists().then_some(()));
    running.kill();
    stuck.run(&["state", "unlock", "p"]).expect(0);
    assert_eq!(kinds(&stuck), ["unlock running"]);
}

#[test]
fn history_is_bounded_and_can_be_turned_off() {
    let project = project();
    let keep = |number: u32| {
        project.write("oxiflow.yaml", &format!("{QUICK}  history_keep: {number}\n"));
    };
    keep(3);
    for n in 1..=5 {
        run_to(&project, &format!("c{n}"));
    }
    assert_eq!(files(&project), 3);
    let runs = history(&project);
    assert_eq!(runs.len(), 3);
    assert_eq!(runs[0]["run_id"], project.state("p").unwrap()["run_id"]);

    // A bound that was lowered is applied by the next record, or by maintenance.
    keep(1);
    insta::assert_snapshot!(project.run(&["maintain", "--dry-run"]).story(&project), @"
    exit 0
    --- stdout
    TASK  PIPELINE  TO REMOVE  TO MAKE
    history  p  2  0
    --- stderr
    nothing was done: this was a dry run
    ");
    assert_eq!(files(&project), 3);
    insta::assert_snapshot!(project.run(&["maintain"]).story(&project), @"
    exit 0
    --- stdout
    TASK  PIPELINE  REMOVED  MADE
    history  p  2  0
    ");
    assert_eq!(history(&project), &runs[..1]);
    insta::assert_snapshot!(project.run(&["maintain"]).story(&project), @"
    exit 0
    --- stderr
    nothing to do
    ");
    let ran = project.run(&["maintain", "--json"]).expect(0);
    assert_eq!(data(&ran.stdout, "maintain"), json!({"dry_run": false, "done": [], "errors": []}));

    keep(0);
    let ran = project.run(&["maintain", "--json"]).expect(0);
    assert_eq!(data(&ran.stdout, "maintain")["done"][0]["removed"], json!([runs[0]["history_id"]]));
    run_to(&project, "c9");
    assert_eq!(files(&project), 0, "0 writes no record");
    insta::assert_snapshot!(story(&project, &["state", "history", "p"]), @"
    exit 0
    --- stderr
    pipeline `p` has no history
    ");
}

#[test]
fn history_that_cannot_be_written_is_a_warning_and_not_a_failed_run() {
    let project = project();
    // A file where the folder of the history has to be.
    project.write(".oxiflow/state/history/p", "in the way");
    // Without this the backend warns of a store that others can read.
    let folder = project.path().join(".oxiflow/state");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    let ran = project.run(&["run", "p"]).expect(0);
    assert!(ran.stderr.contains("History not written"), "{}", ran.stderr);
    assert!(ran.stderr.contains("p: completed"), "{}", ran.stderr);
    assert_eq!(project.state("p").unwrap()["status"], "completed");
    assert_eq!(project.run(&["worker", "list"]).expect(0).stderr, "no workers\n");
}

#[test]
fn a_damaged_record_is_told_and_hides_no_other() {
    let project = project();
    run_to(&project, "c1");
    run_to(&project, "c2");
    let newest = history(&project)[0]["history_id"].as_str().unwrap().to_owned();
    let file = format!("{FOLDER}/{newest}.json");
    project.write(&file, &project.read(&file).replacen("completed", "cOmpleted", 1));
    insta::assert_snapshot!(story(&project, &["state", "history", "p"]), @"
    exit 3
    --- stdout
    ID  AT  KIND  STATUS  RECORDS  FAILED  VERSION  WHO  WHY
    RECORD  -  corrupt  -  -  -  -  -  -
    RECORD  TIME (AGO)  run  completed  3  0  N  WORKER  all steps are done
    --- stderr
    warning: cannot load history record `RECORD` of `p`: the backend reports corrupt: DIR/.oxiflow/state/history/p/RECORD.json failed its checksum
    ");
    let reference = format!("p@{newest}");
    project.run(&["state", "diff", &reference, "p"]).expect(3);
    project.run(&["state", "rollback", "p", "--to", &newest, "--yes"]).expect(3);
    // What the damaged one was cannot be told, so it does not count.
    insta::assert_snapshot!(story(&project, &["state", "rollback", "p", "--to", "-1"]), @"
    exit 2
    --- stderr
    warning: history record RECORD is newer and cannot be used: cannot load history record `RECORD` of `p`: the backend reports corrupt: DIR/.oxiflow/state/history/p/RECORD.json failed its checksum
    RECORD is the state of `p` after run at TIME (AGO): completed, 3 records
    going back to it changes N fields of the present state
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    ");
    // Runs go on, and write history.
    run_to(&project, "c3");
    assert_eq!(files(&project), 3);
}

#[test]
fn diff_tells_fields_by_path_between_states_of_every_origin() {
    let project = project();
    run_to(&project, "c1");
    let mut state = project.state("p").unwrap();
    project.write("a.json", &state.to_string());
    state["last_processed_id"] = json!("c7");
    state["step_states"]["a"]["records_processed"] = json!(4);
    state["owner"] = json!("team a");
    project.write("b.json", &state.to_string());
    insta::assert_snapshot!(project.run(&["state", "diff", "a.json", "b.json"]).story(&project), @r#"
    exit 0
    --- stdout
    FIELD  a.json  b.json
    last_processed_id  "c1"  "c7"
    owner  -  "team a"
    step_states.a.records_processed  3  4
    --- stderr
    3 fields differ
    "#);
    let ran = project.run(&["state", "diff", "p", "./b.json", "--json"]).expect(0);
    let differences = data(&ran.stdout, "state-diff")["differences"].clone();
    assert_eq!(
        differences,
        json!([
            {"path": "last_processed_id", "before": "c1", "after": "c7"},
            {"path": "owner", "after": "team a"},
            {"path": "step_states.a.records_processed", "before": 3, "after": 4},
        ])
    );
    insta::assert_snapshot!(project.run(&["state", "diff", "p", "a.json"]).story(&project), @"
    exit 0
    --- stderr
    `p` and `a.json` do not differ
    ");
    insta::assert_snapshot!(project.run(&["state", "diff", "p", "p@-1"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `p` has no history `-1`
    hint: `oxide_flow state history p` shows what there is
    ");
    insta::assert_snapshot!(project.run(&["state", "diff", "p", "p@-0"]).story(&project), @"
    exit 2
    --- stderr
    error: `-0` is no history id and no number of steps back
    hint: use an id, or -1 for the last one before now
    ");
    insta::assert_snapshot!(project.run(&["state", "diff", "p", "p@../p"]).story(&project), @"
    exit 2
    --- stderr
    error: cannot read p@../p
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(project.run(&["state", "diff", "p", "no/such.json"]).story(&project), @"
    exit 2
    --- stderr
    error: cannot read no/such.json
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(project.run(&["state", "diff", "p", "none"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `none` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    ");
    run_to(&project, "c2");
    let ran = project.run(&["state", "diff", "p@-1", "p", "--json"]).expect(0);
    let differences = data(&ran.stdout, "state-diff")["differences"].clone();
    let cursor = json!({"path": "last_processed_id", "before": "c1", "after": "c2"});
    assert!(differences.as_array().unwrap().contains(&cursor), "{differences}");
}

#[test]
fn rollback_previews_asks_backs_up_and_can_itself_be_undone() {
    let project = project();
    run_to(&project, "c1");
    run_to(&project, "c2");
    let before = project.state("p").unwrap();
    let contents = kit::contents(project.path());
    let ran = project.run(&["state", "rollback", "p", "--to", "-1", "--dry-run"]).expect(0);
    assert!(ran.stdout.contains("last_processed_id"), "{}", ran.stdout);
    insta::assert_snapshot!(
        story(&project, &["state", "rollback", "p", "--to", "-1"]), @"
    exit 2
    --- stderr
    RECORD is the state of `p` after run at TIME (AGO): completed, 3 records
    going back to it changes N fields of the present state
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    ");
    assert_eq!(kit::contents(project.path()), contents);

    insta::assert_snapshot!(
        story(&project, &["state", "rollback", "p", "--to", "-1", "--yes"]), @"
    exit 0
    --- stderr
    RECORD is the state of `p` after run at TIME (AGO): completed, 3 records
    going back to it changes N fields of the present state
    the state before is kept as backup BACKUP
    rolled `p` back to RECORD: completed, 3 records, now at version N
    ");
    let after = project.state("p").unwrap();
    assert_eq!(after["last_processed_id"], "c1");
    assert_ne!(after["run_id"], before["run_id"]);
    assert!(after["version"].as_u64() > before["version"].as_u64());
    assert!(after["epoch"].as_u64() > before["epoch"].as_u64());
    let backups = std::fs::read_dir(project.path().join(".oxiflow/state/backups/p")).unwrap();
    assert_eq!(backups.count(), 1);

    // The last one before now is what the rollback left behind.
    project.run(&["state", "rollback", "p", "--to", "-1", "--yes"]).expect(0);
    assert_eq!(project.state("p").unwrap()["last_processed_id"], "c2");
    insta::assert_snapshot!(
        project.run(&["state", "rollback", "p", "--to", "-9", "--yes"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `p` has no history `-9`
    hint: `oxide_flow state history p` shows what there is
    ");
    insta::assert_snapshot!(
        project.run(&["state", "rollback", "p", "--to", "nothing", "--yes"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `p` has no history `nothing`
    hint: `oxide_flow state history p` shows what there is
    ");
}

#[test]
fn rolling_back_to_a_running_state_leaves_one_to_resume() {
    let project = project();
    run_to(&project, "c1");
    project.run(&["run", "p", "--fresh"]).expect(0);
    let started = history(&project)[1]["history_id"].as_str().unwrap().to_owned();
    project.run(&["state", "rollback", "p", "--to", &started, "--yes"]).expect(0);
    let state = project.state("p").unwrap();
    assert_eq!((&state["status"], &state["worker_id"]), (&json!("paused"), &Value::Null));
    let ran = project.run(&["run", "p"]).expect(0);
    assert!(ran.stderr.contains("resumes (paused)"), "{}", ran.stderr);
}

#[test]
fn rollback_does_not_touch_a_pipeline_that_runs() {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    project.write("go", "");
    project.run(&["run", "p"]).expect(0);
    std::fs::remove_file(project.path().join("go")).unwrap();
    std::fs::remove_file(project.path().join("ready")).unwrap();
    let running = project.start_captured(&["run", "p"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    let state = project.state("p").unwrap();
    let ran = project.run(&["state", "rollback", "p", "--to", "-1", "--yes"]).expect(4);
    assert!(ran.stderr.contains("is held by worker"), "{}", ran.stderr);
    assert_eq!(project.state("p").unwrap(), state);
    project.write("go", "");
    running.finish().expect(0);
}

#[test]
fn a_pipeline_nobody_knows_has_no_history() {
    let project = project();
    insta::assert_snapshot!(story(&project, &["state", "history", "p"]), @"
    exit 1
    --- stderr
    error: pipeline `p` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    ");
    insta::assert_snapshot!(
        project.run(&["state", "rollback", "p", "--to", "-1", "--yes"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `p` has no history `-1`
    hint: `oxide_flow state history p` shows what there is
    ");
}

#[test]
fn the_documentation_names_every_kind() {
    let docs = std::fs::read_to_string(kit::repository().join("docs/cli.md")).unwrap();
    let (_, section) = docs.split_once("\n## state history\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let source = kit::repository().join("host/src/model/history.rs");
    let source = std::fs::read_to_string(source).unwrap();
    let arms = source.lines().filter_map(|line| line.trim().strip_prefix("Self::"));
    let kinds = arms.filter_map(|arm| arm.split('"').nth(1));
    let kinds: Vec<_> = kinds.filter(|kind| *kind != "other").collect();
    assert!(kinds.len() > 8, "{kinds:?}");
    for kind in kinds {
        assert!(section.contains(&format!("`{kind}`")), "docs/cli.md does not name `{kind}`");
    }
}
