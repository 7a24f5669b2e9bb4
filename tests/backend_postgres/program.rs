//! The program over a server: runs, and what comes between them.

use serde_json::json;

use crate::kit::example::{Undisturbed, weather_on};
use crate::kit::{Project, QUICK, wait_for};
use crate::postgres::{PASSWORD, Server};
use crate::{keys, store_with};

/// The options of a store on this server; the password comes from the environment.
fn options(server: &Server) -> String {
    format!("dsn: \"{}\", password: \"${{STATE_PASSWORD}}\"", server.dsn())
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
    let backend = format!("backend: postgres\n  backend_config: {{{}}}", options(&server));
    let project = Project::new(&QUICK.replace("backend: file", &backend))
        .with_variable("STATE_PASSWORD", PASSWORD);
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
    let mut run = project.command(["run", "p"]);
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

    let state = project.state("p").expect("a state");
    assert_eq!(state["status"], "completed");
    assert_eq!(state["records_processed"], counted());
    assert_eq!(state["last_processed_id"], counted().to_string());
}

#[test]
fn the_example_gives_the_expected_output_also_when_it_was_killed() {
    let Some(server) = Server::start(&[]) else { return };
    let prefix = |store: u32| format!("weather_{store}_");
    let weather = |store: u32| {
        let options = format!("{}, prefix: {}", options(&server), prefix(store));
        weather_on(&format!("  backend: postgres\n  backend_config: {{{options}}}\n"))
            .with_variable("STATE_PASSWORD", PASSWORD)
    };
    let undisturbed = Undisturbed::run(&weather(0));
    for point in 1..6 {
        let project = weather(point);
        undisturbed.kill_and_resume(&project, point, 6);
        let local = project.path().join(".oxiflow/state");
        assert!(!local.exists(), "the state is on the server alone");
        let store = store_with(&server.dsn(), &json!({ "prefix": prefix(point) }));
        let stored = keys(&*store, "");
        assert!(stored.contains(&"state/weather".to_owned()), "{stored:?}");
    }
}
