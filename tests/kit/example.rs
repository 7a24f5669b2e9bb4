//! The weather example: run to its end, or killed on the way and resumed.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Project, Ran, processes_with, wait_for};

/// The example rests this long after each batch; a shorter rest makes a shorter test.
const PAUSE: &str = "0.008";

/// The weather example with these lines under `state` instead of the file backend and its options.
pub fn weather_on(backend: &str) -> Project {
    let project = Project::example("weather");
    let file = "  backend: file\n  backend_config:\n    state_dir: \".oxiflow/state\"\n";
    let configuration = project.read("oxiflow.yaml");
    assert!(configuration.contains(file), "the example uses the file backend");
    project.write("oxiflow.yaml", &configuration.replace(file, backend));
    project
}

/// How the example went when nothing got in its way.
pub struct Undisturbed {
    duration: Duration,
    totals: Vec<Value>,
}

impl Undisturbed {
    /// Runs the example to its end.
    pub fn run(project: &Project) -> Self {
        let started = Instant::now();
        Ran::from(weather(project).output().expect("it starts")).expect(0);
        let duration = started.elapsed();
        assert_same_output(project.path(), "undisturbed");
        Self { duration, totals: totals(&project.state("weather").expect("a state")) }
    }

    /// Starts the example, kills it after `point` of `points` parts of its time, and resumes it:
    /// what was acknowledged is there, and the output is as if nothing had happened.
    pub fn kill_and_resume(&self, project: &Project, point: u32, points: u32) {
        let after = self.duration * point / points;
        let log_path = project.path().join("log");
        let log = File::create(&log_path).expect("a log");
        let mut runner =
            weather(project).stdout(Stdio::null()).stderr(log).spawn().expect("it starts");
        // This is no wait for a condition: the point in time is what is tested.
        std::thread::sleep(after);
        let folder = format!("OXIFLOW_PROJECT_DIR={}", project.path().display());
        if point.is_multiple_of(2) {
            // Everything dies at once, supervisors too. Some may have ended since they were found.
            let mut victims = processes_with(&folder);
            victims.push(runner.id());
            Command::new("kill")
                .arg("-9")
                .args(victims.iter().map(u32::to_string))
                .stderr(Stdio::null())
                .status()
                .expect("kill starts");
        }
        runner.kill().expect("it can be killed");
        runner.wait().expect("it ends");
        wait_for("the children of a killed runner to end", || {
            processes_with(&folder).is_empty().then_some(())
        });

        let context = format!("killed after {after:?} (point {point})");
        let saved = acknowledged(&std::fs::read_to_string(&log_path).expect("a log"));
        let stored = project.state("weather");
        let version = stored.as_ref().and_then(|state| state["version"].as_u64()).unwrap_or(0);
        assert!(
            version >= saved,
            "{context}: version {saved} was acknowledged, {version} is there"
        );

        Ran::from(weather(project).output().expect("it starts")).expect(0);
        assert_same_output(project.path(), &context);
        let totals = totals(&project.state("weather").expect("a state"));
        assert_eq!(totals, self.totals, "{context}");
    }
}

fn weather(project: &Project) -> Command {
    let mut command = project.command(["run", "weather", "-v"]);
    command.env("BATCH_PAUSE_SECONDS", PAUSE);
    command
}

fn assert_same_output(project: &Path, point: &str) {
    let compared = Command::new("diff")
        .args(["-r", "--brief", "expected", "output"])
        .current_dir(project)
        .output()
        .expect("diff starts");
    assert!(compared.status.success(), "{point}: {}", String::from_utf8_lossy(&compared.stdout));
}

/// The newest version that the log says was saved.
fn acknowledged(log: &str) -> u64 {
    log.lines()
        .filter(|line| line.contains("State saved to disk"))
        .filter_map(|line| line.rsplit_once("version=")?.1.trim().parse().ok())
        .max()
        .unwrap_or(0)
}

/// What a run of the example comes to, however often it was interrupted.
fn totals(state: &Value) -> Vec<Value> {
    ["status", "records_processed", "records_failed", "batch_number", "last_processed_id"]
        .iter()
        .map(|field| state[field].clone())
        .collect()
}
