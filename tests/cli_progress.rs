//! What steps report and print: counters, cursors, totals, and everything that is no report.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::process::Stdio;

use kit::{Project, Running, wait_for};
use serde_json::{Value, json};

/// Runs a pipeline of one step `a` with this shell text, which must end well.
fn run(script: &str) -> (Project, kit::Ran, Value) {
    let pipeline = json!({"pipeline": [{"name": "a", "run": script}]});
    // JSON is YAML.
    let project = Project::with_pipeline(&pipeline.to_string());
    let ran = project.run(&["run"]).expect(0);
    let state = project.state("p").unwrap();
    (project, ran, state)
}

fn counters(state: &Value) -> Value {
    json!([
        state["records_processed"],
        state["records_failed"],
        state["data_size_processed"],
        state["batch_number"],
        state["last_processed_id"],
    ])
}

#[test]
fn reports_add_up_in_the_step_and_in_the_pipeline() {
    let (project, ran, state) = run(
        "oxide_flow progress --total 10 --message 'ten to do'
         oxide_flow progress --records 3 --bytes 30 --last-id c3
         echo '{\"records\": 4, \"failed\": 1, \"last_id\": \"c8\", \"batch\": 7}' >&$OXIFLOW_PROGRESS_FD
         oxide_flow progress --records 2",
    );
    assert_eq!(counters(&state), json!([9, 1, 30, 8, "c8"]));
    let step = &state["step_states"]["a"];
    assert_eq!(counters(step), json!([9, 1, 30, 8, "c8"]));
    assert_eq!(step["records_total"], 10);
    assert_eq!(state["estimated_completion"], Value::Null);
    assert!(ran.stdout.contains("a | ten to do\n"), "{}", ran.stdout);
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
    Cursor  c8
    Batches  8
    Records  9 processed, 1 failed
    Bytes  30
    Retries  0

    STEP  STATUS  RECORDS  FAILED  BATCHES  CURSOR  TIME  RETRIES
    a  completed  9 of 10  1  8  c8  N.Ns  0
    ");
}

#[test]
fn an_empty_cursor_is_a_cursor_and_an_absent_one_is_not() {
    let (_, _, state) =
        run("oxide_flow progress --records 1 --last-id x; oxide_flow progress --records 1");
    assert_eq!(state["last_processed_id"], "x");
    let (_, _, state) =
        run("oxide_flow progress --records 1 --last-id x; oxide_flow progress --last-id ''");
    assert_eq!(counters(&state), json!([1, 0, 0, 2, ""]));
}

#[test]
fn grandchildren_report_to_the_same_step() {
    let (_, _, state) =
        run("sh -c 'sh -c \"oxide_flow progress --records 5 --last-id deep; exit 0\"; exit 0'");
    assert_eq!(counters(&state), json!([5, 0, 0, 1, "deep"]));
}

#[test]
fn no_report_of_two_writers_at_once_is_lost_or_mixed() {
    let script = "w() { for n in $(seq 1 200); do echo '{\"records\": 1, \"bytes\": 10}' >&$OXIFLOW_PROGRESS_FD; done; }
                  w & w & for n in 1 2 3 4 5; do oxide_flow progress --records 100 --bytes 1; done; wait";
    let (_, ran, state) = run(script);
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    assert_eq!(counters(&state), json!([900, 0, 4005, 405, ""]));
}

#[test]
fn lines_that_are_no_reports_are_told_and_the_run_goes_on() {
    let (project, ran, state) = run(
        r#"{ echo 'hello'; echo '{"records": -1}'; echo '{"recrods": 1}'; echo '[]'; echo '{"records": 1} {"records": 1}'
           echo; echo '{"records": "7"}'; printf '\377\376\n'; printf '{"records": 5}'; } >&$OXIFLOW_PROGRESS_FD"#,
    );
    assert_eq!(state["records_processed"], 5, "also the line without an end counts");
    insta::assert_snapshot!(ran.story(&project), @r#"
    exit 0
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    warning: step `a` reported progress that is no report: expected value at line 1 column 1: hello
    warning: step `a` reported progress that is no report: invalid value: integer `-1`, expected u64 at line 1 column 14: {"records": -1}
    warning: step `a` reported progress that is no report: unknown field `recrods`, expected one of `records`, `failed`, `bytes`, `last_id`, `batch`, `total`, `message` at line 1 column 10: {"recrods": 1}
    warning: step `a` reported progress that is no report: trailing characters at line 1 column 16: {"records": 1} {"records": 1}
    warning: step `a` reported progress that is no report: invalid type: string "7", expected u64 at line 1 column 15: {"records": "7"}
    warning: step `a` reported progress that is no report: expected value at line 1 column 1: ��
    p: a done in N.Ns, 5 records
    p: completed in N.Ns, 5 records
    "#);
}

#[test]
fn a_huge_line_on_either_side_does_not_stop_the_run() {
    let (_, ran, state) = run("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo after
         { head -c 2000000 /dev/zero | tr '\\0' x; echo; } >&$OXIFLOW_PROGRESS_FD
         oxide_flow progress --records 1");
    assert_eq!(state["records_processed"], 1);
    let longest = ran.stderr.lines().map(str::len).max().unwrap();
    assert!(longest < 400, "a warning of {longest} bytes");
    assert!(ran.stderr.contains("warning: step `a` reported progress that is no report"));
    let shown: usize = ran.stdout.matches('x').count();
    assert_eq!(shown, 3_000_000);
    assert!(ran.stdout.ends_with("a | after\n"));
}

#[test]
fn a_huge_line_of_progress_is_told_once() {
    let (_, ran, _) =
        run("{ head -c 2000000 /dev/zero | tr '\\0' x; echo; } >&$OXIFLOW_PROGRESS_FD");
    let warning =
        "warning: step `a` reported progress that is no report: longer than 1048576 bytes: xxx";
    assert_eq!(ran.stderr.matches("warning:").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(warning), "{}", ran.stderr);
}

/// A number of kibibytes that the kernel tells of a process.
fn kibibytes(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

#[test]
fn a_step_waits_for_those_who_read_its_output_and_a_stop_does_not_wait_for_either() {
    const MOST_KIBIBYTES: u64 = 300 * 1024;
    let project = Project::with_pipeline("pipeline: [{name: a, run: 'exec yes'}]\n");
    let mut run =
        project.command(["run"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // Nobody reads for a while, as when the output of a terminal is held.
    let mut output = run.stdout.take().unwrap();
    let run = Running::from(run);
    let step = wait_for("the step", || {
        let marked = format!("OXIFLOW_PROJECT_DIR={}", project.path().display());
        let mut pids = kit::processes_with(&marked).into_iter();
        pids.find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "yes\n")
        })
    });
    let (mut before, mut looks) = (String::new(), 0);
    wait_for("the step to wait", || {
        let written = std::fs::read_to_string(format!("/proc/{step}/io")).unwrap();
        looks = if written == before { looks + 1 } else { 0 };
        before = written;
        assert!(kibibytes(run.pid(), "VmHWM:") < MOST_KIBIBYTES, "the runner keeps it all");
        (looks == 100).then_some(())
    });
    run.signal("-TERM");
    // Whatever it was about to write, it comes to the signal then.
    let read = std::io::copy(&mut output, &mut std::io::sink()).unwrap();
    run.finish().expect(1);
    assert!(read < 16 * 1024 * 1024, "{read} bytes are passed on before the stop");
    assert_eq!(project.state("p").unwrap()["status"], "paused");
}

#[test]
fn binary_output_is_shown_as_far_as_it_is_text() {
    let (_, ran, _) = run("printf 'a\\000b\\377c\\r\\nend'; printf 'x\\001y' >&2");
    assert_eq!(ran.stdout, "a | ab\u{fffd}c\na | end\n");
    assert!(ran.stderr.contains("a | xy\n"), "{}", ran.stderr);
}

#[test]
fn output_on_both_streams_keeps_its_stream_and_its_order() {
    let (_, ran, _) = run("for n in 1 2 3; do echo out$n; echo err$n >&2; done");
    assert_eq!(ran.stdout, "a | out1\na | out2\na | out3\n");
    let of_step: Vec<_> = ran.stderr.lines().filter(|line| line.starts_with("a | ")).collect();
    assert_eq!(of_step, ["a | err1", "a | err2", "a | err3"]);
}

#[test]
fn a_completion_is_estimated_while_a_step_with_a_total_runs() {
    let project = Project::with_pipeline(
        r#"
pipeline:
  - name: a
    run: |
      oxide_flow progress --total 1000000
      oxide_flow progress --records 10 --last-id ten
      until test -e go; do sleep 0.01; done
"#,
    );
    let running = project.start_captured(&["run"]);
    let state = wait_for("a saved estimate", || {
        project.state("p").filter(|state| !state["estimated_completion"].is_null())
    });
    assert_eq!(
        (&state["status"], &state["current_step"], &state["last_processed_id"]),
        (&json!("running"), &json!("a"), &json!("ten"))
    );
    assert!(state["worker_id"].is_string());
    let shown = project.run(&["state", "show", "p"]).expect(0).stdout;
    assert!(shown.contains("Step done     about "), "{shown}");
    assert!(shown.contains("(active, pid "), "{shown}");
    project.write("go", "");
    running.finish().expect(0);
    let state = project.state("p").unwrap();
    assert_eq!((&state["estimated_completion"], &state["worker_id"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_cursor_that_no_variable_can_hold_does_not_block_the_pipeline_for_good() {
    let script = r#"test -n "$OXIFLOW_LAST_PROCESSED_ID" && exit 0
        oxide_flow progress --records 1 --last-id before
        echo '{"records": 1, "last_id": "a\u0000b"}' >&$OXIFLOW_PROGRESS_FD
        exit 3"#;
    let pipeline = json!({"pipeline": [{"name": "a", "run": script}]});
    let project = Project::with_pipeline(&pipeline.to_string());
    insta::assert_snapshot!(project.run(&["run"]).expect(1).story(&project), @"
    exit 1
    --- stderr
    p: run ID begins
    p: a (1 of 1) starts
    warning: step `a` reported a cursor that no environment variable can hold: with a NUL character, or longer than 102400 bytes; the report is not counted
    p: a failed: it ended with exit code 3
    error: step `a` of pipeline `p` failed
      caused by: it ended with exit code 3
    hint: run `oxide_flow run p` again to resume at this step, or `oxide_flow state show p` to see what happened
    ");
    assert_eq!(project.state("p").unwrap()["last_processed_id"], "before");
    project.run(&["run"]).expect(0);
}

#[test]
fn the_longest_cursor_is_taken_however_it_is_written_and_given_back() {
    const LONGEST: usize = 100 * 1024;
    let script = r#"test -n "$OXIFLOW_LAST_PROCESSED_ID" && { printf %s "$OXIFLOW_LAST_PROCESSED_ID" > seen; exit 0; }
        cat report >&$OXIFLOW_PROGRESS_FD
        exit 3"#;
    let pipeline = json!({"pipeline": [{"name": "a", "run": script}]});
    let project = Project::with_pipeline(&pipeline.to_string());
    // Six bytes of JSON for one of the cursor.
    let report = |cursor: usize| {
        let cursor = r"\u0001".repeat(cursor);
        project.write("report", &format!("{{\"records\": 1, \"last_id\": \"{cursor}\"}}\n"));
    };
    report(LONGEST + 1);
    let ran = project.run(&["run"]).expect(1);
    assert!(ran.stderr.contains("longer than 102400 bytes"), "{}", ran.stderr);
    report(LONGEST);
    let ran = project.run(&["run"]).expect(1);
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    project.run(&["run"]).expect(0);
    assert_eq!(project.read("seen"), "\u{1}".repeat(LONGEST));
}

#[test]
fn more_records_than_the_total_are_no_reason_to_fail() {
    let (project, _, state) = run("oxide_flow progress --total 2 --records 5");
    assert_eq!(state["records_processed"], 5);
    assert!(project.run(&["state", "show", "p"]).stdout.contains("5 of 2"));
}

#[test]
fn progress_outside_a_step_and_with_wrong_numbers_is_wrong_usage() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: echo}]\n");
    insta::assert_snapshot!(project.run(&["progress", "--records", "1"]).story(&project), @"
    exit 2
    --- stderr
    error: there is no run to report progress to
    hint: use it in a step of a pipeline: the runner sets OXIFLOW_PROGRESS_FD
    ");
    insta::assert_snapshot!(project.run(&["progress", "--records", "-1"]).story(&project), @"
    exit 2
    --- stderr
    error: unexpected argument '-1' found

    Usage: oxide_flow progress [OPTIONS]

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(project.run(&["progress", "--records", "many"]).story(&project), @"
    exit 2
    --- stderr
    error: invalid value 'many' for '--records <RECORDS>': invalid digit found in string

    For more information, try '--help'.
    ");
    let ran = project.command(["progress"]).env("OXIFLOW_PROGRESS_FD", "77").output().unwrap();
    insta::assert_snapshot!(kit::Ran::from(ran).story(&project), @"
    exit 1
    --- stderr
    error: cannot report progress on descriptor 77
      caused by: No such file or directory (os error 2)
    ");
}
