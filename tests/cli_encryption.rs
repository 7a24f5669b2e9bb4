//! Encrypted state from the outside: what is on the disk, how keys are told, how they are replaced.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use kit::{Project, Ran, wait_for};
use serde_json::Value;

const CURSOR: &str = "cursor-4711";

const STEP: &str =
    "pipeline: [{name: a, run: 'oxide_flow progress --records 3 --last-id cursor-4711'}]\n";

fn configure(project: &Project, encryption: &str) {
    project.write("oxiflow.yaml", &format!("{}{encryption}", kit::QUICK));
}

fn key_file(project: &Project, name: &str, byte: u8) {
    project.write(name, &format!("{byte:02x}").repeat(32));
    let path = project.path().join(name);
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// A project with this pipeline as `p`, encrypted with the key file `one`.
fn encrypted(pipeline: &str) -> Project {
    let project = Project::with_pipeline(pipeline);
    key_file(&project, "one", 1);
    key_file(&project, "two", 2);
    configure(&project, "  encryption: {key_file: one}\n");
    project
}

/// The files of the store in which a text stands.
fn found_in_store(project: &Project, text: &str) -> Vec<String> {
    let contents = kit::contents(&project.path().join(".oxiflow"));
    let found = contents.into_iter().filter(|(_, content)| {
        content.as_ref().is_some_and(|bytes| String::from_utf8_lossy(bytes).contains(text))
    });
    found.map(|(path, _)| path.display().to_string()).collect()
}

/// The ids of the keys that the records of the store are sealed with.
fn key_ids(project: &Project) -> Vec<String> {
    let mut ids: Vec<String> = kit::contents(&project.path().join(".oxiflow/state"))
        .values()
        .flatten()
        .filter(|bytes| !bytes.is_empty())
        .map(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let header: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            header["encryption"]["key_id"].as_str().unwrap_or("plain").to_owned()
        })
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

#[test]
fn nothing_of_a_state_but_its_header_is_on_the_disk() {
    let project = encrypted(STEP);
    project.run(&["run"]).expect(0);
    assert_eq!(project.state("p").unwrap()["last_processed_id"], CURSOR);
    assert!(project.run(&["state", "show", "p"]).expect(0).stdout.contains(CURSOR));
    assert_eq!(found_in_store(&project, CURSOR), [] as [&str; 0]);
    assert_eq!(found_in_store(&project, "worker_id"), [] as [&str; 0], "leases are encrypted too");
    // The test can see a cursor where one is.
    let plain = Project::with_pipeline(STEP);
    plain.run(&["run"]).expect(0);
    assert_eq!(found_in_store(&plain, CURSOR).len(), 2, "in the state and in its history");
    let record = std::fs::read(project.path().join(".oxiflow/state/states/p.json")).unwrap();
    let line = record.split(|byte| *byte == b'\n').next().unwrap();
    let header: Value = serde_json::from_slice(line).unwrap();
    assert_eq!((&header["oxiflow"], &header["key"]), (&2.into(), &"state/p".into()));
    assert_eq!(header["encryption"]["cipher"], "xchacha20-poly1305");
}

#[test]
fn a_killed_run_resumes_from_its_encrypted_checkpoint() {
    let project = encrypted(
        "pipeline: [{name: a, run: 'echo \"$OXIFLOW_LAST_PROCESSED_ID\" >> from; \
         oxide_flow progress --records 1 --last-id cursor-4711; test -e go || sleep 60'}]\n",
    );
    let running = project.start(&["run"]);
    wait_for("a checkpoint", || (project.state("p")?["last_processed_id"] == CURSOR).then_some(()));
    running.kill();
    project.write("go", "");
    project.run(&["run"]).expect(0);
    assert_eq!(project.read("from"), format!("\n{CURSOR}\n"));
    assert_eq!(found_in_store(&project, CURSOR), [] as [&str; 0]);
}

#[test]
fn a_key_that_is_not_configured_is_named_with_those_that_are() {
    let project = encrypted(STEP);
    project.run(&["run"]).expect(0);
    configure(&project, "  encryption: {key_file: two}\n");
    let mut told = String::new();
    told.push_str(&project.run(&["state", "show", "p"]).story(&project));
    told.push_str(&project.run(&["run"]).story(&project));
    told.push_str(&project.run(&["state", "list"]).story(&project));
    told.push_str(&project.run(&["worker", "list"]).story(&project));
    configure(&project, "");
    told.push_str(&project.run(&["state", "show", "p"]).story(&project));
    insta::assert_snapshot!(told, @"
    exit 2
    --- stderr
    error: cannot load the state of pipeline `p`
      caused by: the record of `state/p` is sealed with key `ee7d891d57aa46eb`, which is not configured
      caused by: configured: `5d13b0f320264289` (DIR/two)
    hint: add that key under `state.encryption.fallback`
    exit 2
    --- stderr
    error: cannot load the state of pipeline `p`
      caused by: the record of `state/p` is sealed with key `ee7d891d57aa46eb`, which is not configured
      caused by: configured: `5d13b0f320264289` (DIR/two)
    hint: add that key under `state.encryption.fallback`
    exit 1
    --- stdout
    PIPELINE  STATUS  STEP  RECORDS  FAILED  SAVED  WORKER
    p  unreadable  -  -  -  -  -
    --- stderr
    warning: `p`: cannot load the state of pipeline `p`: the record of `state/p` is sealed with key `ee7d891d57aa46eb`, which is not configured: configured: `5d13b0f320264289` (DIR/two)
    exit 1
    --- stderr
    warning: the lease of `p` cannot be read: cannot load the lease of `p`: the record of `lease/p` is sealed with key `ee7d891d57aa46eb`, which is not configured: configured: `5d13b0f320264289` (DIR/two)
    exit 2
    --- stderr
    error: cannot load the state of pipeline `p`
      caused by: the record of `state/p` is sealed with key `ee7d891d57aa46eb`, and no key is configured
    hint: name the key under `state.encryption` in oxiflow.yaml
    ");
}

#[test]
fn keys_that_are_not_kept_safe_or_not_there_are_refused() {
    let project = encrypted(STEP);
    let path = project.path().join("one");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let mut told = project.run(&["state", "list"]).story(&project);
    std::fs::remove_file(&path).unwrap();
    told.push_str(&project.run(&["state", "list"]).story(&project));
    configure(&project, "  encryption: {passphrase_env: STATE_PASSPHRASE}\n");
    told.push_str(&project.run(&["state", "list"]).story(&project));
    insta::assert_snapshot!(told, @"
    exit 2
    --- stderr
    error: the key file DIR/one can be read or changed by others (mode 644)
    hint: `chmod 600 DIR/one`; if others had access, make a new key
    exit 2
    --- stderr
    error: the key file DIR/one cannot be read
      caused by: No such file or directory (os error 2)
    exit 2
    --- stderr
    error: the passphrase of the state is in `STATE_PASSPHRASE`, not set
    hint: set `STATE_PASSPHRASE`, or change `state.encryption`
    ");
}

fn with_passphrase(project: &Project, arguments: &[&str]) -> Ran {
    let mut command = project.command(arguments);
    Ran::from(command.env("STATE_PASSPHRASE", "correct horse").output().unwrap())
}

#[test]
fn a_passphrase_is_derived_once_in_a_process_and_only_when_it_is_needed() {
    let project = Project::with_pipeline(STEP);
    project.write("pipelines/q.yaml", STEP);
    project.run(&["run", "p"]).expect(0);
    configure(&project, "  encryption: {passphrase_env: STATE_PASSPHRASE}\n");
    let derivations = |ran: &Ran| ran.stderr.matches("deriving a key").count();
    let ran = with_passphrase(&project, &["state", "show", "p", "-vv"]).expect(0);
    assert_eq!(derivations(&ran), 0, "an unencrypted record needs no key");
    for pipeline in ["p", "q"] {
        let ran = with_passphrase(&project, &["run", pipeline, "-vv"]).expect(0);
        assert_eq!(derivations(&ran), 1, "{}", ran.stderr);
        assert!(!ran.stderr.contains("correct horse"));
    }
    let ran = with_passphrase(&project, &["state", "list", "-vv"]).expect(0);
    assert_eq!(derivations(&ran), 1, "all records share a salt");
    // What the history kept of the run before is plain until then.
    with_passphrase(&project, &["state", "rekey", "--yes"]).expect(0);
    assert_eq!(found_in_store(&project, CURSOR), [] as [&str; 0]);
}

#[test]
fn a_step_does_not_see_the_passphrase_of_the_state() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: 'env > seen'}]\n");
    configure(&project, "  encryption: {passphrase_env: STATE_PASSPHRASE}\n");
    with_passphrase(&project, &["run"]).expect(0);
    assert!(project.read("seen").contains("OXIFLOW_PIPELINE=p"));
    assert!(!project.read("seen").contains("correct horse"));
}

#[test]
fn plaintext_records_are_refused_where_encryption_is_enforced() {
    let project = encrypted(STEP);
    configure(&project, "");
    project.run(&["run"]).expect(0);
    configure(&project, "  encryption: {key_file: one, enforced: true}\n");
    insta::assert_snapshot!(project.run(&["state", "show", "p"]).story(&project), @"
    exit 2
    --- stderr
    error: cannot load the state of pipeline `p`
      caused by: the record of `state/p` is not encrypted, and `state.encryption.enforced` is true
    hint: find out who wrote it; to encrypt what was kept before encryption, set `enforced: false` and run `oxide_flow state rekey`
    ");
    project.run(&["state", "rekey", "--yes"]).expect(2);
    configure(&project, "  encryption: {key_file: one}\n");
    project.run(&["state", "rekey", "--yes"]).expect(0);
    configure(&project, "  encryption: {key_file: one, enforced: true}\n");
    project.run(&["state", "show", "p"]).expect(0);
}

/// A store with states, leases and a backup of `pipelines` pipelines under the key `one`, and a
/// configuration that writes with `two`.
fn rotated(pipelines: usize) -> Project {
    let project = encrypted(STEP);
    project.run(&["run"]).expect(0);
    let state = project.state("p").unwrap();
    for n in 1..pipelines {
        let name = format!("p{n}");
        let mut copy = state.clone();
        copy["pipeline_id"] = name.clone().into();
        project.write("in.json", &copy.to_string());
        project.run(&["state", "import", &name, "--file", "in.json"]).expect(0);
    }
    project.write("in.json", &state.to_string());
    project.run(&["state", "import", "p", "--file", "in.json", "--yes"]).expect(0);
    std::fs::remove_file(project.path().join("in.json")).unwrap();
    configure(&project, "  encryption: {key_file: two, fallback: {key_file: one}}\n");
    project
}

#[test]
fn rekey_seals_every_record_with_the_current_key() {
    let project = rotated(2);
    let before = project.state("p").unwrap();
    let mut told = String::new();
    for arguments in [
        &["state", "rekey", "--dry-run"][..],
        &["state", "rekey"],
        &["state", "rekey", "--yes"],
        &["state", "rekey", "--yes", "--json"],
    ] {
        told.push_str(&project.run(arguments).story(&project));
    }
    insta::assert_snapshot!(told, @r#"
    exit 0
    --- stdout
    state/p
    state/p1
    lease/p
    lease/p1
    backup/p/BACKUP
    history/p/RECORD
    history/p/RECORD
    history/p1/RECORD
    usage/store
    --- stderr
    would rewrite 9 records; 0 records sealed with the current key
    exit 2
    --- stderr
    this seals 9 records again with the current key
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    exit 0
    --- stderr
    rewrote 9 records; 0 records needed nothing
    exit 0
    --- stdout
    {
      "kind": "oxide_flow.state-rekey/1",
      "data": {
        "dry_run": false,
        "stale": 0,
        "rewritten": 0,
        "current": 9,
        "held": [],
        "failed": []
      }
    }
    --- stderr
    rewrote 0 records; 9 records needed nothing
    "#);
    assert_eq!(key_ids(&project).len(), 1);
    configure(&project, "  encryption: {key_file: two}\n");
    assert_eq!(project.state("p").unwrap(), before);
    configure(&project, "");
    insta::assert_snapshot!(project.run(&["state", "rekey"]).story(&project), @"
    exit 2
    --- stderr
    error: no key is configured
    hint: name one under `state.encryption` in oxiflow.yaml
    ");
}

#[test]
fn rekey_plans_without_the_memory_for_all_records_at_once() {
    let project = Project::with_pipeline(STEP);
    project.run(&["run"]).expect(0);
    let mut state = project.state("p").unwrap();
    state["metadata"] = serde_json::json!({"large": "x".repeat(3_000_000)});
    project.write("in.json", &state.to_string());
    // Each keeps a copy of the one before.
    for _ in 0..10 {
        project.run(&["state", "import", "p", "--file", "in.json", "--yes"]).expect(0);
    }
    key_file(&project, "one", 1);
    configure(&project, "  encryption: {key_file: one}\n");
    let limit = "--data=70000000";
    let plan = ["state", "rekey", "--dry-run"];
    let ran = project.command_under(&["prlimit", limit], plan).output().unwrap();
    let ran = Ran::from(ran).expect(0);
    assert!(ran.stderr.contains("would rewrite "), "{}", ran.stderr);
}

#[test]
fn rekey_leaves_what_a_live_worker_relies_on_and_the_worker_goes_on() {
    let project = encrypted(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done; \
         oxide_flow progress --records 1 --last-id cursor-4711'}]\n",
    );
    configure(&project, "  encryption: {key_file: two, fallback: {key_file: one}}\n");
    let running = project.start_captured(&["run"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    // The record that the worker does not rely on; a thread of its own writes it beside the steps.
    let usage = project.path().join(".oxiflow/state/other/usage/store.json");
    wait_for("the store to be measured", || usage.exists().then_some(()));
    configure(&project, "  encryption: {key_file: one, fallback: {key_file: two}}\n");
    insta::assert_snapshot!(project.run(&["state", "rekey", "--yes"]).story(&project), @"
    exit 0
    --- stderr
    note: left `state/p` as it is: worker `WORKER` relies on it and writes it again itself; repeat the command when it has ended
    note: left `lease/p` as it is: worker `WORKER` relies on it and writes it again itself; repeat the command when it has ended
    rewrote 1 record; 0 records needed nothing
    ");
    project.write("go", "");
    running.finish().expect(0);
    project.run(&["state", "rekey", "--yes"]).expect(0);
    assert_eq!(key_ids(&project).len(), 1);
    assert_eq!(project.state("p").unwrap()["status"], "completed");
}

#[test]
fn rekey_killed_at_ten_moments_and_repeated_ends_on_the_new_key() {
    for point in 0..10 {
        let project = rotated(5);
        let before = project.state("p").unwrap();
        // In the middle of a record, or when the next one is about to take its place.
        let call = ["rename", "fsync"][point % 2];
        let kill = format!("inject={call}:signal=SIGKILL:when={}", 2 + point);
        let strace = ["strace", "-f", "-o", "/dev/null", "-e", &kill];
        let Ok(output) = project.command_under(&strace, ["state", "rekey", "--yes"]).output()
        else {
            return kit::skipped("a kill between two records needs strace");
        };
        let killed = Ran::from(output).expect(-1);
        let ids = key_ids_of_records(&project);
        assert_eq!(ids.len(), 2, "not killed between two records by {kill}: {}", killed.stderr);
        // Whatever was reached, every record can be read with both keys.
        assert_eq!(project.state("p").unwrap(), before, "point {point}");
        project.run(&["state", "list"]).expect(0);
        project.run(&["state", "rekey", "--yes"]).expect(0);
        configure(&project, "  encryption: {key_file: two}\n");
        assert_eq!(project.state("p").unwrap(), before, "point {point}");
        assert_eq!(key_ids_of_records(&project).len(), 1, "point {point}");
    }
}

/// As [`key_ids`], without the file that a killed writer leaves.
fn key_ids_of_records(project: &Project) -> Vec<String> {
    let state = project.path().join(".oxiflow/state");
    let removed = Command::new("find")
        .args([state.as_os_str(), "-name".as_ref(), "*.tmp".as_ref(), "-delete".as_ref()])
        .status()
        .unwrap();
    assert!(removed.success());
    key_ids(project)
}

/// The time that processors spend on showing the state of `p`: that of the clock on the wall follows
/// from what else the machine does.
fn effort_of_showing(project: &Project) -> Duration {
    let timed = ["sh", "-c", "\"$@\" > /dev/null && times", "sh"];
    let mut command = project.command_under(&timed, ["state", "show", "p"]);
    let ran = Ran::from(command.env("STATE_PASSPHRASE", "correct horse").output().unwrap());
    let told = ran.expect(0).stdout;
    // Of the shell, and of what it ran: as `0m0.03s 0m0.01s`, by the program and by the system.
    let spent = told.lines().nth(1).unwrap().split_whitespace().map(|time| {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
        minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
    });
    Duration::from_secs_f64(spent.sum())
}

#[test]
fn showing_an_unencrypted_state_is_as_quick_with_a_passphrase_as_without() {
    let project = Project::with_pipeline(STEP);
    project.run(&["run"]).expect(0);
    let quickest = |project: &Project| (0..7).map(|_| effort_of_showing(project)).min().unwrap();
    let without = quickest(&project);
    configure(&project, "  encryption: {passphrase_env: STATE_PASSPHRASE}\n");
    let with = quickest(&project);
    eprintln!("state show: {without:?} without, {with:?} with a passphrase");
    assert!(with < without + Duration::from_millis(60), "{without:?} without, {with:?} with");
}
