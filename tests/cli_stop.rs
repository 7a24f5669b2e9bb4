//! How runs are stopped: time limits, signals, and what is left of a step's processes: nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::process::{Child, Command, Stdio};

use kit::{Project, Running, processes_with, wait_for};
use serde_json::json;

/// Waits until a step has made this file.
fn wait_for_file(project: &Project, file: &str) {
    wait_for(file, || project.path().join(file).exists().then_some(()));
}

fn signal(signal: &str, process: &Child) {
    let pid = process.id().to_string();
    let sent = Command::new("kill").args([signal, &pid]).status();
    assert!(sent.unwrap().success());
}

/// A run of a pipeline that has made the file `ready`.
fn ready(project: &Project) -> Running {
    let running = project.start_captured(&["run"]);
    wait_for_file(project, "ready");
    running
}

/// An environment entry that no other test has, to find a step's processes by.
fn marker(project: &Project) -> String {
    let name = project.path().file_name().unwrap().to_string_lossy().into_owned();
    format!("TEST_MARK={name}")
}

fn marked(project: &Project, step: &str) -> String {
    let marker = marker(project);
    let value = marker.split_once('=').unwrap().1;
    format!("environment: {{TEST_MARK: {value}}}\npipeline:\n{step}")
}

/// Waits until nothing is left of a step, which takes a moment also when all of it is killed.
fn wait_for_nothing_left(project: &Project) {
    wait_for("the step's processes to be gone", || {
        processes_with(&marker(project)).is_empty().then_some(())
    });
}

/// Its step `a` goes on from its cursor, and reports record 1 before it waits.
const RESUMABLE: &str = r#"
pipeline:
  - {name: first, run: "echo x >> firsts"}
  - name: a
    run: |
      echo "from $OXIFLOW_LAST_PROCESSED_ID." >> starts
      test "$OXIFLOW_LAST_PROCESSED_ID" = 1 && exit 0
      trap 'oxide_flow progress --records 1 --last-id 1; exit 9' TERM
      # What the shell says of a `sleep` that is ended is of no interest.
      exec 2> /dev/null
      touch ready
      while :; do sleep 0.01; done
"#;

fn stops_gracefully_by(signal: &str, name: &str) -> (Project, String) {
    let project = Project::patient(RESUMABLE);
    let running = ready(&project);
    running.signal(signal);
    let ran = running.finish().expect(1);
    assert!(ran.stderr.contains(&format!("p: stopped by {name}, 1 record\n")), "{}", ran.stderr);
    let state = project.state("p").unwrap();
    assert_eq!(
        (&state["status"], &state["step_states"]["a"]["status"], &state["last_processed_id"]),
        (&json!("paused"), &json!("pending"), &json!("1"))
    );
    assert_eq!(state["errors"], json!([]));
    assert_eq!(project.run(&["worker", "list"]).expect(0).stderr, "no workers\n");
    let story = ran.story(&project);
    project.run(&["run"]).expect(0);
    assert_eq!(project.read("starts"), "from .\nfrom 1.\n");
    assert_eq!(project.read("firsts"), "x\n");
    assert_eq!(project.state("p").unwrap()["status"], "completed");
    (project, story)
}

#[test]
fn sigterm_pauses_the_run_and_the_next_one_resumes_at_the_last_report() {
    let (_, story) = stops_gracefully_by("-TERM", "SIGTERM");
    insta::assert_snapshot!(story, @"
    exit 1
    --- stderr
    p: run ID begins
    p: first (1 of 2) starts
    p: first done in N.Ns, 0 records
    p: a (2 of 2) starts
    p: stopping by SIGTERM; again to stop at once
    p: stopped by SIGTERM, 1 record
    resume with `oxide_flow run p`
    ");
}

#[test]
fn sigint_pauses_the_run_and_the_next_one_resumes_at_the_last_report() {
    stops_gracefully_by("-INT", "SIGINT");
}

#[test]
fn sighup_pauses_the_run_and_the_next_one_resumes_at_the_last_report() {
    stops_gracefully_by("-HUP", "SIGHUP");
}

#[test]
fn a_second_signal_ends_a_step_that_ignores_the_first_at_once() {
    // It is given much longer after one signal than is waited for here.
    let project = Project::patient("");
    let step = "  - {name: a, run: \"trap '' TERM; touch ready; while :; do sleep 1; done\"}\n";
    project.write("pipelines/p.yaml", &marked(&project, step));
    let said = |what: &str| {
        wait_for(what, || project.read("said").contains(what).then_some(()));
    };
    let stderr = std::fs::File::create(project.path().join("said")).unwrap();
    let mut running = Running::from(project.command(["run"]).stderr(stderr).spawn().unwrap());
    wait_for_file(&project, "ready");
    running.signal("-TERM");
    // Two signals at once may arrive as one.
    said("stopping by SIGTERM");
    running.signal("-INT");
    assert_eq!(wait_for("the end of the run", || running.ended()), 1);
    let told = project.read("said");
    insta::assert_snapshot!(kit::hide_changing(&told), @"
    p: run ID begins
    p: a (1 of 1) starts
    p: stopping by SIGTERM; again to stop at once
    p: stopped by SIGTERM, 0 records
    resume with `oxide_flow run p`
    ");
    wait_for_nothing_left(&project);
    assert_eq!(project.state("p").unwrap()["status"], "paused");
}

#[test]
fn waiting_for_another_worker_can_be_given_up() {
    let step = "  - {name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}\n";
    let project = Project::with_pipeline(&format!("pipeline:\n{step}"));
    let first = ready(&project);
    let said = project.path().join("said");
    let mut waiting = project
        .command(["run", "--wait", "1h"])
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    wait_for("the waiting to be told", || project.read("said").contains("; waiting").then_some(()));
    signal("-TERM", &waiting);
    assert_eq!(waiting.wait().unwrap().code(), Some(1));
    assert!(project.read("said").ends_with("stopped waiting by SIGTERM\n"));
    project.write("go", "");
    first.finish().expect(0);
}

#[test]
fn a_step_that_ends_well_when_it_is_stopped_goes_on_where_it_was_in_the_next_run() {
    let project = Project::patient(
        r#"
pipeline:
  - name: a
    run: |
      echo "from $OXIFLOW_LAST_PROCESSED_ID." >> starts
      test "$OXIFLOW_LAST_PROCESSED_ID" = 1 && exit 0
      trap 'oxide_flow progress --records 1 --last-id 1; exit 0' TERM
      touch ready
      while :; do sleep 0.01; done
  - {name: b, run: "touch b"}
"#,
    );
    let running = ready(&project);
    running.signal("-TERM");
    running.finish().expect(1);
    let state = project.state("p").unwrap();
    let steps = &state["step_states"];
    assert_eq!(
        (&state["status"], &steps["a"]["status"], &steps["b"]["status"]),
        (&json!("paused"), &json!("pending"), &json!("pending"))
    );
    assert_eq!(state["errors"], json!([]));
    assert!(!project.path().join("b").exists());
    project.run(&["run"]).expect(0);
    assert_eq!(project.read("starts"), "from .\nfrom 1.\n");
    assert!(project.path().join("b").exists());
}

#[test]
fn a_step_that_ends_well_beyond_its_time_limit_has_failed() {
    // Long enough to set its trap.
    let project = Project::patient(
        r#"
pipeline:
  - name: a
    timeout_seconds: 8
    run: "trap 'touch trapped; exit 0' TERM; while :; do sleep 0.01; done"
"#,
    );
    let ran = project.run(&["run"]).expect(1);
    assert!(ran.stderr.contains("it ran longer than its limit of 8s"), "{}", ran.stderr);
    assert!(project.path().join("trapped").exists());
    let state = project.state("p").unwrap();
    assert_eq!(
        (&state["status"], &state["step_states"]["a"]["status"]),
        (&json!("failed"), &json!("failed"))
    );
    assert_eq!(state["errors"][0]["error_type"], "timeout");
}

#[test]
fn a_run_stopped_between_attempts_goes_on_with_the_step_also_when_it_may_fail() {
    let project = Project::with_pipeline(
        r#"
pipeline:
  - {name: a, run: "test -e go && echo x >> done", retry_attempts: 9, continue_on_error: true}
"#,
    );
    let running = project.start_captured(&["run"]);
    // The pauses grow, and are longer than a look.
    wait_for("a failed attempt", || {
        project.state("p").filter(|state| state["retry_count"].as_u64() >= Some(1))
    });
    running.signal("-TERM");
    running.finish().expect(1);
    let state = project.state("p").unwrap();
    assert_eq!(
        (&state["status"], &state["step_states"]["a"]["status"]),
        (&json!("paused"), &json!("pending"))
    );
    project.write("go", "");
    project.run(&["run"]).expect(0);
    assert_eq!(project.read("done"), "x\n", "tried again, not passed over");
}

#[test]
fn a_step_over_its_time_limit_ends_with_everything_it_started() {
    let project = Project::with_pipeline("");
    let step = "  - name: a
    timeout_seconds: 8
    run: |
      (trap '' TERM; sleep 600) &
      sh -c '(sleep 600) & wait' &
      echo started >&2
      sleep 600
";
    project.write("pipelines/p.yaml", &marked(&project, step));
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 1
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    a | started
    p: a failed: it ran longer than its limit of 8s
    error: step `a` of pipeline `p` failed
      caused by: it ran longer than its limit of 8s
    hint: run `oxide_flow run p` again to resume at this step, or `oxide_flow state show p` to see what happened
    ");
    // Nobody is left who could still write.
    wait_for_nothing_left(&project);
    let state = project.state("p").unwrap();
    let error = &state["errors"][0];
    assert_eq!((&error["error_type"], &error["context"]), (&json!("timeout"), &json!("started")));
    assert_eq!(state["status"], "failed");
}

#[test]
fn a_supervisor_that_cannot_start_its_thread_leaves_no_step_behind() {
    let project = Project::with_pipeline("");
    let marker = marker(&project);
    let (name, value) = marker.split_once('=').unwrap();
    // Of the two that it starts, a thread and a process, the machine has room for one.
    for number in ["1", "2"] {
        let refusal = format!("inject=clone3:error=EAGAIN:when={number}");
        let strace = ["strace", "-f", "-o", "/dev/null", "-e", "trace=clone3", "-e", &refusal];
        let step = ["supervise-step", "60000,0", "sh", "-c", "touch ran; exec sleep 20"];
        let mut command = project.command_under(&strace, step);
        let Ok(mut supervisor) = command.env(name, value).stdin(Stdio::piped()).spawn() else {
            return kit::skipped("a thread that cannot be started needs strace");
        };
        assert_eq!(supervisor.wait().unwrap().code(), Some(127));
        assert_eq!(processes_with(&marker), [] as [u32; 0]);
        assert!(!project.path().join("ran").exists());
    }
}

#[test]
fn what_a_step_leaves_in_the_background_ends_with_the_step() {
    let project = Project::with_pipeline("");
    let step = "  - {name: a, run: '(sleep 600; touch late) > /dev/null 2>&1 & exit 0'}\n";
    project.write("pipelines/p.yaml", &marked(&project, step));
    project.run(&["run"]).expect(0);
    wait_for_nothing_left(&project);
}

#[test]
fn a_time_limit_counts_for_each_attempt() {
    let project = Project::with_pipeline(
        r#"
pipeline:
  - {name: a, timeout_seconds: 8, retry_attempts: 1, run: "test -e tried && exit 0; touch tried; sleep 600"}
"#,
    );
    project.run(&["run"]).expect(0);
    let state = project.state("p").unwrap();
    assert_eq!(
        (&state["errors"][0]["error_type"], &state["retry_count"]),
        (&json!("timeout"), &json!(1))
    );
    assert_eq!(state["status"], "completed");
}
