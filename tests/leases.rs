//! One worker at a time: races, waiting, takeover from the dead and the hanging, fencing.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

use kit::{Project, Ran, Running, processes_with, quick_with_lease, wait_for};

/// A project whose lease is to run out in the test, and outlasts a disk that is slow until then.
fn expiring(pipeline: &str) -> Project {
    let project = Project::new(&quick_with_lease("10s"));
    project.write("pipelines/p.yaml", pipeline);
    project
}

/// A step that says that it runs, and ends when it may.
const PATIENT: &str = r#"
pipeline:
  - name: wait
    run: |
      echo "$OXIFLOW_WORKER_ID" >> started
      until [ -e go ]; do sleep 0.02; done
"#;

fn lines(project: &Project, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(project.path().join(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn started(project: &Project, count: usize) -> Vec<String> {
    wait_for("the step to start", || {
        let workers = lines(project, "started");
        (workers.len() >= count).then_some(workers)
    })
}

#[test]
fn of_eight_runners_started_at_once_exactly_one_runs_and_the_others_say_who() {
    let project = Project::with_pipeline(PATIENT);
    let mut runners: Vec<_> = (0..8).map(|_| project.start_captured(&["run", "p"])).collect();
    let mut refused = Vec::new();
    wait_for("seven runners to give up", || {
        for index in (0..runners.len()).rev() {
            if runners[index].ended().is_some() {
                refused.push(runners.remove(index).finish());
            }
        }
        (refused.len() == 7).then_some(())
    });
    let worker = started(&project, 1);
    assert_eq!(worker.len(), 1);
    for ran in &refused {
        assert_eq!(ran.code, 4, "{}", ran.stderr);
        assert!(ran.stderr.contains(&worker[0]), "{}", ran.stderr);
    }
    project.write("go", "");
    runners.remove(0).finish().expect(0);
    assert_eq!(lines(&project, "started").len(), 1);
}

#[test]
fn runners_that_wait_run_one_after_the_other() {
    let project = Project::with_pipeline(
        r#"
pipeline:
  - name: alone
    run: |
      mkdir inside || echo "$OXIFLOW_WORKER_ID" >> overlaps
      sleep 0.1
      rmdir inside
      echo done >> finished
"#,
    );
    let runners: Vec<_> =
        (0..4).map(|_| project.start_captured(&["run", "p", "--wait", "10m"])).collect();
    for runner in runners {
        runner.finish().expect(0);
    }
    assert_eq!(lines(&project, "finished").len(), 4);
    assert_eq!(lines(&project, "overlaps"), [""; 0]);
}

#[test]
fn a_dead_workers_pipeline_is_taken_over_at_once() {
    let project = Project::with_pipeline(
        r#"
pipeline:
  - name: wait
    run: |
      echo "$OXIFLOW_WORKER_ID" >> started
      [ -e again ] || sleep 600
"#,
    );
    let first = project.start(&["run", "p"]);
    let dead = started(&project, 1).remove(0);
    // Neither runner nor supervisor sees the other die, so that nobody is left to end the step.
    let mark = format!("OXIFLOW_WORKER_ID={dead}");
    let supervisor = processes_with(&mark)
        .into_iter()
        .find(|pid| parent_of(*pid) == Some(first.pid()))
        .expect("the step has a supervisor");
    signal(supervisor, "-STOP");
    first.kill();
    signal(supervisor, "-KILL");
    assert_ne!(processes_with(&mark), [0; 0], "the step lives on");
    project.write("again", "");
    let ran = project.run(&["run", "p"]).expect(0);
    let taken = format!("taking over from worker `{dead}`");
    assert!(ran.stderr.contains(&taken), "{}", ran.stderr);
    assert!(ran.stderr.contains("which is gone; ended"), "{}", ran.stderr);
    assert_eq!(processes_with(&mark), [0; 0]);
}

fn signal(pid: u32, signal: &str) {
    let sent = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.expect("kill starts").success());
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 2..].split(' ').nth(1)?.parse().ok()
}

/// A step that counts on after its cursor, reporting each number, until it may end.
const COUNTING: &str = r#"
pipeline:
  - name: count
    run: |
      n="${OXIFLOW_LAST_PROCESSED_ID:-0}"
      echo "$OXIFLOW_WORKER_ID" >> started
      until [ -e go ]; do
        n=$((n + 1))
        echo "{\"records\":1,\"last_id\":\"$n\"}" >&"$OXIFLOW_PROGRESS_FD"
        sleep 0.02
      done
"#;

fn version(project: &Project) -> u64 {
    project.state("p").and_then(|state| state["version"].as_u64()).unwrap_or(0)
}

#[test]
fn a_runner_suspended_past_its_lease_is_fenced_when_it_wakes_up() {
    let project = expiring(COUNTING);
    let zombie = project.start_captured(&["run", "p"]);
    let zombie_worker = started(&project, 1).remove(0);
    wait_for("some checkpoints", || (version(&project) > 3).then_some(()));
    zombie.suspend();
    let before = project.state("p").expect("a state");

    let second = project.start_captured(&["run", "p", "--wait", "10m"]);
    let workers = started(&project, 2);
    // The step of the suspended worker ended before the other worker's began.
    assert_eq!(processes_with(&format!("OXIFLOW_WORKER_ID={zombie_worker}")), [0; 0]);
    project.write("go", "");
    let second = second.finish().expect(0);
    assert!(second.stderr.contains("has not renewed its lease"), "{}", second.stderr);
    let finished = project.state("p").expect("a state");

    zombie.signal("-CONT");
    let fenced = zombie.finish();
    assert_eq!(fenced.code, 4, "{}", fenced.stderr);
    let winner = format!("was taken over by worker `{}`", workers[1]);
    assert!(fenced.stderr.contains(&winner), "{}", fenced.stderr);
    assert_eq!(project.state("p").expect("a state"), finished);
    assert_eq!(finished["status"], "completed");
    assert!(finished["epoch"].as_u64() > before["epoch"].as_u64());
    let cursor = |state: &serde_json::Value| {
        state["last_processed_id"].as_str().and_then(|id| id.parse::<u64>().ok())
    };
    assert!(cursor(&finished) >= cursor(&before), "no acknowledged progress was lost");
}

#[test]
fn a_runner_suspended_past_its_lease_goes_on_when_nobody_took_over() {
    let project = expiring(
        r#"
pipeline:
  - name: quick
    retry_attempts: 3
    run: |
      echo "$OXIFLOW_WORKER_ID" >> started
      [ -e go ] || sleep 600
"#,
    );
    let runner = project.start_captured(&["run", "p"]);
    let worker = started(&project, 1).remove(0);
    runner.signal("-STOP");
    wait_for("the supervisor to end the step", || {
        processes_with(&format!("OXIFLOW_WORKER_ID={worker}")).is_empty().then_some(())
    });
    project.write("go", "");
    runner.signal("-CONT");
    runner.finish().expect(0);
    assert_eq!(lines(&project, "started"), [worker.clone(), worker]);
}

#[test]
fn a_step_that_floods_its_output_ends_with_the_lease_of_a_suspended_runner_too() {
    let project = expiring(
        r#"
pipeline:
  - name: loud
    run: "touch started; exec yes >&2"
"#,
    );
    let runner = project.start(&["run", "--quiet", "p"]);
    wait_for("the step", || project.path().join("started").exists().then_some(()));
    runner.signal("-STOP");
    // Runner, supervisor and step: nobody reads the pipe that is full.
    let folder = format!("OXIFLOW_PROJECT_DIR={}", project.path().display());
    let steps = || {
        let shell = |pid: &u32| parent_of(*pid) != Some(runner.pid());
        processes_with(&folder).into_iter().filter(shell).count()
    };
    assert_ne!(steps(), 0);
    wait_for("the supervisor to end the step", || (steps() == 0).then_some(()));
}

#[test]
fn the_epoch_grows_over_release_and_survives_the_loss_of_the_lease_record() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: \"true\"}]");
    let epoch = || project.state("p").expect("a state")["epoch"].as_u64().expect("a number");
    project.run(&["run", "p"]).expect(0);
    assert_eq!(epoch(), 1);
    project.run(&["run", "p"]).expect(0);
    assert_eq!(epoch(), 2);
    std::fs::remove_file(project.path().join(".oxiflow/state/leases/p.json")).expect("a lease");
    project.run(&["run", "p"]).expect(0);
    assert_eq!(epoch(), 3);
}

fn remove_lease(project: &Project) {
    let removed = std::fs::remove_file(project.path().join(".oxiflow/state/leases/p.json"));
    assert!(removed.is_ok(), "{removed:?}");
}

#[test]
fn a_worker_that_lives_keeps_its_pipeline_also_when_its_lease_record_is_lost() {
    let project = Project::with_pipeline(PATIENT);
    // The worker does not look for its lease meanwhile.
    let yaml = quick_with_lease("1h").replace("interval: 100ms", "interval: 10m");
    project.write("oxiflow.yaml", &yaml);
    let first = project.start_captured(&["run", "p"]);
    let worker = started(&project, 1).remove(0);
    remove_lease(&project);
    for command in [&["run", "p"][..], &["state", "lock", "p", "--reason", "test"]] {
        let ran = project.run(command).expect(4);
        let told = format!("is run by worker `{worker}` (pid {} on ", first.pid());
        assert!(ran.stderr.contains(&told), "{}", ran.stderr);
        assert!(ran.stderr.contains("its lease is lost"), "{}", ran.stderr);
    }
    project.write("go", "");
    first.finish().expect(0);
    project.run(&["run", "p"]).expect(0);
    assert_eq!(lines(&project, "started").len(), 2, "one after the other");
}

#[test]
fn a_worker_whose_lease_record_is_lost_and_of_whom_nothing_is_seen_is_taken_over_in_time() {
    let project = expiring(COUNTING);
    let first = project.start(&["run", "p"]);
    let worker = started(&project, 1).remove(0);
    wait_for("some checkpoints", || (version(&project) > 3).then_some(()));
    first.kill();
    remove_lease(&project);
    project.write("go", "");
    let ran = project.run(&["run", "p"]).expect(0);
    let taken = format!("taking over from worker `{worker}`");
    assert!(ran.stderr.contains(&taken), "{}", ran.stderr);
    assert!(ran.stderr.contains("has not renewed its lease"), "{}", ran.stderr);
}

/// Asks for a stop until the worker is listed, and returns what the command said.
fn stop(project: &Project, runner: Running) -> (Ran, Ran) {
    let worker = started(project, 1).remove(0);
    let stopped = project.run(&["worker", "stop", &worker]);
    (stopped, runner.finish())
}

#[test]
fn a_worker_obeys_a_request_to_stop_and_the_next_run_resumes() {
    let project = Project::with_pipeline(COUNTING);
    let runner = project.start_captured(&["run", "p"]);
    wait_for("some checkpoints", || (version(&project) > 3).then_some(()));
    let (stopped, runner) = stop(&project, runner);
    assert_eq!((stopped.code, runner.code), (0, 1), "{}{}", stopped.stderr, runner.stderr);
    assert!(runner.stderr.contains("stopped by request of tester@"), "{}", runner.stderr);
    let paused = project.state("p").expect("a state");
    assert_eq!((&paused["status"], &paused["worker_id"]), (&"paused".into(), &().into()));
    project.write("go", "");
    project.run(&["run", "p"]).expect(0);
    let done = project.state("p").expect("a state");
    assert_eq!(done["run_id"], paused["run_id"]);
    assert!(done["records_processed"].as_u64() >= paused["records_processed"].as_u64());
}
