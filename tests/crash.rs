//! The example run is killed at fifty points and resumed: the output is right every time, and no
//! acknowledged checkpoint is lost.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kit::{Project, Ran, processes_with, wait_for};

const POINTS: u32 = 50;
/// The machine has two cores; each worker mostly waits for the disk.
const WORKERS: u32 = 3;

/// The example rests this long after each batch; a shorter rest makes a shorter test.
const PAUSE: &str = "0.008";

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
fn totals(state: &serde_json::Value) -> Vec<serde_json::Value> {
    ["status", "records_processed", "records_failed", "batch_number", "last_processed_id"]
        .iter()
        .map(|field| state[field].clone())
        .collect()
}

#[test]
fn killed_at_fifty_points_and_resumed_the_output_is_right_every_time() {
    let undisturbed = Project::example("weather");
    let started = Instant::now();
    Ran::from(weather(&undisturbed).output().expect("it starts")).expect(0);
    let duration = started.elapsed();
    assert_same_output(undisturbed.path(), "undisturbed");
    let expected = totals(&undisturbed.state("weather").expect("a state"));

    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let expected = &expected;
            scope.spawn(move || {
                for point in (worker..POINTS).step_by(WORKERS as usize) {
                    kill_and_resume(point, duration * point / POINTS, expected);
                }
            });
        }
    });
}

fn kill_and_resume(point: u32, after: Duration, expected: &[serde_json::Value]) {
    let project = Project::example("weather");
    let log_path = project.path().join("log");
    let log = std::fs::File::create(&log_path).expect("a log");
    let mut runner =
        weather(&project).stdout(Stdio::null()).stderr(log).spawn().expect("it starts");
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
    assert!(version >= saved, "{context}: version {saved} was acknowledged, {version} is there");

    Ran::from(weather(&project).output().expect("it starts")).expect(0);
    assert_same_output(project.path(), &context);
    assert_eq!(totals(&project.state("weather").expect("a state")), expected, "{context}");
}
