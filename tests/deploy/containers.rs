//! Process namespaces, as containers have them: stopping as process 1, and telling who lives.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::{Project, Running, Served, processes_with, quick_with_lease, skipped, wait_for};

/// Starts what comes after it as process 1 of a namespace of its own, with a /proc that fits.
const CONTAINER: &[&str] =
    &["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"];

/// Whether namespaces can be made here.
fn possible() -> bool {
    let made = Command::new(CONTAINER[0]).args(&CONTAINER[1..]).arg("true").output();
    let possible = made.is_ok_and(|output| output.status.success());
    if !possible {
        skipped("no process namespace can be made here");
    }
    possible
}

/// Process 1 of the container that was started as this process.
fn first_process(unshare: &Running) -> u32 {
    let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
    wait_for("a child", || std::fs::read_to_string(&children).ok()?.trim().parse().ok())
}

fn terminate(pid: u32) {
    let sent = Command::new("kill").args(["-TERM", &pid.to_string()]).status();
    assert!(sent.expect("kill starts").success());
}

/// Waits for the end, in vain when it does not listen: the test fails then, and does not hang.
#[track_caller]
fn expect_end(mut running: Running, code: i32) {
    assert_eq!(wait_for("its end", || running.ended()), code);
}

fn contained(project: &Project, arguments: &[&str]) -> Running {
    let mut command = project.command_under(CONTAINER, arguments);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    Running::from(command.spawn().expect("unshare starts"))
}

/// A step that leaves a process of its own behind, in a session of its own, and does as told at
/// SIGTERM.
fn step(trap: &str) -> String {
    format!(
        "pipeline:\n  - name: a\n    run: |\n      setsid sh -c 'sleep 0.1' &\n      trap '{trap}' TERM\n      \
         exec 2> /dev/null\n      oxide_flow progress --records 7 --last-id seven\n      touch ready\n      \
         while :; do sleep 0.01; done\n"
    )
}

fn ready(project: &Project) {
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
}

fn worker(project: &Project) -> Value {
    let listed = project.run(&["worker", "list", "--all", "--json"]).expect(0);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    listed["data"][0].clone()
}

#[test]
fn a_run_that_is_process_1_checkpoints_and_releases_at_sigterm() {
    if !possible() {
        return;
    }
    let project = Project::with_pipeline(&step("exit 9"));
    let running = contained(&project, &["run"]);
    ready(&project);
    terminate(first_process(&running));
    expect_end(running, 1);
    let state = project.state("p").expect("a state");
    assert_eq!(
        (&state["status"], &state["last_processed_id"]),
        (&json!("paused"), &json!("seven"))
    );
    assert_eq!(worker(&project)["status"], "released");
}

#[test]
fn a_step_that_ignores_sigterm_is_killed_after_the_time_that_is_set_also_under_process_1() {
    if !possible() {
        return;
    }
    let project = Project::with_pipeline(&step(""));
    let text = project.read("oxiflow.yaml");
    project.write("oxiflow.yaml", &format!("{text}settings: {{stop_timeout: 300ms}}\n"));
    let running = contained(&project, &["run"]);
    ready(&project);
    let of_the_step = format!("OXIFLOW_PROJECT_DIR={}", project.path().display());
    assert!(!processes_with(&of_the_step).is_empty());
    let began = Instant::now();
    terminate(first_process(&running));
    wait_for("the step to be killed", || processes_with(&of_the_step).is_empty().then_some(()));
    // Ten seconds is what a step has otherwise.
    assert!(began.elapsed() < Duration::from_secs(9), "took {:?}", began.elapsed());
    assert!(began.elapsed() >= Duration::from_millis(300), "took {:?}", began.elapsed());
    expect_end(running, 1);
    let state = project.state("p").expect("a state");
    assert_eq!(
        (&state["status"], &state["last_processed_id"]),
        (&json!("paused"), &json!("seven"))
    );
    assert_eq!(processes_with(&of_the_step), [] as [u32; 0]);
}

#[test]
fn a_server_that_is_process_1_ends_at_sigterm() {
    if !possible() {
        return;
    }
    let project = Project::with_pipeline("pipeline: [{name: a, run: 'true'}]");
    let served = Served::start_under(&project, CONTAINER);
    terminate(first_process(&served.running));
    expect_end(served.running, 0);
}

/// A container that was restarted: the kernel may give its namespace the number of the one before,
/// and all process ids are the same.
#[test]
fn a_worker_of_another_container_is_never_taken_for_alive_and_is_taken_over() {
    if !possible() {
        return;
    }
    let project = Project::with_pipeline(&step("exit 9"));
    // It is waited for once, and nobody loses it before.
    project.write("oxiflow.yaml", &quick_with_lease("15s"));
    let first = contained(&project, &["run"]);
    ready(&project);
    assert_eq!(worker(&project)["process"], "unknown", "it is seen from outside");
    first.kill();
    std::fs::remove_file(project.path().join("ready")).expect("a file");
    let looked = contained(&project, &["worker", "list", "--json"]).finish().expect(0);
    let looked: Value = serde_json::from_str(&looked.stdout).expect("JSON");
    assert_ne!(looked["data"][0]["process"], "alive", "{looked}");

    let second = contained(&project, &["run", "--wait", "60s"]);
    ready(&project);
    assert_eq!(worker(&project)["lease"]["epoch"], 2);
    terminate(first_process(&second));
    expect_end(second, 1);
}

/// As under `ProtectProc=invisible`: this user sees none of the others' processes.
#[test]
fn a_worker_whose_process_is_hidden_is_unknown_and_not_dead() {
    if !possible() {
        return;
    }
    let project = Project::with_pipeline(&step("exit 9"));
    let running = project.start_captured(&["run"]);
    ready(&project);
    // Nothing is written any more, so what is made readable stays so.
    running.suspend();
    let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(project.path()).status();
    assert!(opened.expect("chmod starts").success());
    let hide = "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid 65534 --regid 65534 \
                --clear-groups \"$@\"";
    let hidden = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    let looked = crate::ran(&mut project.command_under(&hidden, ["worker", "list", "--json"]));
    let looked: Value = serde_json::from_str(&looked.expect(0).stdout).expect("JSON");
    assert_eq!(looked["data"][0]["process"], "unknown", "{looked}");
    assert_eq!(worker(&project)["process"], "alive");
    running.signal("-CONT");
    running.signal("-TERM");
    expect_end(running, 1);
}
