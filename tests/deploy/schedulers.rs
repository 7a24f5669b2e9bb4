//! Airflow and Dagster, the real ones from PyPI, with the files of `docs/deploy`.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::kit::{PROGRAM, Project, plugin_folder, python, wait_for};
use crate::{deploy, ran};

const AIRFLOW: &[&str] = &["apache-airflow==3.3.2"];
const DAGSTER: &[&str] = &["dagster==1.13.29"];

/// Prints how many tries each exit code is worth, with a program that ends with it.
const CODES: &str = r##"
import os, sys
module = __import__(sys.argv[1])
folder = sys.argv[2]
for code in (1, 2, 3, 4, 70):
    program = os.path.join(folder, f"ends-with-{code}")
    with open(program, "w") as file:
        file.write(f"#!/bin/sh\nexit {code}\n")
    os.chmod(program, 0o755)
    module.PROGRAM = program
    try:
        module.oxide_flow("run", name="x")
    except Exception as error:
        print("found", code, type(error).__name__, getattr(error, "allow_retries", None))
"##;

/// Runs a pipeline and is ended by an exception while its step is under way.
const ENDED: &str = r#"
import signal, sys
module = __import__(sys.argv[1])
def end(*_):
    raise SystemExit(5)
signal.signal(signal.SIGUSR1, end)
module.oxide_flow("run", "orders", name="x")
"#;

fn project(step: &str) -> Project {
    let project = Project::with_pipeline("");
    project.write("pipelines/orders.yaml", &format!("pipeline:\n  - {{name: a, run: '{step}'}}\n"));
    project
}

/// Python with a file of `docs/deploy` in its path, and with the program that is tested.
fn python(programs: &Path, folder: &str, project: &Project) -> Command {
    let mut command = Command::new(programs.join("python"));
    command
        .current_dir(project.path())
        .env("PYTHONPATH", deploy(folder))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("OXIFLOW_PROGRAM", PROGRAM)
        .env("OXIFLOW_PROJECT", project.path())
        .env("OXIFLOW_PLUGIN_PATH", plugin_folder())
        .env("OXIFLOW_RETRY_SECONDS", "0")
        .env("DAGSTER_DISABLE_TELEMETRY", "1")
        .env("AIRFLOW_HOME", project.path().join("airflow"))
        .env("AIRFLOW__CORE__DAGS_FOLDER", deploy("airflow"))
        .env("AIRFLOW__CORE__LOAD_EXAMPLES", "False");
    command
}

/// The lines of [`CODES`].
fn codes(programs: &Path, folder: &str, module: &str) -> Vec<String> {
    let project = project("true");
    let mut command = python(programs, folder, &project);
    let ran = ran(command.args(["-c", CODES, module]).arg(project.path())).expect(0);
    ran.stdout.lines().filter_map(|line| line.strip_prefix("found ")).map(str::to_owned).collect()
}

fn ends_its_run_in_order(programs: &Path, folder: &str, module: &str) {
    let project = project("touch ready; exec sleep 600");
    let mut command = python(programs, folder, &project);
    let started = command.args(["-c", ENDED, module]).spawn().expect("python starts");
    let running = crate::kit::Running::from(started);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
    running.signal("-USR1");
    running.finish().expect(5);
    assert_eq!(project.state("orders").expect("a state")["status"], "paused");
    let told = project.run(&["worker", "list"]).expect(0).stderr;
    assert_eq!(told, "no workers\n");
}

#[test]
fn airflow_runs_the_pipeline_and_tries_again_what_may_pass() {
    let Some(programs) = python::installed("airflow", AIRFLOW) else { return };
    let project = project("echo $OXIFLOW_WORKER_ID > worker; oxide_flow progress --records 3");
    let mut migrate = python(&programs, "airflow", &project);
    ran(migrate.args(["-m", "airflow", "db", "migrate"])).expect(0);
    let mut test = python(&programs, "airflow", &project);
    let told = ran(test.arg(deploy("airflow/orders_dag.py"))).expect(0);
    let told = format!("{}{}", told.stdout, told.stderr);
    assert!(told.contains("'records': 3"), "{told}");
    assert_eq!(project.state("orders").expect("a state")["status"], json!("completed"));
    let worker = project.read("worker");
    assert!(worker.starts_with("airflow:orders.run:1-"), "{worker}");

    let (again, never) = ("AirflowException None", "AirflowFailException None");
    let found = codes(&programs, "airflow", "orders_dag");
    let wanted = [(1, again), (2, never), (3, never), (4, again), (70, never)];
    assert_eq!(found, wanted.map(|(code, error)| format!("{code} {error}")));
    ends_its_run_in_order(&programs, "airflow", "orders_dag");
}

/// Materializes the asset and prints how often it was tried.
const MATERIALIZE: &str = r#"
import sys, dagster, orders
result = dagster.materialize([orders.orders], raise_on_error=False)
events = [event.event_type_value for event in result.all_events]
tries = 1 + events.count("STEP_UP_FOR_RETRY")
made = result.asset_materializations_for_node("orders") if result.success else []
records = made[0].metadata["records"].value if made else None
print("found", result.success, tries, records)
"#;

fn materialized(programs: &Path, project: &Project) -> String {
    let ran = ran(python(programs, "dagster", project).args(["-c", MATERIALIZE])).expect(0);
    let found = ran.stdout.lines().find_map(|line| line.strip_prefix("found "));
    found.unwrap_or_else(|| panic!("{}{}", ran.stdout, ran.stderr)).to_owned()
}

#[test]
fn dagster_materializes_the_pipeline_and_tries_again_what_may_pass() {
    let Some(programs) = python::installed("dagster", DAGSTER) else { return };
    let done = project("echo $OXIFLOW_WORKER_ID > worker; oxide_flow progress --records 3");
    assert_eq!(materialized(&programs, &done), "True 1 3");
    assert!(done.read("worker").starts_with("dagster:"), "{}", done.read("worker"));
    // Code 1: it fails twice, and the third try resumes.
    let failing = project("echo x >> tries; test $(wc -l < tries) = 3");
    assert_eq!(materialized(&programs, &failing), "True 3 0");
    // Code 2: nothing is tried again.
    let wrong = project("true");
    wrong.write("oxiflow.yaml", "no-such-section: 1\n");
    assert_eq!(materialized(&programs, &wrong), "False 1 None");

    let (again, never) = ("RetryRequested None", "Failure False");
    let found = codes(&programs, "dagster", "orders");
    let wanted = [(1, again), (2, never), (3, never), (4, again), (70, never)];
    assert_eq!(found, wanted.map(|(code, error)| format!("{code} {error}")));
    ends_its_run_in_order(&programs, "dagster", "orders");
}
