//! States, leases and whole stores that are gone though nobody removed them with a command: what is
//! said, what is refused, and what brings them back.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use kit::Project;

const STATE: &str = ".oxiflow/state/states/p.json";

const INCREMENTAL: &str = r#"
pipeline:
  - name: a
    incremental: true
    run: |
      echo "after [$OXIFLOW_LAST_PROCESSED_ID]" >> starts
      oxide_flow progress --records 3 --last-id c3
"#;

/// A project whose pipeline `p` ran once, to its end.
fn completed(more: &str) -> Project {
    let project = Project::with_pipeline(INCREMENTAL);
    let yaml = project.read("oxiflow.yaml") + more;
    project.write("oxiflow.yaml", &yaml);
    project.run(&["run", "--quiet"]).expect(0);
    project
}

fn remove(project: &Project, file: &str) {
    std::fs::remove_file(project.path().join(file)).unwrap();
}

#[test]
fn a_state_whose_file_is_gone_is_told_everywhere_and_no_run_starts_over() {
    let project = completed("");
    remove(&project, STATE);
    let before = kit::contents(project.path());
    let story = |arguments: &[&str]| project.run(arguments).story(&project);
    insta::assert_snapshot!(story(&["run"]), @"
    exit 3
    --- stderr
    ERROR [oxide_flow::state] State loss detected pipeline=p
    error: the state of pipeline `p` is lost
      caused by: nothing is stored, and history record RECORD is of TIME
    hint: bring the newest copy back with `oxide_flow state repair p`, or another with `oxide_flow state restore p --at TIME`; to begin anew without it, `oxide_flow run p --fresh`
    ");
    insta::assert_snapshot!(story(&["state", "show", "p"]), @"
    exit 3
    --- stderr
    ERROR [oxide_flow::state] State loss detected pipeline=p
    error: the state of pipeline `p` is lost
      caused by: nothing is stored, and history record RECORD is of TIME
    hint: bring the newest copy back with `oxide_flow state repair p`, or another with `oxide_flow state restore p --at TIME`; to begin anew without it, `oxide_flow run p --fresh`
    ");
    insta::assert_snapshot!(story(&["state", "list"]), @"
    exit 3
    --- stdout
    PIPELINE  STATUS  STEP  RECORDS  FAILED  SAVED  WORKER
    p  lost  -  -  -  -  -
    --- stderr
    ERROR [oxide_flow::state] State loss detected pipeline=p
    warning: `p`: the state of pipeline `p` is lost: nothing is stored, and history record RECORD is of TIME
    ");
    insta::assert_snapshot!(story(&["state", "validate", "--all"]), @"
    exit 3
    --- stdout
    p: not valid, 1 error
      error record-missing
        found  nothing
        expected  a record; history record RECORD is of TIME
        repair  restores a valid copy; without one, a person must decide
    --- stderr
    see what a repair would do with `oxide_flow state repair p --dry-run`
    ");
    insta::assert_snapshot!(story(&["state", "verify-integrity"]), @"
    exit 3
    --- stdout
    SORT  RECORDS  UNREADABLE
    backups  0  0
    history  1  0
    leases  1  0
    quarantine  0  0
    states  0  0
    usage  1  0

    lost state/p
        found  the state of pipeline `p` is lost: nothing is stored, and history record RECORD is of TIME
        remedy  oxide_flow state repair p
    --- stderr
    ERROR [oxide_flow::state] State loss detected pipeline=p
    3 records read, all whole
    lost: 1 state
    ");
    insta::assert_snapshot!(story(&["state", "backup", "p"]), @"
    exit 3
    --- stderr
    ERROR [oxide_flow::state] State loss detected pipeline=p
    error: the state of pipeline `p` is lost
      caused by: nothing is stored, and history record RECORD is of TIME
    hint: bring the newest copy back with `oxide_flow state repair p`, or another with `oxide_flow state restore p --at TIME`; to begin anew without it, `oxide_flow run p --fresh`
    ");
    insta::assert_snapshot!(story(&["state", "repair", "p", "--dry-run"]), @r#"
    exit 0
    --- stdout
      error record-missing
        found  nothing
        expected  a record; history record RECORD is of TIME
        repair  restores a valid copy; without one, a person must decide
    --- stderr
    history record RECORD takes its place: completed, 3 records, cursor "c3", saved TIME
    nothing was changed: this was a dry run
    "#);
    assert_eq!(kit::contents(project.path()), before, "nothing was changed");

    insta::assert_snapshot!(story(&["state", "repair", "p", "--yes"]), @r#"
    exit 0
    --- stdout
      error record-missing
        found  nothing
        expected  a record; history record RECORD is of TIME
        repair  restores a valid copy; without one, a person must decide
    --- stderr
    history record RECORD takes its place: completed, 3 records, cursor "c3", saved TIME
    repaired the state of `p`: completed, 3 records, now at version N
    "#);
    project.run(&["state", "validate", "--all"]).expect(0);
    project.run(&["run", "--quiet"]).expect(0);
    assert_eq!(project.read("starts"), "after []\nafter [c3]\n");
}

#[test]
fn a_lost_state_can_be_given_up() {
    let project = completed("");
    let epoch = project.state("p").unwrap()["epoch"].as_u64();
    remove(&project, STATE);
    // Not even the lease says how far the epochs have come.
    remove(&project, ".oxiflow/state/leases/p.json");
    let told = project.run(&["state", "list"]).expect(3);
    assert!(told.stdout.contains("lost"), "{}", told.stdout);
    project.run(&["run", "--fresh", "--quiet"]).expect(0);
    assert!(project.state("p").unwrap()["epoch"].as_u64() > epoch);
    project.run(&["state", "validate", "--all"]).expect(0);

    remove(&project, STATE);
    insta::assert_snapshot!(project.run(&["state", "delete", "p", "--yes"]).story(&project), @"
    exit 0
    --- stderr
    ERROR [oxide_flow::state] State loss detected pipeline=p
    warning: the state of `p` is lost
    from now on it counts as deleted; its copies stay
    ");
    project.run(&["state", "list"]).expect(0);
    project.run(&["run", "--quiet"]).expect(0);
    assert_eq!(project.read("starts"), "after []\n".repeat(3));
}

#[test]
fn a_run_after_a_deletion_begins_anew_without_a_word() {
    for more in ["", "  history_keep: 0\n"] {
        let project = completed(more);
        project.run(&["state", "backup", "p"]).expect(0);
        project.run(&["state", "delete", "p", "--yes"]).expect(0);
        project.run(&["state", "verify-integrity"]).expect(0);
        let ran = project.run(&["run", "--quiet"]).expect(0);
        assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
        assert_eq!(project.read("starts"), "after []\n".repeat(2));
    }
}

#[test]
fn a_run_puts_the_last_save_back_by_itself_where_it_may_repair() {
    let project = completed("  auto_repair: true\n");
    remove(&project, STATE);
    insta::assert_snapshot!(project.run(&["run", "--quiet"]).story(&project), @r#"
    exit 0
    --- stderr
    ERROR [oxide_flow::state] State loss detected pipeline=p action="last save put back"
    warning: the state of `p` was lost, and its last save is put back from a copy
    p: run ID begins
    p: a (1 of 1) starts after c3
    p: a done in N.Ns, 3 records
    p: completed in N.Ns, 3 records
    "#);
    assert_eq!(project.read("starts"), "after []\nafter [c3]\n");
}

/// Reports `c1`, and `c2` once there is a file `go`.
const PATIENT: &str = r#"
pipeline:
  - name: a
    run: |
      echo "after [$OXIFLOW_LAST_PROCESSED_ID]" >> starts
      oxide_flow progress --records 1 --last-id c1
      until test -e go; do sleep 0.01; done
      oxide_flow progress --records 1 --last-id c2
"#;

/// A run of this pipeline whose first checkpoint is made.
fn under_way(project: &Project) -> kit::Running {
    let run = project.start_captured(&["run", "p"]);
    kit::wait_for("the first checkpoint", || {
        (project.state("p")?["last_processed_id"] == "c1").then_some(())
    });
    run
}

#[test]
fn a_state_whose_file_is_removed_during_a_run_is_stored_again_by_it() {
    let project = Project::with_pipeline(PATIENT);
    let run = under_way(&project);
    remove(&project, STATE);
    project.write("go", "");
    insta::assert_snapshot!(run.finish().story(&project), @"
    exit 0
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    WARN  [oxide_flow::state] State loss detected; the run that holds the pipeline has stored it again pipeline=p
    p: a done in N.Ns, 2 records
    p: completed in N.Ns, 2 records
    ");
    assert_eq!(project.state("p").unwrap()["records_processed"], 2);
    project.run(&["state", "validate", "p"]).expect(0);
}

#[test]
fn a_run_whose_whole_store_is_lost_is_resumed_from_what_it_spooled() {
    let project = Project::with_pipeline(PATIENT);
    let run = under_way(&project);
    // A heartbeat would put a file into a folder that is about to be removed.
    run.while_suspended(|| {
        std::fs::remove_dir_all(project.path().join(".oxiflow/state")).unwrap();
    });
    project.write("go", "");
    let ended = run.finish().expect(1);
    assert!(ended.stderr.contains("the state is spooled in"), "{}", ended.stderr);
    let story = |arguments: &[&str]| hide_spool(&project.run(arguments).story(&project));
    insta::assert_snapshot!(story(&["state", "show", "p"]), @"
    exit 1
    --- stderr
    warning: the store does not have N of run ID, spooled on this machine TIME (AGO) in DIR/.oxiflow/spool/p/N
    the next `oxide_flow run p` on this machine puts it there first, or now: `oxide_flow state push DIR/.oxiflow/spool/p/N`
    error: pipeline `p` has no state
    hint: one is spooled on this machine, and not in the store
    ");
    insta::assert_snapshot!(story(&["run", "p"]), @r#"
    exit 0
    --- stderr
    ERROR [oxide_flow::state] State loss detected pipeline=p action="spooled state put back"
    p: put the spooled state of run ID into the store: completed, 2 records
    p: run ID resumes (completed) at version N, 2 records
    p: a was done before
    p: completed in N.Ns, 2 records
    "#);
    assert_eq!(project.read("starts"), "after []\n", "the step is not done again");
    assert_eq!(project.state("p").unwrap()["records_processed"], 2);
    project.run(&["state", "validate", "p"]).expect(0);
}

/// Without the numbers of saves, and without log lines of the outage, whose number depends on time.
fn hide_spool(story: &str) -> String {
    let number = regex::Regex::new(r"\b\d+-\d+\.oxiflow|\bsave \d+").unwrap();
    number.replace_all(story, "N").into_owned()
}

#[test]
fn without_backups_the_history_is_what_brings_a_lost_state_back() {
    let project = completed("");
    remove(&project, STATE);
    let story = |arguments: &[&str]| project.run(arguments).story(&project);
    let restore = ["state", "restore", "p", "--backup", "latest", "--yes"];
    insta::assert_snapshot!(story(&restore), @"
    exit 1
    --- stderr
    error: cannot restore pipeline `p`
      caused by: pipeline `p` has no backup
    hint: its history has copies too: `oxide_flow state history p` shows them, and `oxide_flow state restore p --at 0s` goes back to the newest
    ");
    insta::assert_snapshot!(story(&["state", "restore", "p", "--at", "0s", "--yes"]), @"
    exit 0
    --- stderr
    history record RECORD is the state of `p` at TIME (AGO) (run: all steps are done): completed, 3 records
    pipeline `p` has no state now; this gives it one
    restored `p` from history record RECORD: completed, 3 records, now at version N
    ");
    project.run(&["state", "validate", "p"]).expect(0);
}

#[test]
fn a_pipeline_that_there_is_nothing_of_is_not_found() {
    let project = completed("");
    let commands = [
        &["state", "unlock", "nosuch", "--force"][..],
        &["state", "clear-cache", "nosuch"],
        &["state", "cleanup", "--stale", "--pipeline", "nosuch"],
        &["worker", "list", "--pipeline", "nosuch"],
    ];
    for command in commands {
        let told = project.run(command).expect(1).stderr;
        assert!(told.contains("error: there is no pipeline `nosuch`"), "{command:?}: {told}");
    }
    let lock = ["state", "lock", "nosuch", "--reason", "it comes tomorrow"];
    insta::assert_snapshot!(project.run(&lock).story(&project), @"
    exit 0
    --- stderr
    warning: there is no pipeline `nosuch`: it has no file, and nothing is stored
    locked pipeline `nosuch` until TIME (in 1h); unlock it with `oxide_flow state unlock nosuch`
    ");
    project.run(&["state", "unlock", "nosuch"]).expect(0);
    project.write("pipelines/new.yaml", INCREMENTAL);
    let told = project.run(&["state", "unlock", "new"]).expect(0).stderr;
    assert_eq!(told, "nobody holds pipeline `new`\n");
}
