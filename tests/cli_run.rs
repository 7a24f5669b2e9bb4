//! `oxide_flow run`: steps in order, their environment, failures, and where the next run begins.
//!
//! It is long because its tests hold whole transcripts; what they are about belongs together.

mod kit;

use kit::{Project, QUICK, wait_for};
use serde_json::{Value, json};

/// The words that a step added to a file of the project.
fn words(project: &Project, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(project.path().join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn steps_run_in_order_and_each_line_is_marked_with_its_step() {
    let project = Project::steady(
        r#"
pipeline:
  - name: extract
    run: "echo got it; echo careful >&2"
  - name: load it
    id: load
    run: [sh, -c, 'echo "$1"; printf "no end of line"', sh, "$HOME  is not expanded"]
"#,
    );
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 0
    --- stdout
    extract | got it
    load it | $HOME  is not expanded
    load it | no end of line
    --- stderr
    p: run ID begins
    p: extract (1 of 2) starts
    extract | careful
    p: extract done in N.Ns, 0 records
    p: load it (2 of 2) starts
    p: load it done in N.Ns, 0 records
    p: completed in N.Ns, 0 records
    ");
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
    Cursor  none
    Batches  0
    Records  0 processed, 0 failed
    Bytes  0
    Retries  0

    STEP  STATUS  RECORDS  FAILED  BATCHES  CURSOR  TIME  RETRIES
    extract  completed  0  0  0  N.Ns  0
    load it  completed  0  0  0  N.Ns  0
    ");
}

#[test]
fn the_environment_of_a_step_is_that_of_project_pipeline_and_step_and_its_place_in_the_run() {
    let project = Project::new(&format!(
        "{QUICK}environment:\n  A: project\n  B: project\n  C: project\n  D: ${{USER}}\n"
    ));
    project.write(
        "pipelines/p.yaml",
        r#"
environment: {B: pipeline, C: pipeline}
pipeline:
  - name: one
    run: "oxide_flow progress --records 7 --failed 1 --bytes 70 --last-id seven"
  - name: two
    retry_attempts: 1
    environment: {C: step, E: "two words"}
    run: |
      oxide_flow progress --records 2 --bytes 9 --last-id "two words"
      [ $OXIFLOW_ATTEMPT = 2 ] || exit 5
      echo "$A $B $C $D $E; in $PWD"
      env | grep '^OXIFLOW' | grep -v PLUGIN_PATH | sort
"#,
    );
    insta::assert_snapshot!(project.run(&["run"]).expect(0).story(&project), @"
    exit 0
    --- stdout
    two | project pipeline step tester two words; in DIR
    two | OXIFLOW_ATTEMPT=2
    two | OXIFLOW_BATCH_NUMBER=1
    two | OXIFLOW_DATA_SIZE_PROCESSED=9
    two | OXIFLOW_LAST_PROCESSED_ID=two words
    two | OXIFLOW_PIPELINE=p
    two | OXIFLOW_PROGRESS_FD=3
    two | OXIFLOW_PROJECT_DIR=DIR
    two | OXIFLOW_RECORDS_FAILED=0
    two | OXIFLOW_RECORDS_PROCESSED=2
    two | OXIFLOW_RUN_ID=ID
    two | OXIFLOW_STEP=two
    two | OXIFLOW_WORKER_ID=WORKER
    --- stderr
    p: run ID begins
    p: one (1 of 2) starts
    p: one done in N.Ns, 7 records, 1 failed
    p: two (2 of 2) starts
    p: two failed: it ended with exit code 5; trying again in 1s
    p: two (2 of 2) starts after two words, attempt 2
    p: two done in N.Ns, 4 records
    p: completed in N.Ns, 11 records, 1 failed
    ");
}

#[test]
fn a_failing_step_ends_the_run_and_the_next_run_resumes_at_it() {
    let project = Project::steady(
        r#"
pipeline:
  - {name: a, run: "echo a >> done"}
  - {name: b, run: "echo b >> done; oxide_flow progress --records 1 --last-id 9; echo no >&2; test -e ready"}
  - {name: c, run: "echo c >> done"}
"#,
    );
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 1
    --- stderr
    p: run ID begins
    p: a (1 of 3) starts
    p: a done in N.Ns, 0 records
    p: b (2 of 3) starts
    b | no
    p: b failed: it ended with exit code 1
    error: step `b` of pipeline `p` failed
      caused by: it ended with exit code 1
    hint: run `oxide_flow run p` again to resume at this step, or `oxide_flow state show p` to see what happened
    ");
    let state = project.state("p").unwrap();
    assert_eq!(state["status"], "failed");
    assert_eq!(state["step_states"]["c"]["status"], "pending");
    let error = &state["errors"][0];
    assert_eq!(state["errors"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&error["step_id"], &error["error_type"], &error["context"], &error["retryable"]),
        (&json!("b"), &json!("processing"), &json!("no"), &json!(false))
    );
    insta::assert_snapshot!(project.run(&["state", "show", "p"]).story(&project), @"
    exit 0
    --- stdout
    Pipeline  p
    Status  failed
    Run  ID
    Version  N (epoch 1)
    Started  TIME (AGO)
    Last success  TIME (AGO)
    Last saved  TIME (AGO)
    Finished  TIME (AGO)
    Cursor  9
    Batches  1
    Records  1 processed, 0 failed
    Bytes  0
    Retries  0

    STEP  STATUS  RECORDS  FAILED  BATCHES  CURSOR  TIME  RETRIES
    a  completed  0  0  0  N.Ns  0
    b  failed  1  0  1  9  N.Ns  0
    c  pending  0  0  0  N.Ns  0

    Error at TIME (AGO): b: it ended with exit code 1
      no
    ");

    project.write("ready", "");
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 0
    --- stderr
    p: run ID resumes (failed) at version N, 1 record
    p: a was done before
    p: b (2 of 3) starts after 9
    b | no
    p: b done in N.Ns, 2 records
    p: c (3 of 3) starts
    p: c done in N.Ns, 0 records
    p: completed in N.Ns, 2 records
    ");
    assert_eq!(words(&project, "done"), ["a", "b", "b", "c"]);
    let again = project.state("p").unwrap();
    assert_eq!((&again["status"], &again["run_id"]), (&json!("completed"), &state["run_id"]));
    assert_eq!(again["records_processed"], 2);
}

#[test]
fn failed_attempts_are_repeated_after_a_pause_and_counted() {
    let project = Project::steady(
        r#"
pipeline:
  - name: flaky
    retry_attempts: 3
    run: "echo x >> tries; echo not yet >&2; test $(wc -l < tries) -ge 3"
"#,
    );
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 0
    --- stderr
    p: run ID begins
    p: flaky (1 of 1) starts
    flaky | not yet
    p: flaky failed: it ended with exit code 1; trying again in 1s
    p: flaky (1 of 1) starts, attempt 2
    flaky | not yet
    p: flaky failed: it ended with exit code 1; trying again in 2s
    p: flaky (1 of 1) starts, attempt 3
    flaky | not yet
    p: flaky done in N.Ns, 0 records
    p: completed in N.Ns, 0 records
    ");
    let state = project.state("p").unwrap();
    let step = &state["step_states"]["flaky"];
    assert_eq!(
        (&state["retry_count"], &step["retry_count"], &step["error_count"]),
        (&json!(2), &json!(2), &json!(2))
    );
    let errors = state["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 2);
    assert!(errors.iter().all(|error| error["retryable"] == true && error["context"] == "not yet"));
    assert_eq!(step["status"], "completed");
}

#[test]
fn a_step_that_may_fail_is_passed_over_and_said_so() {
    let project = Project::steady(
        r#"
pipeline:
  - {name: optional, run: "exit 3", continue_on_error: true}
  - {name: needed, run: "echo here"}
"#,
    );
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 0
    --- stdout
    needed  | here
    --- stderr
    p: run ID begins
    p: optional (1 of 2) starts
    p: optional failed: it ended with exit code 3
    p: needed (2 of 2) starts
    p: needed done in N.Ns, 0 records
    warning: steps that failed and were passed over: optional
    p: completed in N.Ns, 0 records
    ");
    let state = project.state("p").unwrap();
    assert_eq!(
        (&state["status"], &state["step_states"]["optional"]["status"]),
        (&json!("completed"), &json!("failed"))
    );
}

#[test]
fn a_step_that_was_passed_over_is_not_called_done_when_the_run_resumes() {
    let project = Project::steady(
        r#"
pipeline:
  - {name: optional, run: "echo x >> tries; exit 3", continue_on_error: true}
  - {name: needed, run: "test -e ready"}
"#,
    );
    project.run(&["run"]).expect(1);
    project.write("ready", "");
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 0
    --- stderr
    p: run ID resumes (failed) at version N, 0 records
    p: needed (2 of 2) starts
    p: needed done in N.Ns, 0 records
    warning: steps that failed and were passed over: optional
    p: completed in N.Ns, 0 records
    ");
    assert_eq!(words(&project, "tries"), ["x"]);
}

#[test]
fn fresh_starts_over_and_keeps_the_unfinished_state_as_a_backup() {
    let project = Project::steady(
        r#"
pipeline:
  - {name: a, run: "echo a >> done; oxide_flow progress --records 1 --last-id 1"}
  - {name: b, run: "test -e ready"}
"#,
    );
    project.run(&["run"]).expect(1);
    let before = project.state("p").unwrap();
    project.write("ready", "");
    insta::assert_snapshot!(project.run(&["run", "--fresh"]).expect(0).story(&project), @"
    exit 0
    --- stderr
    p: run ID begins
    p: a (1 of 2) starts
    p: a done in N.Ns, 1 record
    p: b (2 of 2) starts
    p: b done in N.Ns, 0 records
    p: completed in N.Ns, 1 record
    ");
    assert_eq!(words(&project, "done"), ["a", "a"]);
    let after = project.state("p").unwrap();
    assert_ne!(after["run_id"], before["run_id"]);
    assert!(after["version"].as_u64() > before["version"].as_u64());
    assert!(after["epoch"].as_u64() > before["epoch"].as_u64());
    let backups = project.path().join(".oxiflow/state/backups/p");
    let backup = std::fs::read_dir(backups).unwrap().next().unwrap().unwrap();
    let text = std::fs::read_to_string(backup.path()).unwrap();
    let backup: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    assert_eq!(backup["state"], before);
    assert_eq!(backup["reason"], "before a fresh run");
}

#[test]
fn after_a_good_end_only_incremental_steps_keep_their_cursor() {
    let project = Project::steady(
        r#"
pipeline:
  - name: inc
    incremental: true
    run: 'echo "inc:$OXIFLOW_LAST_PROCESSED_ID:$OXIFLOW_BATCH_NUMBER:$OXIFLOW_RECORDS_PROCESSED" >> seen; oxide_flow progress --records 2 --last-id 42'
  - name: full
    run: 'echo "full:$OXIFLOW_LAST_PROCESSED_ID:$OXIFLOW_BATCH_NUMBER:$OXIFLOW_RECORDS_PROCESSED" >> seen; oxide_flow progress --records 2 --last-id 7'
"#,
    );
    let mut runs = Vec::new();
    for arguments in [&["run"][..], &["run"], &["run", "--fresh"]] {
        project.run(arguments).expect(0);
        let state = project.state("p").unwrap();
        assert_eq!(state["records_processed"], 4, "counted for this run");
        runs.push(state["run_id"].as_str().unwrap().to_owned());
    }
    assert_eq!(
        words(&project, "seen"),
        ["inc::0:0", "full::0:0", "inc:42:1:0", "full::0:0", "inc::0:0", "full::0:0"]
    );
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), 3);
}

#[test]
fn commands_that_cannot_start_are_configuration_errors() {
    for (command, message) in [
        ("no-such-program --flag", "its command cannot be started"),
        ("[no-such-program, --flag]", "cannot start `no-such-program`: No such file or directory"),
        ("[./not-executable]", "cannot start `./not-executable`: Permission denied"),
        ("./not-executable", "its command cannot be started"),
    ] {
        let project = Project::steady(&format!("pipeline:\n  - {{name: a, run: {command}}}\n"));
        project.write("not-executable", "text");
        let ran = project.run(&["run"]).expect(1);
        let state = project.state("p").unwrap();
        let told = state["errors"][0]["message"].as_str().unwrap();
        assert!(told.starts_with(message), "{told}");
        assert!(ran.stderr.contains(&format!("p: a failed: {message}")), "{}", ran.stderr);
        assert_eq!(state["errors"][0]["error_type"], "configuration", "{command}");
        assert_ne!(state["errors"][0]["context"], "", "{command}");
        let shown = project.run(&["state", "show", "p"]).expect(0);
        assert!(shown.stdout.contains("\nLast success  none\n"), "{}", shown.stdout);
    }
    let project = Project::steady("pipeline: [{name: a, run: [no-such-program]}]\n");
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 1
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    a | oxide_flow: cannot start `no-such-program`: No such file or directory (os error 2)
    p: a failed: cannot start `no-such-program`: No such file or directory (os error 2)
    error: step `a` of pipeline `p` failed
      caused by: cannot start `no-such-program`: No such file or directory (os error 2)
    hint: run `oxide_flow run p` again to resume at this step, or `oxide_flow state show p` to see what happened
    ");
}

#[test]
fn a_step_ended_by_a_signal_is_a_resource_error() {
    let project = Project::steady("pipeline: [{name: a, run: 'kill -9 $$'}]\n");
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 1
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    p: a failed: it was ended by signal 9
    error: step `a` of pipeline `p` failed
      caused by: it was ended by signal 9
    hint: run `oxide_flow run p` again to resume at this step, or `oxide_flow state show p` to see what happened
    ");
    let state = project.state("p").unwrap();
    assert_eq!(state["errors"][0]["error_type"], "resource");
}

#[test]
fn an_exit_code_beyond_those_of_signals_is_told_as_it_is() {
    for (code, message, kind) in [
        (128, "it ended with exit code 128", "processing"),
        (143, "it was ended by signal 15", "resource"),
        (192, "it was ended by signal 64", "resource"),
        (193, "it ended with exit code 193", "processing"),
        (255, "it ended with exit code 255", "processing"),
    ] {
        let project = Project::steady(&format!("pipeline: [{{name: a, run: exit {code}}}]\n"));
        project.run(&["run"]).expect(1);
        let error = &project.state("p").unwrap()["errors"][0];
        assert_eq!((&error["message"], &error["error_type"]), (&json!(message), &json!(kind)));
    }
}

#[test]
fn json_is_one_document_on_stdout_and_the_output_of_steps_goes_to_stderr() {
    let project = Project::steady("pipeline: [{name: a, run: 'echo shown; echo {}'}]\n");
    let ran = project.run(&["run", "--json"]).expect(0);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["kind"], "oxide_flow.run/1");
    assert_eq!(document["data"]["status"], "completed");
    assert_eq!(document["data"], project.state("p").unwrap());
    assert!(ran.stderr.contains("a | shown\n"), "{}", ran.stderr);
}

#[test]
fn json_is_printed_also_when_a_step_failed() {
    let project = Project::steady("pipeline: [{name: a, run: exit 3}]\n");
    let ran = project.run(&["run", "--json"]).expect(1);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["data"]["status"], "failed");
    assert_eq!(document["data"]["errors"][0]["message"], "it ended with exit code 3");
    assert!(ran.stderr.contains("error: step `a` of pipeline `p` failed"), "{}", ran.stderr);
}

#[test]
fn quiet_hides_the_output_of_steps_and_nothing_else() {
    let project = Project::steady("pipeline: [{name: a, run: 'echo out; echo err >&2'}]\n");
    insta::assert_snapshot!(project.run(&["run", "--quiet"]).story(&project), @"
    exit 0
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    p: a done in N.Ns, 0 records
    p: completed in N.Ns, 0 records
    ");
}

#[test]
fn nothing_is_kept_when_state_is_switched_off() {
    let project = Project::new("state: {enabled: false}\n");
    project.write("pipelines/p.yaml", "pipeline: [{name: a, run: echo done}]\n");
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 0
    --- stdout
    a | done
    --- stderr
    warning: `state.enabled` is false: nothing is kept, and a run cannot be resumed
    p: run ID begins
    p: a (1 of 1) starts
    p: a done in N.Ns, 0 records
    p: completed in N.Ns, 0 records
    ");
    assert_eq!(kit::contents(project.path()), before);
    insta::assert_snapshot!(project.run(&["state", "show", "p"]).story(&project), @"
    exit 1
    --- stderr
    warning: `state.enabled` is false: nothing is kept, and a run cannot be resumed
    error: pipeline `p` has no state
    hint: it has not run yet; `oxide_flow state list` shows those that have
    ");
}

#[test]
fn the_memory_backend_runs_and_says_what_it_cannot() {
    let project = Project::new("state: {backend: memory}\n");
    project.write("pipelines/p.yaml", "pipeline: [{name: a, run: exit 1, retry_attempts: 1}]\n");
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 1
    --- stderr
    warning: the `memory` backend keeps state inside one process: other commands do not see it, and it is gone when the process ends
    p: run ID begins
    p: a (1 of 1) starts
    p: a failed: it ended with exit code 1; trying again in 1s
    p: a (1 of 1) starts, attempt 2
    p: a failed: it ended with exit code 1
    error: step `a` of pipeline `p` failed
      caused by: it ended with exit code 1
    hint: run `oxide_flow run p` again to resume at this step, or `oxide_flow state show p` to see what happened
    ");
    assert!(!project.path().join(".oxiflow").exists());
}

#[test]
fn steps_may_have_odd_names_when_their_id_is_plain() {
    let project = Project::steady(
        r#"
pipeline:
  - {name: "Étape 1 — “extraire” | 100%", id: e1, run: echo x}
  - {name: "{}", id: "2", run: echo y}
  - {name: "true", run: echo z}
  - {name: 1.5, run: echo z}
"#,
    );
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 0
    --- stdout
    Étape 1 — “extraire” | 100%  | x
    {}  | y
    true  | z
    1.5  | z
    --- stderr
    p: run ID begins
    p: Étape 1 — “extraire” | 100% (1 of 4) starts
    p: Étape 1 — “extraire” | 100% done in N.Ns, 0 records
    p: {} (2 of 4) starts
    p: {} done in N.Ns, 0 records
    p: true (3 of 4) starts
    p: true done in N.Ns, 0 records
    p: 1.5 (4 of 4) starts
    p: 1.5 done in N.Ns, 0 records
    p: completed in N.Ns, 0 records
    ");
    let project = Project::steady("pipeline: [{name: 'a/b', run: echo x}]\n");
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 2
    --- stderr
    error: pipelines/p.yaml:1:19: `a/b` cannot be the id of a step
    hint: an id is 1 to 128 letters, digits, `.`, `_` and `-`, not starting with a dot or a dash; change the name or add an `id:`
    ");
}

#[test]
fn fifty_steps_run_one_after_the_other() {
    let steps: String =
        (0..50).map(|n| format!("  - {{name: s{n}, run: 'echo {n} >> order'}}\n")).collect();
    let project = Project::steady(&format!("pipeline:\n{steps}"));
    project.run(&["run"]).expect(0);
    let expected: Vec<_> = (0..50).map(|n| n.to_string()).collect();
    assert_eq!(words(&project, "order"), expected);
    let state = project.state("p").unwrap();
    let steps = state["step_states"].as_object().unwrap();
    assert_eq!(steps.len(), 50);
    assert!(steps.values().all(|step| step["status"] == "completed"));
}

#[test]
fn the_pipeline_without_a_name_is_the_only_one_or_the_one_called_pipeline() {
    let project = Project::new(QUICK);
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 2
    --- stderr
    error: pipelines: no pipelines in this folder
    hint: write one in `pipelines/pipeline.yaml`
    ");
    let says = |what: &str| format!("pipeline: [{{name: a, run: echo {what}}}]\n");
    project.write("pipelines/one.yaml", &says("one"));
    assert_eq!(project.run(&["run"]).expect(0).stdout, "a | one\n");
    project.write("pipelines/two/pipeline.yaml", &says("two"));
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 2
    --- stderr
    error: pipelines: several pipelines, and none of them named
    hint: name one of: one, two
    ");
    project.write("pipelines/pipeline.yml", &says("pipeline"));
    assert_eq!(project.run(&["run"]).expect(0).stdout, "a | pipeline\n");
    assert_eq!(project.run(&["run", "two"]).expect(0).stdout, "a | two\n");
    insta::assert_snapshot!(project.run(&["run", "tow"]).story(&project), @"
    exit 2
    --- stderr
    error: pipelines: no pipeline `tow`
    hint: did you mean `two`? available: one, pipeline, two
    ");
}

#[test]
fn steps_that_come_and_go_between_runs_are_told_and_kept() {
    let project = Project::steady(
        r#"
pipeline:
  - {name: a, run: echo a}
  - {name: old, run: echo old}
  - {name: b, run: exit 1}
"#,
    );
    project.run(&["run"]).expect(1);
    project.write(
        "pipelines/p.yaml",
        r#"
pipeline:
  - {name: a, run: echo a}
  - {name: added, run: echo added}
  - {name: "b, renamed", id: b, run: echo b}
"#,
    );
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 0
    --- stdout
    added  | added
    b, renamed | b
    --- stderr
    p: run ID resumes (failed) at version N, 0 records
    warning: the state has steps that the pipeline no longer has: `old`
    p: a was done before
    p: added (2 of 3) starts
    p: added done in N.Ns, 0 records
    p: b, renamed (3 of 3) starts
    p: b, renamed done in N.Ns, 0 records
    p: completed in N.Ns, 0 records
    ");
    let state = project.state("p").unwrap();
    assert_eq!(state["step_states"]["b"]["step_name"], "b, renamed");
    assert_eq!(state["step_states"]["old"]["status"], "completed");
    // A new run knows only the steps that the pipeline has.
    project.run(&["run"]).expect(0);
    let steps = project.state("p").unwrap()["step_states"].as_object().unwrap().len();
    assert_eq!(steps, 3);
}

#[test]
fn a_reader_that_closes_stdout_does_not_end_the_run() {
    let project = Project::steady(
        r#"
pipeline:
  - {name: a, run: "seq 1 20000"}
  - {name: b, run: "touch done"}
"#,
    );
    let mut child = project
        .command(["run"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = kit::Ran::from(child.wait_with_output().unwrap()).expect(0);
    assert!(!ran.stderr.contains("panic"), "{}", ran.stderr);
    assert!(project.path().join("done").exists());
    assert_eq!(project.state("p").unwrap()["status"], "completed");
}

#[test]
fn a_stdout_that_takes_nothing_does_not_end_the_run_and_is_told_once() {
    let project = Project::steady(
        r#"
pipeline:
  - {name: a, run: "seq 1 2000; oxide_flow progress --records 1 --last-id 1; seq 1 2000"}
  - {name: b, run: "echo out; echo err >&2; touch done"}
"#,
    );
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = project.command(["run"]).stdout(full).output().unwrap();
    insta::assert_snapshot!(kit::Ran::from(ran).story(&project), @"
    exit 0
    --- stderr
    p: run ID begins
    p: a (1 of 2) starts
    warning: cannot write to standard output: No space left on device (os error 28); the output of steps is dropped from here on, and the run goes on
    p: a done in N.Ns, 1 record
    p: b (2 of 2) starts
    b | err
    p: b done in N.Ns, 0 records
    p: completed in N.Ns, 1 record
    ");
    assert!(project.path().join("done").exists());
    assert_eq!(project.run(&["worker", "list"]).expect(0).stderr, "no workers\n");
}

#[test]
fn counters_of_an_imported_state_that_can_grow_no_more_end_no_run() {
    let project = Project::steady(
        r#"
pipeline:
  - name: a
    run: |
      oxide_flow progress --records 1 --bytes 1 --last-id 1
      touch reported
      test -e go
"#,
    );
    project.run(&["run"]).expect(1);
    project.run(&["state", "export", "p", "--output", "p.json"]).expect(0);
    let counters = regex::Regex::new(
        r#""(epoch|processing_time_ms|records_processed|data_size_processed|batch_number)": *\d+"#,
    );
    let text = project.read("p.json");
    let full = counters.unwrap().replace_all(&text, format!("\"$1\": {}", u64::MAX));
    project.write("p.json", &full);
    let import = ["state", "import", "p", "--file", "p.json", "--yes", "--ignore-rules"];
    project.run(&import).expect(0);
    project.write("go", "");
    project.run(&["run"]).expect(0);
    let state = project.state("p").unwrap();
    assert_eq!(
        (&state["status"], &state["epoch"], &state["step_states"]["a"]["processing_time_ms"]),
        (&json!("completed"), &json!(u64::MAX), &json!(u64::MAX))
    );

    std::fs::remove_file(project.path().join("go")).unwrap();
    std::fs::remove_file(project.path().join("reported")).unwrap();
    project.write("pipelines/p.yaml", "pipeline: [{name: a, run: 'touch reported; sleep 600'}]\n");
    let running = project.start_captured(&["run"]);
    wait_for("the step", || project.path().join("reported").exists().then_some(()));
    project.run(&["state", "unlock", "p", "--force"]).expect(0);
    running.finish().expect(4);
}

#[test]
fn a_second_worker_is_refused_at_once_and_waits_when_asked_to() {
    let project = Project::steady(
        "pipeline: [{name: a, run: 'echo x >> runs; until test -e go; do sleep 0.01; done'}]\n",
    );
    let first = project.start_captured(&["run"]);
    wait_for("the first run", || project.path().join("runs").exists().then_some(()));
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 4
    --- stderr
    error: pipeline `p` is held by worker `WORKER` (pid PID on HOST, run, since TIME)
    hint: wait for it with `--wait 30s`, or stop it with `oxide_flow worker stop WORKER`
    ");
    insta::assert_snapshot!(project.run(&["run", "--wait", "50ms"]).story(&project), @"
    exit 4
    --- stderr
    p: worker `WORKER` (pid PID on HOST) holds it; waiting
    error: pipeline `p` is held by worker `WORKER` (pid PID on HOST, run, since TIME)
    hint: wait for it with `--wait 30s`, or stop it with `oxide_flow worker stop WORKER`
    ");
    let waiting = project.start_captured(&["run", "--wait", "60s"]);
    project.write("go", "");
    first.finish().expect(0);
    waiting.finish().expect(0);
    assert_eq!(words(&project, "runs"), ["x", "x"]);
    insta::assert_snapshot!(project.run(&["run", "--wait", "soon"]).story(&project), @"
    exit 2
    --- stderr
    error: invalid value 'soon' for '--wait <DURATION>': expected number at 0

    For more information, try '--help'.
    ");
}

#[test]
fn a_step_has_nothing_to_read() {
    let project = Project::steady("pipeline: [{name: a, run: 'cat; echo end'}]\n");
    let ran = project.run_with_input(&["run"], "").expect(0);
    assert_eq!(ran.stdout, "a | end\n");
}

#[test]
fn what_a_step_left_behind_is_not_taken_for_the_next_step() {
    // The first step's descendant leaves its process group, so it outlives the step, and reports
    // while the second step runs.
    let project = Project::steady(
        r#"
pipeline:
  - name: a
    run: |
      setsid sh -c 'touch away; until test -e second; do sleep 0.01; done; echo late; oxide_flow progress --records 500 --last-id late; touch reported' &
      until test -e away; do sleep 0.01; done
      oxide_flow progress --records 1 --last-id a1
  - name: b
    run: |
      touch second
      until test -e reported; do sleep 0.01; done
      oxide_flow progress --records 1 --last-id b1
"#,
    );
    let ran = project.run(&["run"]).expect(0);
    let state = project.state("p").unwrap();
    assert_eq!(state["records_processed"], 2, "{}", ran.stderr);
    assert_eq!(state["step_states"]["b"]["last_processed_id"], "b1");
    assert!(!ran.stdout.contains("b | late"), "{}", ran.stdout);
}
