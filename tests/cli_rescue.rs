//! A full disk: the old state stays, what was not saved is kept in a file and goes back from it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kit::disk::Small;
use kit::{Project, Ran, Running, wait_for};
use serde_json::Value;

/// Reports `c1`, and `c2` once there is a file `go`, and ends once there is a file `end`.
const STEP: &str = "
pipeline:
  - name: a
    run: |
      echo \"from $OXIFLOW_LAST_PROCESSED_ID\" >> starts
      if [ -z \"$OXIFLOW_LAST_PROCESSED_ID\" ]; then
        oxide_flow progress --records 1 --last-id c1
        until test -e go; do sleep 0.01; done
        oxide_flow progress --records 1 --last-id cursor-c2
        until test -e end; do sleep 0.01; done
      fi
";

/// Runs the pipeline until the disk is full; returns how that ended.
fn run_into_full_disk(project: &Project, disk: &Small) -> Ran {
    let temporary = project.path().join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let child = project
        .command(["run"])
        .env("TMPDIR", &temporary)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = Running::from(child);
    wait_for("the first checkpoint", || {
        (project.state("p")?["last_processed_id"] == "c1").then_some(())
    });
    running.while_suspended(|| disk.fill());
    project.write("go", "");
    wait_for_end(&mut running, disk);
    running.finish()
}

/// Waits until a run ends, on a disk that stays full whatever the run gives back.
fn wait_for_end(running: &mut Running, disk: &Small) {
    wait_for("the run to end", || {
        disk.top_up();
        running.ended()
    });
}

/// The only file in a folder of rescued states.
fn rescued(folder: &Path) -> PathBuf {
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

/// Without the names of rescue files, and without log lines: how often the lease could not be
/// renewed meanwhile is not told apart.
fn hide_name(story: &str) -> String {
    let pattern = regex::Regex::new(r"p-\d{8}T\d{6}Z-[0-9a-z]{6}|(?m)^WARN .*\n").unwrap();
    let replace = |found: &regex::Captures<'_>| {
        if found[0].starts_with('p') { "RESCUED".to_owned() } else { String::new() }
    };
    pattern.replace_all(story, replace).into_owned()
}

/// A project whose run could not save `cursor-c2`, with room again, and the rescue file.
fn after_full_disk(configuration: &str) -> Option<(Project, Small, PathBuf, Ran)> {
    let project = Project::with_pipeline(STEP);
    let yaml = project.read("oxiflow.yaml") + configuration;
    project.write("oxiflow.yaml", &yaml);
    project.write("key", &"07".repeat(32));
    let key = project.path().join("key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let disk = Small::mount(&project.path().join(".oxiflow/state"), "64k")?;
    let ran = run_into_full_disk(&project, &disk);
    assert_eq!(project.state("p").unwrap()["last_processed_id"], "c1", "the old state is intact");
    disk.make_room();
    let file = rescued(&project.path().join(".oxiflow/rescue"));
    Some((project, disk, file, ran))
}

#[test]
fn a_state_that_finds_no_space_is_rescued_and_put_back() {
    let Some((project, _disk, file, ran)) = after_full_disk("") else { return };
    assert_eq!(ran.code, 1);
    insta::assert_snapshot!(hide_name(&ran.story(&project)), @"
    exit 1
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    error: the unsaved state is kept in DIR/.oxiflow/rescue/RESCUED.oxiflow
      caused by: cannot save the state of pipeline `p`
      caused by: the backend reports no space
      caused by: cannot write DIR/.oxiflow/state/states/.p.json.tmp: No space left on device (os error 28)
    hint: make room, then put it back with `oxide_flow state push DIR/.oxiflow/rescue/RESCUED.oxiflow`, and run the pipeline again
    ");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let file = file.to_str().unwrap();
    let mut told = project.run(&["state", "push", file]).story(&project);
    told.push_str(&project.run(&["state", "push", file, "--yes"]).story(&project));
    insta::assert_snapshot!(hide_name(&told), @"
    exit 2
    --- stderr
    DIR/.oxiflow/rescue/RESCUED.oxiflow holds the state of `p`: running, 2 records, rescued TIME (AGO), because: cannot save the state of pipeline `p`: the backend reports no space: cannot write DIR/.oxiflow/state/states/.p.json.tmp: No space left on device (os error 28)
    stored is: running, 1 record, save 3, which it follows
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    exit 0
    --- stderr
    DIR/.oxiflow/rescue/RESCUED.oxiflow holds the state of `p`: running, 2 records, rescued TIME (AGO), because: cannot save the state of pipeline `p`: the backend reports no space: cannot write DIR/.oxiflow/state/states/.p.json.tmp: No space left on device (os error 28)
    stored is: running, 1 record, save 3, which it follows
    put back the state of `p`: paused, 2 records, now at version N; DIR/.oxiflow/rescue/RESCUED.oxiflow can be deleted
    ");
    let state = project.state("p").unwrap();
    assert_eq!(
        (&state["last_processed_id"], &state["status"]),
        (&"cursor-c2".into(), &"paused".into())
    );
    project.run(&["run"]).expect(0);
    assert_eq!(project.read("starts"), "from \nfrom cursor-c2\n");
}

#[test]
fn a_rescued_state_does_not_hide_what_others_wrote_meanwhile() {
    let Some((project, _disk, file, _)) = after_full_disk("") else { return };
    // Somebody runs the pipeline from the old state before anybody looks at the file.
    project.run(&["run"]).expect(0);
    let newer = project.state("p").unwrap();
    let file = file.to_str().unwrap();
    insta::assert_snapshot!(hide_name(&project.run(&["state", "push", file, "--yes"]).story(&project)), @"
    exit 4
    --- stderr
    DIR/.oxiflow/rescue/RESCUED.oxiflow holds the state of `p`: running, 2 records, rescued TIME (AGO), because: cannot save the state of pipeline `p`: the backend reports no space: cannot write DIR/.oxiflow/state/states/.p.json.tmp: No space left on device (os error 28)
    stored is: completed, 1 record, save 7, which it does NOT follow
    error: the rescued state of `p` follows save 3 of run ID, but save 7 of run ID is stored
    hint: look at it with `oxide_flow state show p`; to replace it all the same, after a backup, add `--force`
    ");
    assert_eq!(project.state("p").unwrap(), newer);
    insta::assert_snapshot!(hide_name(&project.run(&["state", "push", file, "--force"]).story(&project)), @"
    exit 0
    --- stderr
    DIR/.oxiflow/rescue/RESCUED.oxiflow holds the state of `p`: running, 2 records, rescued TIME (AGO), because: cannot save the state of pipeline `p`: the backend reports no space: cannot write DIR/.oxiflow/state/states/.p.json.tmp: No space left on device (os error 28)
    stored is: completed, 1 record, save 7, which it does NOT follow
    the state before is kept as backup BACKUP
    put back the state of `p`: paused, 2 records, now at version N; DIR/.oxiflow/rescue/RESCUED.oxiflow can be deleted
    ");
    assert_eq!(project.state("p").unwrap()["last_processed_id"], "cursor-c2");
    assert_eq!(
        std::fs::read_dir(project.path().join(".oxiflow/state/backups/p")).unwrap().count(),
        1
    );
}

#[test]
fn a_rescued_state_of_an_encrypted_store_is_encrypted_too() {
    let encryption = "  encryption: {key_file: key}\n";
    let Some((project, _disk, file, _)) = after_full_disk(encryption) else { return };
    let bytes = std::fs::read(&file).unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("cursor-c2"));
    // A damaged file is found out, and says so.
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&file, damaged).unwrap();
    project.run(&["state", "push", file.to_str().unwrap(), "--yes"]).expect(3);
    std::fs::write(&file, bytes).unwrap();
    // Another key meanwhile gives the record another version, and changes nothing else.
    project.write("new", &"08".repeat(32));
    let new = project.path().join("new");
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
    let yaml = project.read("oxiflow.yaml");
    project.write(
        "oxiflow.yaml",
        &yaml.replace("{key_file: key}", "{key_file: new, fallback: {key_file: key}}"),
    );
    project.run(&["state", "rekey", "--yes"]).expect(0);
    project.run(&["state", "push", file.to_str().unwrap(), "--yes"]).expect(0);
    assert_eq!(project.state("p").unwrap()["last_processed_id"], "cursor-c2");
}

#[test]
fn a_state_is_rescued_elsewhere_when_the_project_is_on_the_full_disk() {
    let project = Project::with_pipeline(STEP);
    let Some(disk) = Small::mount(&project.path().join(".oxiflow"), "64k") else { return };
    let ran = run_into_full_disk(&project, &disk).expect(1);
    let file = rescued(&project.path().join("tmp"));
    assert!(ran.stderr.contains(file.to_str().unwrap()), "{}", ran.stderr);
    let left = project.path().join(".oxiflow/rescue");
    assert_eq!(std::fs::read_dir(left).map_or(0, Iterator::count), 0, "no half-written file stays");
    disk.make_room();
    project.run(&["state", "push", file.to_str().unwrap(), "--yes"]).expect(0);
    assert_eq!(project.state("p").unwrap()["last_processed_id"], "cursor-c2");
}

#[test]
fn a_state_that_finds_no_space_at_the_end_of_its_step_is_rescued_as_it_ended() {
    let project = Project::new(
        "state: {heartbeat_interval: 100ms, checkpoint_interval: 1h, lease_ttl: 60s}\n",
    );
    project.write(
        "pipelines/p.yaml",
        "pipeline: [{name: a, run: 'until test -e go; do sleep 0.01; done; \
         oxide_flow progress --records 7 --last-id c7'}]\n",
    );
    let Some(disk) = Small::mount(&project.path().join(".oxiflow/state"), "64k") else { return };
    let mut running = project.start_captured(&["run"]);
    wait_for("the step", || {
        (project.state("p")?["step_states"]["a"]["status"] == "running").then_some(())
    });
    running.while_suspended(|| disk.fill());
    project.write("go", "");
    wait_for_end(&mut running, &disk);
    running.finish().expect(1);
    disk.make_room();
    let file = rescued(&project.path().join(".oxiflow/rescue"));
    project.run(&["state", "push", file.to_str().unwrap(), "--yes"]).expect(0);
    let state: Value = project.state("p").unwrap();
    assert_eq!(state["step_states"]["a"]["status"], "completed");
    assert_eq!(state["records_processed"], 7);
}

#[test]
fn a_state_is_rescued_when_the_full_disk_costs_the_lease() {
    // It says of each renewal that fails, and nobody reads that until it ends.
    let project =
        Project::new("state: {heartbeat_interval: 1s, checkpoint_interval: 1h, lease_ttl: 15s}\n");
    project.write(
        "pipelines/p.yaml",
        "pipeline: [{name: a, run: 'oxide_flow progress --records 7 --last-id c7; touch ready; sleep 60'}]\n",
    );
    let Some(disk) = Small::mount(&project.path().join(".oxiflow/state"), "64k") else { return };
    let mut running = project.start_captured(&["run"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    running.while_suspended(|| disk.fill());
    wait_for_end(&mut running, &disk);
    let ran = running.finish().expect(4);
    assert!(ran.stderr.contains("could not be renewed in time"), "{}", ran.stderr);
    disk.make_room();
    let file = rescued(&project.path().join(".oxiflow/rescue"));
    project.run(&["state", "push", file.to_str().unwrap(), "--yes"]).expect(0);
    assert_eq!(project.state("p").unwrap()["last_processed_id"], "c7");
}

#[test]
fn files_that_are_no_rescued_states_are_refused() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    project.run(&["run"]).expect(0);
    project.write("garbage", "{}\n");
    let mut told = String::new();
    for file in ["garbage", "nowhere", ".oxiflow/state/states/p.json"] {
        told.push_str(&project.run(&["state", "push", file, "--yes"]).story(&project));
    }
    insta::assert_snapshot!(told, @"
    exit 3
    --- stderr
    error: garbage cannot be put back
      caused by: it is no rescued state
    exit 2
    --- stderr
    error: cannot read nowhere
      caused by: No such file or directory (os error 2)
    exit 3
    --- stderr
    error: .oxiflow/state/states/p.json cannot be put back
      caused by: it is no rescued state
    ");
}
