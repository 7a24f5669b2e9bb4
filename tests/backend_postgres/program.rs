//! The program over a server: runs, and what comes between them.

use std::process::Command;

use crate::kit::{Project, QUICK, wait_for};
use crate::postgres::{PASSWORD, Server};
use crate::{keys, store};

/// A configuration with its state on this server; the password comes from the environment.
fn configuration(base: &str, server: &Server) -> String {
    let backend = format!(
        "backend: postgres\n  backend_config: {{dsn: \"{}\", password: \"${{STATE_PASSWORD}}\"}}",
        server.dsn()
    );
    base.replace("backend: file", &backend)
}

fn command(project: &Project, arguments: &[&str]) -> Command {
    let mut command = project.command(arguments);
    command.env("STATE_PASSWORD", PASSWORD);
    command
}

/// Counts on after its cursor until it may end, and says how far it is.
const COUNTING: &str = r#"
pipeline:
  - name: count
    run: |
      n="${OXIFLOW_LAST_PROCESSED_ID:-0}"
      until [ -e go ]; do
        n=$((n + 1))
        echo "{\"records\":1,\"last_id\":\"$n\"}" >&"$OXIFLOW_PROGRESS_FD"
        echo $n > counted
        sleep 0.01
      done
"#;

#[test]
fn a_run_goes_on_by_itself_while_its_server_is_killed_and_restarted() {
    let Some(mut server) = Server::start(&[]) else { return };
    let quick = QUICK.replace("lease_ttl: 3s", "lease_ttl: 60s");
    let project = Project::new(&configuration(&quick, &server));
    project.write("pipelines/p.yaml", COUNTING);
    let counted = || {
        let text = std::fs::read_to_string(project.path().join("counted")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let counts_on = || {
        let before = counted();
        wait_for("the step to count on", || (counted() > before + 30).then_some(()));
    };
    let log = project.path().join("log");
    let mut run = command(&project, &["run", "p"]);
    run.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&log).expect("a log"));
    let mut run = run.spawn().expect("it starts");
    counts_on();
    for crash in [true, false] {
        if crash {
            server.crash()
        } else {
            server.stop()
        }
        counts_on();
        server.resume();
        counts_on();
    }
    project.write("go", "");
    let status = run.wait().expect("it ends");
    assert!(status.success(), "{}", project.read("log"));

    let output = command(&project, &["state", "show", "p", "--json"]).output().expect("it starts");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let state = &document["data"]["state"];
    assert_eq!(state["status"], "completed");
    assert_eq!(state["records_processed"], counted());
    assert_eq!(state["last_processed_id"], counted().to_string());
}

#[test]
fn the_example_gives_its_expected_output_over_a_server() {
    let Some(server) = Server::start(&[]) else { return };
    let project = Project::example("weather");
    let example = project.read("oxiflow.yaml");
    let own_options = "backend: file\n  backend_config:\n    state_dir: \".oxiflow/state\"\n";
    assert!(example.contains(own_options));
    let example = example.replace(own_options, "backend: file\n");
    project.write("oxiflow.yaml", &configuration(&example, &server));
    let mut run = command(&project, &["run", "weather"]);
    let output = run.env("BATCH_PAUSE_SECONDS", "0").output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let compared = Command::new("diff")
        .args(["-r", "expected", "output"])
        .current_dir(project.path())
        .output()
        .expect("diff starts");
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    assert!(!project.path().join(".oxiflow/state").exists(), "the state is on the server alone");
    let stored = keys(&*store(&server.dsn()), "");
    assert!(stored.contains(&"state/weather".to_owned()), "{stored:?}");
}
