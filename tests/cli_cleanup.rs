//! Deleting states, cleaning up what is stale, and doing both when the disk is full.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use kit::disk::Small;
use kit::{Project, Ran, wait_for};
use serde_json::{Value, json};

/// Three records; fails while there is a file `broken`.
const PIPELINE: &str = "pipeline: [{name: a, run: 'oxide_flow progress --records 3 --last-id c1 && test ! -e broken'}]\n";

/// A project with pipelines that ended well (`done`), failed (`failed`), and keep their cursor for
/// the next run (`daily`).
fn project() -> Project {
    let project = Project::with_pipeline(PIPELINE);
    project.write("pipelines/done.yaml", PIPELINE);
    project.write("pipelines/failed.yaml", PIPELINE);
    project.write(
        "pipelines/daily.yaml",
        &PIPELINE.replace("name: a,", "name: a, incremental: true,"),
    );
    for name in ["done", "daily"] {
        project.run(&["run", name]).expect(0);
    }
    project.write("broken", "");
    project.run(&["run", "failed"]).expect(1);
    std::fs::remove_file(project.path().join("broken")).unwrap();
    project
}

fn story(project: &Project, arguments: &[&str]) -> String {
    // Sizes follow from the lengths of ids and times.
    let sizes = regex::Regex::new(r"\d+\.\d KiB|[\d,]+ bytes?\b").unwrap();
    sizes.replace_all(&project.run(arguments).story(project), "SIZE").into_owned()
}

fn data(ran: &Ran, kind: &str) -> Value {
    let mut document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["kind"], format!("oxide_flow.{kind}/1"));
    document["data"].take()
}

/// The pipelines that have a state.
fn states(project: &Project) -> Vec<String> {
    let ran = project.run(&["state", "list", "--json"]);
    let rows = data(&ran, "state-list");
    rows.as_array()
        .unwrap()
        .iter()
        .map(|row| row["pipeline"].as_str().unwrap().to_owned())
        .collect()
}

/// How many records are kept of a pipeline in a folder of the store.
fn kept(project: &Project, kind: &str, pipeline: &str) -> usize {
    let folder = project.path().join(".oxiflow/state").join(kind).join(pipeline);
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn a_deleted_state_comes_back_from_its_backup() {
    let project = project();
    let before = project.state("failed").unwrap();
    let mut told = story(&project, &["state", "delete", "failed"]);
    assert!(project.state("failed").is_some());
    told += &story(&project, &["state", "delete", "failed", "--yes"]);
    told += &story(&project, &["state", "show", "failed"]);
    told += &story(&project, &["state", "delete", "failed", "--yes"]);
    insta::assert_snapshot!(told, @"
    exit 2
    --- stderr
    this deletes the state of `failed`: failed, 3 records, saved TIME (AGO)
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    exit 0
    --- stderr
    this deletes the state of `failed`: failed, 3 records, saved TIME (AGO)
    the state before is kept as backup BACKUP
    deleted the state of `failed`
    `oxide_flow state restore failed --backup latest` brings it back
    exit 1
    --- stderr
    error: pipeline `failed` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    exit 1
    --- stderr
    error: pipeline `failed` has no state to delete
    hint: `oxide_flow state list` shows those that have one
    ");
    let ran = project.run(&["state", "history", "failed", "--json"]).expect(0);
    let newest = data(&ran, "state-history")[0].clone();
    assert_eq!((&newest["kind"], &newest["has_state"]), (&json!("delete"), &json!(false)));
    project.run(&["state", "restore", "failed", "--backup", "latest", "--yes"]).expect(0);
    let after = project.state("failed").unwrap();
    assert_eq!(after["step_states"], before["step_states"]);
    assert!(after["epoch"].as_u64() > before["epoch"].as_u64());
    assert!(after["version"].as_u64() > before["version"].as_u64());
}

#[test]
fn a_state_is_deleted_with_everything_that_is_kept_of_it() {
    let project = project();
    project.run(&["state", "backup", "done"]).expect(0);
    insta::assert_snapshot!(story(&project, &["state", "delete", "done", "--backups", "--yes"]), @"
    exit 0
    --- stderr
    this deletes the state of `done`: completed, 3 records, saved TIME (AGO)
    this deletes all its backups, quarantined bytes and history too
    deleted the state of `done`
    deleted 2 records of backups, quarantined bytes and history
    ");
    for kind in ["backups", "history"] {
        assert_eq!(kept(&project, kind, "done"), 0, "{kind}");
    }
    // The lease stays, so the epoch goes on.
    project.run(&["run", "done"]).expect(0);
    assert!(project.state("done").unwrap()["epoch"].as_u64() > Some(2));
    // What is left of a pipeline without a state can be deleted too.
    project.run(&["state", "delete", "failed", "--yes"]).expect(0);
    assert_eq!(kept(&project, "backups", "failed"), 1);
    project.run(&["state", "delete", "failed", "--backups", "--yes"]).expect(0);
    assert_eq!((kept(&project, "backups", "failed"), kept(&project, "history", "failed")), (0, 0));
}

#[test]
fn a_damaged_state_can_be_deleted_and_its_bytes_are_kept() {
    let project = project();
    project.write(".oxiflow/state/states/done.json", "garbage\n");
    insta::assert_snapshot!(story(&project, &["state", "cleanup", "--stale", "--yes"]), @"
    exit 3
    --- stderr
    left (can be resumed): `failed`; `--pipeline NAME` removes it all the same
    left (the next run starts at its cursors): `daily`; `--pipeline NAME` removes it all the same
    nothing to clean up
    error: the state of `done` is damaged, and stays
      caused by: the backend reports corrupt
      caused by: DIR/.oxiflow/state/states/done.json has no room for its footer
    hint: `oxide_flow state repair done`, `oxide_flow state restore done --at 0s`, or `oxide_flow state delete done`
    ");
    insta::assert_snapshot!(story(&project, &["state", "delete", "done", "--yes"]), @r#"
    exit 0
    --- stderr
    warning: the state of `done` is damaged: the backend reports corrupt: DIR/.oxiflow/state/states/done.json has no room for its footer
    this deletes it
    WARN  [oxide_flow::state] Damaged state quarantined pipeline=done quarantine_id="BACKUP" reason="before delete"
    the damaged bytes are kept in quarantine as BACKUP
    deleted the state of `done`
    "#);
    assert!(project.state("done").is_none());
    project.run(&["run", "done"]).expect(0);
}

#[test]
fn a_state_with_a_live_worker_is_neither_deleted_nor_cleaned_up() {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: 'oxide_flow progress --records 1; until test -e end; do sleep 0.01; done'}]\n",
    );
    let running = project.start(&["run", "p"]);
    wait_for("the step", || (project.state("p")?["records_processed"] == 1).then_some(()));
    let mut told = story(&project, &["state", "delete", "p", "--yes"]);
    told += &story(&project, &["state", "cleanup", "--stale", "--pipeline", "p", "--yes"]);
    insta::assert_snapshot!(told, @"
    exit 4
    --- stderr
    this deletes the state of `p`: running, 1 record, saved TIME (AGO)
    error: cannot delete the state of `p`
      caused by: pipeline `p` is held by worker `WORKER` (pid PID on HOST, run, since TIME)
    hint: try again when it is done, or stop it with `oxide_flow worker stop WORKER`
    exit 0
    --- stderr
    left (held by a worker or locked): `p`
    nothing to clean up
    ");
    project.write("end", "");
    running.finish().expect(0);
    project.run(&["state", "cleanup", "--stale", "--yes"]).expect(0);
    assert_eq!(states(&project), [""; 0]);
}

#[test]
fn only_stale_states_are_removed_and_each_is_backed_up() {
    let project = project();
    let mut told = story(&project, &["state", "cleanup", "--stale", "--dry-run"]);
    told += &story(&project, &["state", "cleanup", "--stale"]);
    assert_eq!(states(&project), ["daily", "done", "failed"]);
    told += &story(&project, &["state", "cleanup", "--stale", "--yes"]);
    insta::assert_snapshot!(told, @"
    exit 0
    --- stdout
    STALE STATE  STATUS  RECORDS  SAVED
    done  completed  3  TIME (AGO)
    --- stderr
    left (can be resumed): `failed`; `--pipeline NAME` removes it all the same
    left (the next run starts at its cursors): `daily`; `--pipeline NAME` removes it all the same
    nothing was removed: this was a dry run
    exit 2
    --- stdout
    STALE STATE  STATUS  RECORDS  SAVED
    done  completed  3  TIME (AGO)
    --- stderr
    left (can be resumed): `failed`; `--pipeline NAME` removes it all the same
    left (the next run starts at its cursors): `daily`; `--pipeline NAME` removes it all the same
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    exit 0
    --- stdout
    STALE STATE  STATUS  RECORDS  SAVED
    done  completed  3  TIME (AGO)
    --- stderr
    left (can be resumed): `failed`; `--pipeline NAME` removes it all the same
    left (the next run starts at its cursors): `daily`; `--pipeline NAME` removes it all the same
    removed 1 state
    the state of `done` is kept as backup BACKUP
    ");
    assert_eq!(states(&project), ["daily", "failed"]);
    assert_eq!(kept(&project, "backups", "done"), 1);
    // Naming them says that they are meant.
    let ran = project
        .run(&[
            "state",
            "cleanup",
            "--stale",
            "--pipeline",
            "failed",
            "--pipeline",
            "daily",
            "--yes",
            "--json",
        ])
        .expect(0);
    let report = data(&ran, "state-cleanup");
    let rows: Vec<_> = report["states"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["pipeline"].as_str().unwrap(), row["action"].as_str().unwrap()))
        .collect();
    assert_eq!(rows, [("daily", "removed"), ("failed", "removed")]);
    assert!(report["states"][0]["backup_id"].is_string(), "{report}");
    assert_eq!(states(&project), [""; 0]);
    project.run(&["state", "restore", "daily", "--backup", "latest", "--yes"]).expect(0);
    assert_eq!(project.state("daily").unwrap()["last_processed_id"], "c1");
}

#[test]
fn only_what_is_older_is_removed() {
    let project = project();
    insta::assert_snapshot!(story(&project, &["state", "cleanup", "--older-than", "7d", "--yes"]), @"
    exit 0
    --- stderr
    nothing to clean up
    ");
    assert_eq!(states(&project), ["daily", "done", "failed"]);
    let ran =
        project.run(&["state", "cleanup", "--older-than", "1ms", "--no-backup", "--yes"]).expect(0);
    assert!(ran.stderr.contains("removed 1 state\n"), "{}", ran.stderr);
    assert_eq!(states(&project), ["daily", "failed"]);
    assert_eq!(kept(&project, "backups", "done"), 0);
}

#[test]
fn old_copies_are_removed_and_the_newest_good_backup_stays() {
    let project = project();
    for _ in 0..3 {
        project.run(&["state", "backup", "done"]).expect(0);
    }
    let mut told = story(&project, &["state", "cleanup", "--backups", "--yes"]);
    told += &story(&project, &["state", "cleanup", "--backups", "--older-than", "3d", "--yes"]);
    told +=
        &story(&project, &["state", "cleanup", "--backups", "--older-than", "1ms", "--dry-run"]);
    assert_eq!(kept(&project, "backups", "done"), 3);
    told += &story(
        &project,
        &["state", "cleanup", "--backups", "--older-than", "1ms", "--pipeline", "done", "--yes"],
    );
    insta::assert_snapshot!(told, @"
    exit 0
    --- stderr
    nothing to clean up
    exit 0
    --- stderr
    nothing to clean up
    exit 0
    --- stdout
    OLD COPIES  PIPELINE  NUMBER  SIZE
    history  daily  1  -
    backups  done  2  SIZE
    history  done  1  -
    history  failed  1  -
    --- stderr
    nothing was removed: this was a dry run
    exit 0
    --- stdout
    OLD COPIES  PIPELINE  NUMBER  SIZE
    backups  done  2  SIZE
    history  done  1  -
    --- stderr
    removed 3 records of backups and history
    ");
    assert_eq!((kept(&project, "backups", "done"), kept(&project, "history", "done")), (1, 0));
    assert_eq!(kept(&project, "history", "failed"), 1, "the others were not named");
    assert_eq!(states(&project), ["daily", "done", "failed"], "states are left alone");
    project.run(&["state", "restore", "done", "--backup", "latest", "--yes"]).expect(0);
}

#[test]
fn a_person_who_has_locked_a_pipeline_keeps_its_state() {
    let project = project();
    let lock = ["state", "lock", "done", "--reason", "moving the warehouse"];
    project.run(&lock).expect(0);
    let told = story(&project, &["state", "cleanup", "--stale", "--yes"]);
    insta::assert_snapshot!(told, @"
    exit 0
    --- stderr
    left (held by a worker or locked): `done`
    left (can be resumed): `failed`; `--pipeline NAME` removes it all the same
    left (the next run starts at its cursors): `daily`; `--pipeline NAME` removes it all the same
    nothing to clean up
    ");
    assert_eq!(states(&project), ["daily", "done", "failed"]);
}

#[test]
fn a_store_that_is_full_to_the_brim_is_cleaned_up_and_works_again() {
    let project = Project::with_pipeline(PIPELINE);
    for name in ["done", "other"] {
        project.write(&format!("pipelines/{name}.yaml"), PIPELINE);
    }
    let Some(disk) = Small::mount(&project.path().join(".oxiflow/state"), "64k") else { return };
    project.run(&["run", "done"]).expect(0);
    project.run(&["run", "p"]).expect(0);
    disk.fill();
    let before = project.read(".oxiflow/state/states/done.json");
    // There is no room for the backup, nor for the lease that comes first.
    let told = story(&project, &["state", "cleanup", "--stale", "--pipeline", "done", "--yes"]);
    insta::assert_snapshot!(told, @"
    exit 1
    --- stdout
    STALE STATE  STATUS  RECORDS  SAVED
    done  completed  3  TIME (AGO)
    --- stderr
    removed 0 states
    error: cannot remove the state of `done`
      caused by: cannot write the lease of `done`
      caused by: the backend reports no space
      caused by: cannot write DIR/.oxiflow/state/leases/.done.json.tmp: No space left on device (os error 28)
    hint: the store is too full to keep a copy first; `--no-backup` keeps none
    ");
    assert_eq!(project.read(".oxiflow/state/states/done.json"), before, "the state is intact");
    project.run(&["run", "other"]).expect(1);
    let told = story(
        &project,
        &["state", "cleanup", "--stale", "--pipeline", "done", "--no-backup", "--yes"],
    );
    insta::assert_snapshot!(told, @"
    exit 0
    --- stdout
    STALE STATE  STATUS  RECORDS  SAVED
    done  completed  3  TIME (AGO)
    --- stderr
    WARN  [oxide_flow::state] The store is too full for a lease; deleting by compare-and-swap alone pipeline=done
    removed 1 state
    ");
    assert_eq!(states(&project), ["p"]);
    // One state made room for little. What is kept of it goes without a backup too.
    project.run(&["state", "delete", "done", "--backups", "--yes"]).expect(0);
    project.run(&["state", "cleanup", "--backups", "--older-than", "1ms", "--yes"]).expect(0);
    project.run(&["run", "p"]).expect(0);
    assert_eq!(project.state("p").unwrap()["status"], "completed");
}

#[test]
fn old_backups_make_room_for_a_run_before_it_gives_up() {
    let project = Project::new(
        "state: {heartbeat_interval: 100ms, checkpoint_interval: 1h, lease_ttl: 60s, cleanup_interval: 1h}\n",
    );
    project.write(
        "pipelines/p.yaml",
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done; \
         oxide_flow progress --records 7 --last-id c7'}]\n",
    );
    let Some(disk) = Small::mount(&project.path().join(".oxiflow/state"), "64k") else { return };
    project.write("go", "");
    project.run(&["run", "p"]).expect(0);
    const USAGE: &str = ".oxiflow/state/other/usage/store.json";
    for name in ["go", "ready", USAGE] {
        std::fs::remove_file(project.path().join(name)).unwrap();
    }
    let running = project.start_captured(&["run", "p"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    // The run looks for old copies itself once it has begun; measuring the store is the end of that.
    wait_for("the care of the run", || project.path().join(USAGE).exists().then_some(()));
    // One that need not be kept, and one that must.
    let id = project.run(&["state", "backup", "p"]).expect(0).stdout.trim().to_owned();
    assert_eq!(kept(&project, "backups", "p"), 1);
    age_backup(&project, &id);
    project.run(&["state", "backup", "p"]).expect(0);
    running.while_suspended(|| disk.fill());
    project.write("go", "");
    let ran = running.finish().expect(0);
    assert!(ran.stderr.contains("copies that need not be kept were removed"), "{}", ran.stderr);
    let state = project.state("p").unwrap();
    assert_eq!(
        (&state["status"], &state["last_processed_id"]),
        (&json!("completed"), &json!("c7"))
    );
    assert_eq!(kept(&project, "backups", "p"), 1, "the newest stays");
}

/// Gives a backup an id of long ago. It does not verify any more, which is no matter for its age.
fn age_backup(project: &Project, id: &str) {
    let folder = project.path().join(".oxiflow/state/backups/p");
    let old = format!("20200101T000000.000Z{}", &id[id.rfind('-').unwrap()..]);
    std::fs::rename(folder.join(format!("{id}.json")), folder.join(format!("{old}.json"))).unwrap();
}
