//! Backups as a person makes, lists, checks and restores them, and those that are made by
//! themselves.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::path::PathBuf;

use kit::{Project, QUICK, wait_for};
use serde_json::{Value, json};

/// Three records up to the cursor in a file.
const PIPELINE: &str = r#"
pipeline:
  - {name: a, run: "oxide_flow progress --records 3 --last-id $(cat cursor)"}
"#;

/// Reports once, and ends once there is a file `end`.
const PATIENT: &str = r#"
pipeline:
  - name: a
    run: |
      oxide_flow progress --records 1 --last-id c1
      until [ -e end ]; do sleep 0.01; done
"#;

/// A project whose pipeline has run up to this cursor.
fn after_run_to(cursor: &str) -> Project {
    let project = Project::with_pipeline(PIPELINE);
    run_to(&project, cursor);
    project
}

fn run_to(project: &Project, cursor: &str) {
    project.write("cursor", cursor);
    project.run(&["run", "p"]).expect(0);
}

/// What a command told. Sizes follow from the lengths of ids and times, and how many fields differ
/// from how long a step took.
fn story(project: &Project, arguments: &[&str]) -> String {
    let told = project.run(arguments).story(project);
    let patterns = [
        (r"\d+\.\d KiB|[\d,]+ bytes?\b", "SIZE"),
        (r"changes \d+ fields", "changes N fields"),
        (r"(?m)^.*processing_time_ms.*\n", ""),
    ];
    patterns.iter().fold(told, |told, (pattern, shown)| {
        regex::Regex::new(pattern).unwrap().replace_all(&told, *shown).into_owned()
    })
}

fn data(text: &str, kind: &str) -> Value {
    let mut document: Value = serde_json::from_str(text).unwrap();
    assert_eq!(document["kind"], format!("oxide_flow.{kind}/1"));
    document["data"].take()
}

/// Makes a backup and returns its id.
fn back_up(project: &Project) -> String {
    project.run(&["state", "backup", "p"]).expect(0).stdout.trim().to_owned()
}

fn cursor(project: &Project) -> String {
    project.state("p").unwrap()["last_processed_id"].as_str().unwrap().to_owned()
}

fn backup_file(id: &str) -> String {
    format!(".oxiflow/state/backups/p/{id}.json")
}

/// Changes a byte of a stored file, so that it does not verify.
fn damage(project: &Project, file: &str) {
    let text = project.read(file);
    assert!(text.contains("records_processed"), "{text}");
    project.write(file, &text.replacen("records_processed", "records_pr0cessed", 1));
}

fn backups(project: &Project) -> Vec<PathBuf> {
    let folder = project.path().join(".oxiflow/state/backups/p");
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The rows of `list-backups`: reason and check of each.
fn listed(project: &Project) -> Vec<(String, String)> {
    let ran = project.run(&["state", "list-backups", "p", "--json"]);
    let rows = data(&ran.stdout, "state-backups");
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let row = |row: &Value| (text(&row["reason"]), text(&row["check"]));
    rows.as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_backup_is_made_listed_checked_and_restored() {
    let project = after_run_to("c1");
    let mut told =
        story(&project, &["state", "backup", "p", "--reason", "before the migration", "--verify"]);
    let id = backups(&project)[0].file_stem().unwrap().to_str().unwrap().to_owned();
    told += &story(&project, &["state", "list-backups", "p"]);
    told += &story(&project, &["state", "validate-backup", "p", "--backup", "latest"]);
    told += &story(&project, &["state", "validate-backup", "p", &id]);
    insta::assert_snapshot!(told, @"
    exit 0
    --- stdout
    BACKUP
    --- stderr
    backed up the state of `p`: completed, 3 records
    the backup was read again, and holds the same state
    exit 0
    --- stdout
    ID  MADE  REASON  STATUS  RECORDS  SIZE  CHECK
    BACKUP  TIME (AGO)  before the migration  completed  3  SIZE  verified
    exit 0
    --- stdout
    backup BACKUP can be restored: completed, 3 records, made TIME (AGO), before the migration
    exit 0
    --- stdout
    backup BACKUP can be restored: completed, 3 records, made TIME (AGO), before the migration
    ");
    run_to(&project, "c2");
    let mut told = story(&project, &["state", "restore", "p", "--backup", &id, "--dry-run"]);
    told += &story(&project, &["state", "restore", "p", "--backup", &id]);
    assert_eq!(cursor(&project), "c2");
    told += &story(&project, &["state", "restore", "p", "--backup", &id, "--yes"]);
    insta::assert_snapshot!(told, @r#"
    exit 0
    --- stdout
    FIELD  NOW  THEN
    finished_at  "TIME"  "TIME"
    last_heartbeat  "TIME"  "TIME"
    last_processed_id  "c2"  "c1"
    last_success_timestamp  "TIME"  "TIME"
    run_id  "ID"  "ID"
    started_at  "TIME"  "TIME"
    step_states.a.finished_at  "TIME"  "TIME"
    step_states.a.last_processed_id  "c2"  "c1"
    step_states.a.started_at  "TIME"  "TIME"
    --- stderr
    backup BACKUP is the state of `p` at TIME (AGO) (before the migration): completed, 3 records
    going back to it changes N fields of the present state
    nothing was changed: this was a dry run
    exit 2
    --- stderr
    backup BACKUP is the state of `p` at TIME (AGO) (before the migration): completed, 3 records
    going back to it changes N fields of the present state
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    exit 0
    --- stderr
    backup BACKUP is the state of `p` at TIME (AGO) (before the migration): completed, 3 records
    going back to it changes N fields of the present state
    the state before is kept as backup BACKUP
    restored `p` from backup BACKUP: completed, 3 records, now at version N
    "#);
    assert_eq!(cursor(&project), "c1");
    assert_eq!(backups(&project).len(), 2);
    let ran = project.run(&["state", "history", "p", "--json"]).expect(0);
    let newest = data(&ran.stdout, "state-history")[0].clone();
    assert_eq!(
        (&newest["kind"], &newest["why"]),
        (&json!("restore"), &format!("from backup {id}").into())
    );
}

#[test]
fn what_there_is_not_is_told() {
    let project = after_run_to("c1");
    let mut told = String::new();
    for arguments in [
        &["backup", "nosuch"][..],
        &["list-backups", "p"],
        &["list-backups", "nosuch"],
        &["validate-backup", "p", "latest"],
        &["validate-backup", "p"],
        &["validate-backup", "p", "x", "--backup", "x"],
        &["restore", "p", "--backup", "latest", "--yes"],
        &["restore", "p", "--backup", "../../states/p", "--yes"],
        &["restore", "p", "--at", "2020-01-31", "--yes"],
        &["restore", "p", "--at", "whenever", "--yes"],
        &["restore", "p", "--yes"],
    ] {
        let arguments = [&["state"][..], arguments].concat();
        told += &format!("$ {}\n{}", arguments.join(" "), story(&project, &arguments));
    }
    insta::assert_snapshot!(told, @"
    $ state backup nosuch
    exit 1
    --- stderr
    error: pipeline `nosuch` has no state
    hint: `oxide_flow state list` shows those that have one
    $ state list-backups p
    exit 0
    --- stderr
    pipeline `p` has no backups
    $ state list-backups nosuch
    exit 1
    --- stderr
    error: pipeline `nosuch` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    $ state validate-backup p latest
    exit 1
    --- stderr
    error: pipeline `p` has no backup
    hint: its history has copies too: `oxide_flow state history p` shows them, and `oxide_flow state restore p --at 0s` goes back to the newest
    $ state validate-backup p
    exit 2
    --- stderr
    error: the following required arguments were not provided:
      <BACKUP|--backup <BACKUP>>

    Usage: oxide_flow state validate-backup <BACKUP|--backup <BACKUP>> <PIPELINE>

    For more information, try '--help'.
    $ state validate-backup p x --backup x
    exit 2
    --- stderr
    error: the argument '[BACKUP]' cannot be used with '--backup <BACKUP>'

    Usage: oxide_flow state validate-backup <BACKUP|--backup <BACKUP>> <PIPELINE>

    For more information, try '--help'.
    $ state restore p --backup latest --yes
    exit 1
    --- stderr
    error: cannot restore pipeline `p`
      caused by: pipeline `p` has no backup
    hint: its history has copies too: `oxide_flow state history p` shows them, and `oxide_flow state restore p --at 0s` goes back to the newest
    $ state restore p --backup ../../states/p --yes
    exit 1
    --- stderr
    error: cannot restore pipeline `p`
      caused by: pipeline `p` has no backup `../../states/p`
    hint: `oxide_flow state list-backups p` shows what there is
    $ state restore p --at 2020-01-31 --yes
    exit 1
    --- stderr
    error: cannot restore pipeline `p`
      caused by: pipeline `p` has no copy from TIME or before
    hint: `oxide_flow state list-backups p` shows what there is
    $ state restore p --at whenever --yes
    exit 2
    --- stderr
    error: invalid value 'whenever' for '--at <TIME>': expected a time such as `2026-01-31T10:30Z`, a date, or how long ago: `2h`

    For more information, try '--help'.
    $ state restore p --yes
    exit 2
    --- stderr
    error: the following required arguments were not provided:
      <--backup <BACKUP>|--at <TIME>>

    Usage: oxide_flow state restore --yes <--backup <BACKUP>|--at <TIME>> <PIPELINE>

    For more information, try '--help'.
    ");
}

#[test]
fn a_backup_is_made_while_a_worker_runs_and_a_restore_waits_for_it() {
    let project = Project::with_pipeline(PATIENT);
    let running = project.start(&["run", "p"]);
    wait_for("the first checkpoint", || {
        (project.state("p")?["last_processed_id"] == "c1").then_some(())
    });
    let id = back_up(&project);
    let state = project.run(&["state", "validate-backup", "p", &id, "--json"]).expect(0);
    let state = data(&state.stdout, "state-backup-validation")["state"].clone();
    // As the next run would find it.
    assert_eq!((&state["last_processed_id"], &state["status"]), (&json!("c1"), &json!("paused")));
    insta::assert_snapshot!(story(&project, &["state", "restore", "p", "--backup", &id, "--yes"]), @"
    exit 4
    --- stderr
    backup BACKUP is the state of `p` at TIME (AGO) (manual): paused, 1 record
    going back to it changes N fields of the present state
    error: cannot restore pipeline `p`
      caused by: pipeline `p` is held by worker `WORKER` (pid PID on HOST, run, since TIME)
    hint: try again when it is done, or stop it with `oxide_flow worker stop WORKER`
    ");
    project.write("end", "");
    project
        .run(&["state", "restore", "p", "--backup", "latest", "--yes", "--wait", "60s"])
        .expect(0);
    running.finish().expect(0);
    assert_eq!(project.state("p").unwrap()["status"], "paused");
    project.run(&["run", "p"]).expect(0);
}

#[test]
fn a_damaged_state_is_quarantined_and_the_last_good_backup_restored() {
    let project = after_run_to("c1");
    let id = back_up(&project);
    run_to(&project, "c2");
    damage(&project, ".oxiflow/state/states/p.json");
    let bytes = project.read(".oxiflow/state/states/p.json");
    insta::assert_snapshot!(story(&project, &["state", "backup", "p"]), @r#"
    exit 3
    --- stdout
    BACKUP
    --- stderr
    WARN  [oxide_flow::state] Damaged state quarantined pipeline=p quarantine_id="BACKUP" reason="manual"
    warning: the state of `p` is damaged: the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
    kept SIZE of it in quarantine as BACKUP; the state is as it was
    "#);
    assert_eq!(project.read(".oxiflow/state/states/p.json"), bytes, "the state is left as it is");
    let ran = project.run(&["state", "backup", "p", "--json"]).expect(3);
    let told = data(&ran.stdout, "state-backup");
    assert_eq!((&told["backup_id"], &told["verified"]), (&Value::Null, &Value::Null));
    assert!(told["quarantine_id"].is_string() && told["damage"].is_string(), "{told}");
    let mut told = story(&project, &["state", "restore", "p", "--backup", "latest", "--dry-run"]);
    told += &story(&project, &["state", "restore", "p", "--backup", "latest", "--yes"]);
    insta::assert_snapshot!(told.replace(&id, "BACKUP"), @r#"
    exit 0
    --- stderr
    backup BACKUP is the state of `p` at TIME (AGO) (manual): completed, 3 records
    warning: the state of `p` is damaged: the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
    its bytes are quarantined before it is replaced
    nothing was changed: this was a dry run
    exit 0
    --- stderr
    backup BACKUP is the state of `p` at TIME (AGO) (manual): completed, 3 records
    warning: the state of `p` is damaged: the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
    its bytes are quarantined before it is replaced
    WARN  [oxide_flow::state] Damaged state quarantined pipeline=p quarantine_id="BACKUP" reason="before restore"
    the damaged bytes are kept in quarantine as BACKUP
    restored `p` from backup BACKUP: completed, 3 records, now at version N
    "#);
    assert_eq!(cursor(&project), "c1");
    let quarantined = ("manual".to_owned(), "quarantined".to_owned());
    let before = ("before restore".to_owned(), "quarantined".to_owned());
    let good = ("manual".to_owned(), "verified".to_owned());
    assert_eq!(listed(&project), [before, quarantined.clone(), quarantined, good]);
    project.run(&["run", "p"]).expect(0);
}

#[test]
fn a_damaged_backup_hides_no_other_and_is_passed_over() {
    let project = after_run_to("c1");
    back_up(&project);
    run_to(&project, "c2");
    let damaged = back_up(&project);
    damage(&project, &backup_file(&damaged));
    let mut told = story(&project, &["state", "list-backups", "p"]);
    told += &story(&project, &["state", "validate-backup", "p", "--backup", &damaged]);
    told += &story(&project, &["state", "validate-backup", "p", "latest"]);
    told += &story(&project, &["state", "restore", "p", "--backup", &damaged, "--yes"]);
    told += &story(&project, &["state", "restore", "p", "--backup", "latest", "--yes"]);
    insta::assert_snapshot!(told, @"
    exit 3
    --- stdout
    ID  MADE  REASON  STATUS  RECORDS  SIZE  CHECK
    BACKUP  TIME (AGO)  -  -  -  SIZE  damaged
    BACKUP  TIME (AGO)  manual  completed  3  SIZE  verified
    --- stderr
    warning: cannot load backup `BACKUP` of `p`: the backend reports corrupt: DIR/.oxiflow/state/backups/p/BACKUP.json failed its checksum
    exit 3
    --- stderr
    error: cannot load backup `BACKUP` of `p`
      caused by: the backend reports corrupt
      caused by: DIR/.oxiflow/state/backups/p/BACKUP.json failed its checksum
    exit 0
    --- stdout
    backup BACKUP can be restored: completed, 3 records, made TIME (AGO), manual
    --- stderr
    warning: backup BACKUP is newer and cannot be used: cannot load backup `BACKUP` of `p`: the backend reports corrupt: DIR/.oxiflow/state/backups/p/BACKUP.json failed its checksum
    exit 3
    --- stderr
    error: cannot restore pipeline `p`
      caused by: cannot load backup `BACKUP` of `p`
      caused by: the backend reports corrupt
      caused by: DIR/.oxiflow/state/backups/p/BACKUP.json failed its checksum
    exit 0
    --- stderr
    warning: backup BACKUP is newer and cannot be used: cannot load backup `BACKUP` of `p`: the backend reports corrupt: DIR/.oxiflow/state/backups/p/BACKUP.json failed its checksum
    backup BACKUP is the state of `p` at TIME (AGO) (manual): completed, 3 records
    going back to it changes N fields of the present state
    the state before is kept as backup BACKUP
    restored `p` from backup BACKUP: completed, 3 records, now at version N
    ");
    assert_eq!(cursor(&project), "c1");
    let ran = project.run(&["state", "validate-backup", "p", &damaged, "--json"]).expect(3);
    let told = data(&ran.stdout, "state-backup-validation");
    assert_eq!((&told["valid"], &told["backup_id"]), (&json!(false), &json!(damaged)));
}

#[test]
fn complete_state_loss_is_recovered_from() {
    let project = after_run_to("c1");
    back_up(&project);
    std::fs::remove_file(project.path().join(".oxiflow/state/states/p.json")).unwrap();
    project.run(&["state", "show", "p"]).expect(3);
    let mut told = story(&project, &["state", "list-backups", "p"]);
    told += &story(&project, &["state", "restore", "p", "--backup", "latest", "--yes"]);
    insta::assert_snapshot!(told, @"
    exit 0
    --- stdout
    ID  MADE  REASON  STATUS  RECORDS  SIZE  CHECK
    BACKUP  TIME (AGO)  manual  completed  3  SIZE  verified
    exit 0
    --- stderr
    backup BACKUP is the state of `p` at TIME (AGO) (manual): completed, 3 records
    pipeline `p` has no state now; this gives it one
    restored `p` from backup BACKUP: completed, 3 records, now at version N
    ");
    assert_eq!(cursor(&project), "c1");
    project.run(&["run", "p"]).expect(0);
}

#[test]
fn a_point_in_time_is_restored_from_history_without_any_backup() {
    let project = after_run_to("c1");
    let ran = project.run(&["state", "history", "p", "--json"]).expect(0);
    let first = data(&ran.stdout, "state-history")[0].clone();
    run_to(&project, "c2");
    assert_eq!(backups(&project).len(), 0);
    let at = first["at"].as_str().unwrap();
    let told = project.run(&["state", "restore", "p", "--at", at, "--yes"]).expect(0);
    let id = first["history_id"].as_str().unwrap();
    assert!(told.stderr.contains(&format!("from history record {id}")), "{}", told.stderr);
    assert_eq!(cursor(&project), "c1");
    // The present state was backed up, so that this can be undone.
    assert_eq!(listed(&project), [("before restore".to_owned(), "verified".to_owned())]);
    project.run(&["state", "restore", "p", "--at", "0s", "--yes"]).expect(0);
    assert_eq!(cursor(&project), "c1", "the newest copy is what the restore itself recorded");
}

#[test]
fn encrypted_backups_need_their_key() {
    let project = Project::new(&format!("{QUICK}  encryption: {{key_file: key}}\n"));
    project.write("pipelines/p.yaml", PIPELINE);
    let key = |text: &str| {
        use std::os::unix::fs::PermissionsExt;
        project.write("key", &text.repeat(32));
        let file = project.path().join("key");
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o600)).unwrap();
    };
    key("07");
    run_to(&project, "c1");
    let id = project.run(&["state", "backup", "p", "--verify"]).expect(0).stdout;
    let file = std::fs::read(project.path().join(backup_file(id.trim()))).unwrap();
    assert!(!String::from_utf8_lossy(&file).contains("last_processed_id"), "it is not encrypted");
    project.run(&["state", "validate-backup", "p", "latest"]).expect(0);
    key("08");
    project.run(&["state", "validate-backup", "p", id.trim()]).expect(2);
    let ran = project.run(&["state", "list-backups", "p"]).expect(1);
    assert!(ran.stdout.contains("unreadable"), "{}", ran.stdout);
}

#[test]
fn a_run_backs_its_state_up_now_and_then_and_at_its_end() {
    let project = Project::with_pipeline(PATIENT);
    let yaml = project.read("oxiflow.yaml");
    project.write("oxiflow.yaml", &format!("{yaml}  backup_interval: 300ms\n"));
    let running = project.start_captured(&["run", "p"]);
    wait_for("the state", || project.state("p"));
    let first = wait_for("a scheduled backup", || listed(&project).pop());
    assert_eq!(first, ("scheduled".to_owned(), "verified".to_owned()));
    project.write("end", "");
    running.finish().expect(0);
    // What has not changed is not backed up again, however long ago the last backup is.
    let newest = || {
        let ran = project.run(&["state", "list-backups", "p", "--json"]).expect(0);
        data(&ran.stdout, "state-backups")[0].clone()
    };
    wait_for("the end of the run to be backed up", || {
        project.run(&["maintain"]).expect(0);
        (newest()["status"] == "completed").then_some(())
    });
    let number = backups(&project).len();
    let made = newest()["created_at"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>();
    let due = made.unwrap() + chrono::TimeDelta::milliseconds(300);
    wait_for("the interval to pass", || (chrono::Utc::now() > due).then_some(()));
    project.run(&["maintain"]).expect(0);
    assert_eq!(backups(&project).len(), number);
    assert!(number < 20, "{number}");
}

#[test]
fn backups_that_are_off_are_not_made() {
    for off in ["backup_interval: \"off\"", "backup_enabled: false"] {
        let project = Project::with_pipeline(PIPELINE);
        let yaml = project.read("oxiflow.yaml");
        project.write("oxiflow.yaml", &format!("{yaml}  {off}\n  history_keep: 0\n"));
        run_to(&project, "c1");
        project.run(&["maintain"]).expect(0);
        assert_eq!(backups(&project).len(), 0, "{off}");
    }
    // Otherwise a pipeline that has ended and nothing is kept of is backed up at once.
    let project = Project::with_pipeline(PIPELINE);
    let yaml = project.read("oxiflow.yaml");
    project.write("oxiflow.yaml", &format!("{yaml}  history_keep: 0\n"));
    run_to(&project, "c1");
    assert_eq!(listed(&project), [("scheduled".to_owned(), "verified".to_owned())]);
}

#[test]
fn a_run_and_maintain_apply_the_retention_and_spare_the_newest_good_backup() {
    let project = after_run_to("c1");
    let ids: Vec<_> = (0..5).map(|_| back_up(&project)).collect();
    damage(&project, &backup_file(&ids[4]));
    let yaml = project.read("oxiflow.yaml");
    let set = |options: &str| project.write("oxiflow.yaml", &format!("{yaml}  {options}\n"));
    set("backup_keep: 3");
    insta::assert_snapshot!(story(&project, &["maintain", "--dry-run"]), @"
    exit 0
    --- stdout
    TASK  PIPELINE  TO REMOVE  TO MAKE
    backups  p  2  0
    --- stderr
    nothing was done: this was a dry run
    ");
    assert_eq!(backups(&project).len(), 5);
    // At its start a run does the same for its pipeline.
    run_to(&project, "c2");
    wait_for("the run's care", || (backups(&project).len() == 3).then_some(()));
    set("backup_retention: 1ms");
    insta::assert_snapshot!(story(&project, &["maintain"]), @"
    exit 0
    --- stdout
    TASK  PIPELINE  REMOVED  MADE
    backups  p  2  0
    ");
    let left: Vec<_> =
        backups(&project).iter().map(|file| file.file_stem().unwrap().to_owned()).collect();
    assert_eq!(
        left,
        [ids[3].as_str()],
        "the newest that verifies, and neither damaged nor older ones"
    );
}

#[test]
fn a_failure_of_the_care_is_a_warning_and_not_a_failed_run() {
    let project = Project::with_pipeline(PIPELINE);
    // A file where the folder of the backups has to be.
    project.write(".oxiflow/state/backups/p", "in the way");
    let yaml = project.read("oxiflow.yaml");
    project.write("oxiflow.yaml", &format!("{yaml}  backup_interval: 1ms\n"));
    project.write("cursor", "c1");
    let ran = project.run(&["run", "p"]).expect(0);
    assert!(ran.stderr.contains("the scheduled backup failed; the run goes on"), "{}", ran.stderr);
    assert_eq!(project.state("p").unwrap()["status"], "completed");
}
