//! `state validate`, `state verify-integrity` and `state repair`: what they say, change and refuse.
//! It is long because most of it is what they print.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::path::PathBuf;

use kit::{Project, wait_for};
use serde_json::{Value, json};

const STATE: &str = ".oxiflow/state/states/p.json";
const LEASE: &str = ".oxiflow/state/leases/p.json";

const PIPELINE: &str = r#"
pipeline:
  - {name: a, run: "oxide_flow progress --records 3 --last-id c3 --total 9"}
  - {name: b, run: "test -e go"}
"#;

/// A project whose pipeline `p` failed at its second step.
fn failed() -> Project {
    let project = Project::with_pipeline(PIPELINE);
    project.run(&["run", "--quiet"]).expect(1);
    project
}

/// Changes bytes of a file in place, so that nothing in it fits its checksums any more.
fn damage(project: &Project, file: &str, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let text = project.read(file);
    assert!(text.contains(from), "{text}");
    std::fs::write(project.path().join(file), text.replacen(from, to, 1)).unwrap();
}

fn remove(project: &Project, folder: &str) {
    std::fs::remove_dir_all(project.path().join(".oxiflow/state").join(folder)).unwrap_or_default();
}

/// The files of one sort of record, the oldest first.
fn records(project: &Project, folder: &str) -> Vec<PathBuf> {
    let folder = project.path().join(".oxiflow/state").join(folder);
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Puts a state in the place of the stored one as it is, with every checksum right.
fn put(project: &Project, change: impl FnOnce(&mut Value)) {
    let mut state = project.state("p").unwrap();
    change(&mut state);
    project.write("in.json", &state.to_string());
    let import = ["state", "import", "p", "--file", "in.json", "--yes", "--ignore-rules"];
    project.run(&import).expect(0);
}

#[test]
fn a_valid_state_is_left_alone() {
    let project = failed();
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["state", "validate", "p"]).story(&project), @"
    exit 0
    --- stdout
    p: valid
    ");
    insta::assert_snapshot!(project.run(&["state", "validate", "--all", "--json"]).story(&project), @r#"
    exit 0
    --- stdout
    {
      "kind": "oxide_flow.state-validate/1",
      "data": [
        {
          "pipeline": "p",
          "valid": true,
          "errors": 0,
          "warnings": 0,
          "findings": [],
          "notes": [],
          "error": null
        }
      ]
    }
    "#);
    insta::assert_snapshot!(project.run(&["state", "repair", "p", "--yes"]).story(&project), @"
    exit 0
    --- stderr
    the state of `p` is valid; there is nothing to repair
    ");
    insta::assert_snapshot!(project.run(&["state", "verify-integrity"]).story(&project), @"
    exit 0
    --- stdout
    SORT  RECORDS  UNREADABLE
    backups  0  0
    history  1  0
    leases  1  0
    quarantine  0  0
    states  1  0
    usage  1  0
    --- stderr
    4 records read, all whole
    ");
    assert_eq!(kit::contents(project.path()), before);
    insta::assert_snapshot!(project.run(&["state", "validate", "nosuch"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `nosuch` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    ");
    insta::assert_snapshot!(project.run(&["state", "repair", "nosuch"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `nosuch` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    ");
    insta::assert_snapshot!(project.run(&["state", "validate"]).story(&project), @"
    exit 2
    --- stderr
    error: the following required arguments were not provided:
      <PIPELINE|--all>

    Usage: oxide_flow state validate <PIPELINE|--all>

    For more information, try '--help'.
    ");
}

#[test]
fn what_fails_its_checksum_is_replaced_by_the_newest_copy() {
    let project = failed();
    let version = project.state("p").unwrap()["version"].as_u64();
    damage(&project, STATE, "\"records_processed\":3", "\"records_processed\":7");
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["state", "validate", "p"]).story(&project), @"
    exit 3
    --- stdout
    p: not valid, 1 error
      error record-checksum
        found  the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
        expected  the bytes that were written
        repair  restores a valid copy; without one, a person must decide
    --- stderr
    see what a repair would do with `oxide_flow state repair p --dry-run`
    ");
    insta::assert_snapshot!(project.run(&["state", "repair", "p", "--dry-run"]).story(&project), @r#"
    exit 0
    --- stdout
      error record-checksum
        found  the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
        expected  the bytes that were written
        repair  restores a valid copy; without one, a person must decide
    FIELD  NOW  THEN
    records_processed  7  3
    --- stderr
    history record RECORD takes its place: failed, 3 records, cursor "c3", saved TIME
    nothing was changed: this was a dry run
    "#);
    insta::assert_snapshot!(project.run(&["state", "repair", "p"]).story(&project), @r#"
    exit 2
    --- stdout
      error record-checksum
        found  the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
        expected  the bytes that were written
        repair  restores a valid copy; without one, a person must decide
    FIELD  NOW  THEN
    records_processed  7  3
    --- stderr
    history record RECORD takes its place: failed, 3 records, cursor "c3", saved TIME
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    "#);
    assert_eq!(kit::contents(project.path()), before, "nothing was changed");
    let damaged = project.read(STATE);
    insta::assert_snapshot!(project.run(&["state", "repair", "p", "--yes"]).story(&project), @r#"
    exit 0
    --- stdout
      error record-checksum
        found  the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
        expected  the bytes that were written
        repair  restores a valid copy; without one, a person must decide
    FIELD  NOW  THEN
    records_processed  7  3
    --- stderr
    history record RECORD takes its place: failed, 3 records, cursor "c3", saved TIME
    WARN  [oxide_flow::state] Damaged state quarantined pipeline=p quarantine_id="BACKUP" reason="before repair"
    the damaged bytes are kept in quarantine as BACKUP
    repaired the state of `p`: failed, 3 records, now at version N
    "#);
    insta::assert_snapshot!(project.run(&["state", "validate", "p"]).story(&project), @"
    exit 0
    --- stdout
    p: valid
    ");
    let state = project.state("p").unwrap();
    assert_eq!(state["records_processed"], 3);
    assert_eq!(state["version"].as_u64(), version.map(|version| version + 1));
    // The bytes that were there can be had.
    let kept = records(&project, "other/quarantine/p");
    let id = kept[0].file_stem().unwrap().to_str().unwrap();
    let arguments = ["state", "export", "p", "--quarantined", id, "--output", "damaged.bin"];
    insta::assert_snapshot!(project.run(&arguments).story(&project), @"
    exit 0
    --- stderr
    wrote damaged.bin, what `state/p` held: the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
    ");
    let exported = project.read("damaged.bin");
    assert!(damaged.starts_with(&exported) && exported.contains("\"records_processed\":7"));
    insta::assert_snapshot!(project.run(&["state", "export", "p", "--quarantined", "../x"]).story(&project), @"
    exit 1
    --- stderr
    error: pipeline `p` has nothing in quarantine as `../x`
    hint: the newest there: BACKUP
    ");
    // A second repair has nothing to do, and the run goes on.
    project.run(&["state", "repair", "p"]).expect(0);
    project.write("go", "");
    project.run(&["run"]).expect(0);
}

#[test]
fn a_damaged_copy_is_passed_over_for_an_older_one() {
    let project = failed();
    project.run(&["run", "--quiet"]).expect(1);
    let copies = records(&project, "history/p");
    assert_eq!(copies.len(), 2);
    std::fs::write(&copies[1], "gone").unwrap();
    project.write(STATE, "gone");
    let ran = project.run(&["state", "repair", "p", "--yes", "--json"]).expect(0);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let oldest = copies[0].file_stem().unwrap().to_str().unwrap();
    assert_eq!(report["data"]["source"], format!("history record {oldest}"));
    assert_eq!(report["data"]["outcome"], "repaired");
    assert!(ran.stderr.is_empty() || ran.stderr.contains("repaired the state"), "{}", ran.stderr);
    let losses = report["data"]["losses"][0].as_str().unwrap();
    assert!(losses.starts_with("what was saved after history record"), "{losses}");
}

#[test]
fn what_is_around_a_whole_body_is_mended_without_a_loss() {
    let project = failed();
    let before = project.state("p").unwrap();
    remove(&project, "history");
    damage(&project, STATE, "\"codec\":\"json\"", "\"codec\":\"jsom\"");
    insta::assert_snapshot!(project.run(&["state", "repair", "p", "--yes"]).story(&project), @r#"
    exit 0
    --- stdout
      error record-envelope
        found  the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
        expected  the bytes that were written
        repair  writes the state again under a newer lease
    --- stderr
    the record itself says what was written; it is mended: failed, 3 records, cursor "c3", saved TIME
    no field changes, as far as it can be told
    WARN  [oxide_flow::state] Damaged state quarantined pipeline=p quarantine_id="BACKUP" reason="before repair"
    the damaged bytes are kept in quarantine as BACKUP
    repaired the state of `p`: failed, 3 records, now at version N
    "#);
    let mut after = project.state("p").unwrap();
    assert!(after["version"].as_u64() > before["version"].as_u64());
    after["version"] = before["version"].clone();
    after["epoch"] = before["epoch"].clone();
    assert_eq!(after, before);
}

#[test]
fn what_cannot_be_verified_is_kept_only_when_a_person_accepts_it() {
    let project = failed();
    remove(&project, "history");
    damage(&project, STATE, "\"records_processed\":3", "\"records_processed\":7");
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["state", "repair", "p", "--yes"]).story(&project), @r#"
    exit 3
    --- stdout
      error record-checksum
        found  the backend reports corrupt: DIR/.oxiflow/state/states/p.json failed its checksum
        expected  the bytes that were written
        repair  restores a valid copy; without one, a person must decide
    FIELD  KEPT, UNVERIFIED
    run_id  "ID"
    status  "failed"
    current_step  "b"
    last_processed_id  "c3"
    records_processed  7
    step_states.a.status  "completed"
    step_states.a.last_processed_id  "c3"
    step_states.a.batch_number  1
    step_states.a.records_processed  3
    step_states.b.status  "failed"
    step_states.b.last_processed_id  ""
    step_states.b.batch_number  0
    step_states.b.records_processed  0
    --- stderr
    there is no valid copy; what is left of the record is kept, unverified: failed, 7 records, cursor "c3", saved TIME
    warning: nothing of it is certain: the damage may have changed any field
    no field changes, as far as it can be told
    error: what is left of the state of `p` cannot be verified
    hint: a wrong cursor makes a step skip data or do it again: compare the fields above with what the steps wrote, then keep them with `oxide_flow state repair p --accept-unverified`, or start over with `oxide_flow run p --fresh`
    "#);
    assert_eq!(kit::contents(project.path()), before);
    let accepted = ["state", "repair", "p", "--yes", "--accept-unverified"];
    let told = project.run(&accepted).expect(0).stderr;
    insta::assert_snapshot!(kit::hide_changing(told.lines().last().unwrap()), @"repaired the state of `p`: failed, 7 records, now at version N");
    assert_eq!(project.state("p").unwrap()["records_processed"], 7);
}

#[test]
fn where_nothing_is_left_a_person_is_told_what_to_do() {
    let project = failed();
    remove(&project, "history");
    project.write(STATE, "gone");
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["state", "repair", "p", "--yes"]).story(&project), @"
    exit 3
    --- stdout
      error record-truncated
        found  the backend reports corrupt: DIR/.oxiflow/state/states/p.json has no room for its footer
        expected  a whole record
        repair  restores a valid copy; without one, a person must decide
    --- stderr
    error: cannot repair the state of `p`: nothing of the state can be read, and there is no valid copy
    hint: by hand: look for a backup with `oxide_flow state list-backups p` and put it back with `oxide_flow state restore p --backup ID`; or put back an export with `oxide_flow state import p --file FILE`; or start over with `oxide_flow run p --fresh`
    ");
    assert_eq!(kit::contents(project.path()), before);
    // What it names works.
    project.write("go", "");
    project.run(&["run", "--fresh"]).expect(0);
    project.run(&["state", "validate", "p"]).expect(0);
}

#[test]
fn a_state_that_contradicts_itself_is_mended_field_by_field() {
    let project = failed();
    put(&project, |state| {
        state["started_at"] = json!("2126-01-01T00:00:00Z");
        state["current_step"] = json!("nosuch");
        state["records_processed"] = json!(1);
        state["worker_id"] = json!("nobody");
        state["estimated_completion"] = json!("2026-01-01T00:00:00Z");
    });
    let hide = |story: String| {
        let times = regex::Regex::new(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?").unwrap();
        times.replace_all(&story, "TIME").into_owned()
    };
    insta::assert_snapshot!(hide(project.run(&["state", "validate", "p"]).story(&project)), @r#"
    exit 3
    --- stdout
    p: not valid, 4 errors
      error current-step
        field  current_step
        found  "nosuch"
        expected  one of the steps
        repair  sets current_step = ""; what was there is lost
      error timestamp-in-future
        field  started_at
        found  "TIME"
        expected  a time before "TIME"
        repair  sets started_at = "TIME"; what was there is lost
      error estimate-without-run
        field  estimated_completion
        found  "TIME"
        expected  null, since the run is failed
        repair  sets estimated_completion = null
      error step-counters
        field  records_processed
        found  1
        expected  at least 3, as its steps have counted
        repair  sets records_processed = 3
    --- stderr
    see what a repair would do with `oxide_flow state repair p --dry-run`
    "#);
    insta::assert_snapshot!(hide(project.run(&["state", "repair", "p", "--yes"]).story(&project)), @r#"
    exit 0
    --- stdout
      error current-step
        field  current_step
        found  "nosuch"
        expected  one of the steps
        repair  sets current_step = ""; what was there is lost
      error timestamp-in-future
        field  started_at
        found  "TIME"
        expected  a time before "TIME"
        repair  sets started_at = "TIME"; what was there is lost
      error estimate-without-run
        field  estimated_completion
        found  "TIME"
        expected  null, since the run is failed
        repair  sets estimated_completion = null
      error step-counters
        field  records_processed
        found  1
        expected  at least 3, as its steps have counted
        repair  sets records_processed = 3
    FIELD  NOW  THEN
    current_step  "nosuch"  ""
    estimated_completion  "TIME"  null
    records_processed  1  3
    started_at  "TIME"  "TIME"
    --- stderr
    the record itself says what was written; it is mended: failed, 3 records, cursor "c3", saved TIME
    warning: lost: what was in `current_step`
    warning: lost: what was in `started_at`
    the state before is kept as backup BACKUP
    repaired the state of `p`: failed, 3 records, now at version N
    "#);
    insta::assert_snapshot!(project.run(&["state", "validate", "p"]).story(&project), @"
    exit 0
    --- stdout
    p: valid
    ");
    // One backup before the import, one before the repair.
    assert_eq!(records(&project, "backups/p").len(), 2);
}

#[test]
fn an_older_record_put_back_in_its_place_is_found_out() {
    let project = failed();
    let older = std::fs::read(project.path().join(STATE)).unwrap();
    project.run(&["run", "--quiet"]).expect(1);
    let newer = project.state("p").unwrap();
    std::fs::write(project.path().join(STATE), older).unwrap();
    let ran = project.run(&["state", "validate", "p"]).expect(3);
    assert!(ran.stdout.contains("version-went-back"), "{}", ran.stdout);
    project.run(&["state", "repair", "p", "--yes"]).expect(0);
    assert_eq!(project.state("p").unwrap()["errors"], newer["errors"]);
}

#[test]
fn a_repair_is_refused_while_a_worker_lives() {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    let running = project.start(&["run"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    damage(&project, STATE, "\"status\":\"running\"", "\"status\":\"rumming\"");
    let repair = ["state", "repair", "p", "--yes", "--accept-unverified"];
    insta::assert_snapshot!(
        project.run(&repair).expect(4).stderr.lines().skip(3).map(|line| kit::hide_changing(line) + "\n").collect::<String>(), @"
    error: pipeline `p` is held by worker `WORKER` (pid PID on HOST, run, since TIME)
    hint: try again when it is done, or stop it with `oxide_flow worker stop WORKER`
    "
    );
    running.kill();
    project.run(&repair).expect(0);
}

#[test]
fn a_damaged_lease_is_replaced_unless_its_worker_lives() {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    let running = project.start(&["run"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    let epoch = project.state("p").unwrap()["epoch"].as_u64().unwrap();
    // The worker renews it again and again; suspended, it lives and does not.
    running.suspend();
    damage(&project, LEASE, "\"purpose\":\"run\"", "\"purpose\":\"ruN\"");
    insta::assert_snapshot!(project.run(&["state", "repair", "p", "--yes"]).story(&project), @"
    exit 4
    --- stdout
      error lease-damaged
        found  cannot load the lease of `p`: the backend reports corrupt: DIR/.oxiflow/state/leases/p.json failed its checksum
        expected  a lease
        repair  puts a released lease in its place
    --- stderr
    the damaged lease is replaced by a released one: a worker that lives is fenced
    error: pipeline `p` seems to be held by worker `WORKER` (pid PID), which lives
    hint: stop that process, or take the lease from it with `oxide_flow state unlock p --force`
    ");
    running.kill();
    insta::assert_snapshot!(project.run(&["state", "repair", "p", "--yes"]).story(&project), @"
    exit 0
    --- stdout
      error lease-damaged
        found  cannot load the lease of `p`: the backend reports corrupt: DIR/.oxiflow/state/leases/p.json failed its checksum
        expected  a lease
        repair  puts a released lease in its place
    --- stderr
    the damaged lease is replaced by a released one: a worker that lives is fenced
    the bytes of the damaged lease are kept in quarantine as BACKUP
    repaired the lease of `p`
    ");
    project.run(&["state", "validate", "p"]).expect(0);
    project.write("go", "");
    project.run(&["run"]).expect(0);
    assert!(project.state("p").unwrap()["epoch"].as_u64().unwrap() > epoch + 1000);
}

#[test]
fn one_damaged_record_never_hides_the_others() {
    let project = failed();
    project.write("pipelines/q.yaml", PIPELINE);
    project.run(&["run", "q", "--quiet"]).expect(1);
    project.run(&["run", "p", "--quiet", "--fresh"]).expect(1);
    project.write(STATE, "gone");
    project.write(LEASE, "gone");
    std::fs::write(&records(&project, "backups/p")[0], "gone").unwrap();
    std::fs::write(&records(&project, "history/p")[0], "gone").unwrap();
    insta::assert_snapshot!(project.run(&["state", "verify-integrity"]).story(&project), @"
    exit 3
    --- stdout
    SORT  RECORDS  UNREADABLE
    backups  1  1
    history  4  1
    leases  2  1
    quarantine  0  0
    states  2  1
    usage  1  0

    corrupt state/p
        found  cannot load the state of pipeline `p`: the backend reports corrupt: DIR/.oxiflow/state/states/p.json has no room for its footer
        remedy  oxide_flow state repair p

    corrupt lease/p
        found  cannot load the lease of `p`: the backend reports corrupt: DIR/.oxiflow/state/leases/p.json has no room for its footer
        remedy  oxide_flow state repair p

    corrupt backup/p/BACKUP
        found  cannot load backup `BACKUP` of `p`: the backend reports corrupt: DIR/.oxiflow/state/backups/p/BACKUP.json has no room for its footer
        remedy  none: it cannot be restored, and every command passes over it; take a new one with `oxide_flow state backup p`

    corrupt history/p/RECORD
        found  cannot load history record `RECORD` of `p`: the backend reports corrupt: DIR/.oxiflow/state/history/p/RECORD.json has no room for its footer
        remedy  none: no command needs it, and every command passes over it
    --- stderr
    ERROR [oxide_flow::state] State corruption detected pipeline=p
    10 records read, 4 of them cannot be used
    ");
    let ran = project.run(&["state", "verify-integrity", "--json"]).expect(3);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["data"]["problems"].as_array().unwrap().len(), 4);
    insta::assert_snapshot!(project.run(&["state", "validate", "--all"]).story(&project), @"
    exit 3
    --- stdout
    p: not valid, 2 errors
      error record-truncated
        found  the backend reports corrupt: DIR/.oxiflow/state/states/p.json has no room for its footer
        expected  a whole record
        repair  restores a valid copy; without one, a person must decide
      error lease-damaged
        found  cannot load the lease of `p`: the backend reports corrupt: DIR/.oxiflow/state/leases/p.json has no room for its footer
        expected  a lease
        repair  puts a released lease in its place
    q: valid
    --- stderr
    see what a repair would do with `oxide_flow state repair p --dry-run`
    ");
}

/// A project like [`failed`] with these lines in its `state:` section.
fn configured(lines: &str) -> Project {
    let project = failed();
    let yaml = project.read("oxiflow.yaml") + lines;
    project.write("oxiflow.yaml", &yaml);
    project
}

#[test]
fn repairs_can_be_forbidden() {
    let project = configured("  repair_enabled: false\n");
    damage(&project, STATE, "\"records_processed\":3", "\"records_processed\":7");
    insta::assert_snapshot!(project.run(&["state", "repair", "p", "--yes"]).story(&project), @"
    exit 2
    --- stderr
    error: `state.repair_enabled` is false; nothing was changed
    hint: look at it with `oxide_flow state validate p`, and set `repair_enabled: true` in oxiflow.yaml to let it be repaired
    ");
    project.run(&["run"]).expect(3);
}

#[test]
fn a_run_repairs_by_itself_what_loses_nothing_and_says_so() {
    let project = configured("  auto_repair: true\n  max_repair_attempts: 2\n");
    let flip = || damage(&project, STATE, "\"records_processed\":3", "\"records_processed\":7");
    let warned = |code| {
        let stderr = project.run(&["run", "--quiet"]).expect(code).stderr;
        let lines = stderr.lines().filter(|line| !line.starts_with("p: "));
        let told = lines.map(|line| line.to_owned() + "\n").collect::<String>();
        kit::hide_changing(&told.replace(&project.path().display().to_string(), "DIR"))
    };
    flip();
    insta::assert_snapshot!(warned(1), @r#"
    WARN  [oxide_flow::state] Damaged state quarantined pipeline=p quarantine_id="BACKUP" reason="before automatic repair"
    ERROR [oxide_flow::state] State corruption detected pipeline=p action="automatic backup created"
    warning: the state of `p` was damaged, and is repaired without a loss; the damaged bytes are kept in quarantine as BACKUP
    error: step `b` of pipeline `p` failed
      caused by: it ended with exit code 1
    hint: run `oxide_flow run p` again to resume at this step, or `oxide_flow state show p` to see what happened
    "#);
    let history = project.run(&["state", "history", "p"]).expect(0).stdout;
    assert!(history.contains("repair"), "{history}");

    // A run that ended, so nothing of this counts; and what it would lose is left to a person.
    let copies = records(&project, "history/p");
    std::fs::remove_file(copies.last().unwrap()).unwrap();
    flip();
    insta::assert_snapshot!(warned(3), @"
    warning: the state of `p` is not repaired by itself: it would lose what was saved after history record RECORD (version N, TIME); `records_processed` goes back to 3 (what is stored says 7, unverified)
    ERROR [oxide_flow::state] State corruption detected pipeline=p
    error: cannot load the state of pipeline `p`
      caused by: the backend reports corrupt
      caused by: DIR/.oxiflow/state/states/p.json failed its checksum
    hint: see what is wrong with `oxide_flow state validate p`, then mend it with `oxide_flow state repair p`, or go back with `oxide_flow state restore p --at 0s`
    ");
}

#[test]
fn a_state_that_is_damaged_again_and_again_is_left_to_a_person() {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    let yaml = project.read("oxiflow.yaml") + "  auto_repair: true\n  max_repair_attempts: 2\n";
    project.write("oxiflow.yaml", &yaml);
    let killed = || {
        std::fs::remove_file(project.path().join("ready")).unwrap_or_default();
        let running = project.start(&["run"]);
        wait_for("the step", || project.path().join("ready").exists().then_some(()));
        running.kill();
        // The body is whole, so each repair is without a loss.
        damage(&project, STATE, "\"codec\":\"json\"", "\"codec\":\"jsom\"");
    };
    for _ in 0..3 {
        killed();
    }
    let ran = project.run(&["run", "--quiet"]).expect(3);
    assert!(ran.stderr.contains("it was repaired 2 times since a run ended"), "{}", ran.stderr);
    project.run(&["state", "repair", "p", "--yes"]).expect(0);
    project.write("go", "");
    project.run(&["run"]).expect(0);
}

#[test]
fn the_documentation_names_every_rule() {
    let docs = std::fs::read_to_string(kit::repository().join("docs/cli.md")).unwrap();
    let source = kit::repository().join("host/src/model/validate/mod.rs");
    let source = std::fs::read_to_string(source).unwrap();
    let (_, rules) = source.split_once("pub enum Rule {").unwrap();
    let (rules, _) = rules.split_once("\n}").unwrap();
    let rules = rules.lines().filter_map(|line| line.trim().strip_suffix(','));
    let mut seen = 0;
    for rule in rules {
        let kebab = rule.chars().fold(String::new(), |mut name, letter| {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.extend(letter.to_lowercase());
            name
        });
        assert!(docs.contains(&format!("`{kebab}`")), "docs/cli.md does not name `{kebab}`");
        seen += 1;
    }
    assert!(seen > 20, "{seen} rules");
}
