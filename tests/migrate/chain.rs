//! From backend to backend and back: what arrives at the end is what set out.

use std::path::Path;
use std::time::Instant;

use oxide_flow::app::App;
use oxide_flow::config::{Config, ProjectLocation};
use oxide_flow::manager::StateManager;
use oxide_flow::model::Progress;
use oxide_flow::recovery::back_up_now;

use crate::kit::{Project, QUICK, Served, plugin_library, records};
use crate::{postgres, redis};

/// How many pipelines travel: `OXIFLOW_TEST_PIPELINES`, or a hundred.
fn pipelines() -> usize {
    let number = std::env::var("OXIFLOW_TEST_PIPELINES").map(|number| number.parse().unwrap());
    number.unwrap_or(100)
}

/// A project of pipelines, each with a run, a backup and a history, made without a
/// process for each.
fn project() -> Project {
    let project = Project::new(QUICK);
    plugin_library("file");
    let manager = StateManager::open(project.path()).unwrap();
    let location = ProjectLocation::Explicit(project.path().to_owned());
    let nothing = |_: &str| None;
    let app = App::open(Config::load(&location, &nothing).unwrap(), &nothing).unwrap();
    for n in 0..pipelines() {
        let name = format!("p{n}");
        let mut run = manager.start_run(&name, &["load"]).unwrap();
        // Cursors of any kind, and sizes up to some pages.
        let last_id = format!("{n}: \u{1F600}\n\"{}\"", "x".repeat(n * 7 % 9_000));
        let progress =
            Progress { records: n as u64, last_id: Some(last_id), ..Progress::default() };
        run.checkpoint(|state| state.record_progress("load", &progress, chrono::Utc::now()))
            .unwrap();
        let pipeline = name.parse().unwrap();
        back_up_now(&app.store, app.clock.as_ref(), &pipeline, "test").unwrap();
        if n % 3 == 0 {
            run.complete().unwrap();
        } else {
            run.pause().unwrap();
        }
    }
    project
}

/// Moves everything on, and compares both stores.
fn hop(project: &Project, from: &str, to: &str) {
    let started = Instant::now();
    let arguments = ["migrate", "--project", from, "--to", to, "--yes", "--verify"];
    let mut command = project.command(arguments);
    command.env("STATE_TOKEN", TOKEN).env("STATE_PASSWORD", postgres::PASSWORD);
    let ran = crate::kit::Ran::from(command.output().unwrap());
    assert_eq!(ran.code, 0, "{from} to {to}: {}", ran.stderr);
    let moved = ran.stderr.lines().find(|line| line.starts_with("moved ")).unwrap();
    let digits: String = moved.chars().filter(char::is_ascii_digit).collect();
    assert!(digits.starts_with(&pipelines().to_string()), "{moved}");
    assert!(ran.stderr.contains(" 0 are not"), "{}", ran.stderr);
    println!("{from} to {to}: {:.1} s", started.elapsed().as_secs_f64());
}

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn pipelines_come_back_byte_by_byte_over_every_backend() {
    let Some(redis) = redis::Server::start(redis::DURABLE) else { return };
    let Some(postgres) = postgres::Server::start(&[]) else { return };
    let behind = Project::new(QUICK);
    let served =
        Served::start_with(&behind, &["--token-env", "STATE_TOKEN"], &[("STATE_TOKEN", TOKEN)]);

    let project = project();
    let configured = |file: &str, backend: &str, options: &str| {
        let text = QUICK.replace("backend: file", &format!("backend: {backend}"));
        assert!(text.contains(&format!("backend: {backend}")), "{text}");
        project.write(file, &format!("{text}  backend_config: {{{options}}}\n"));
    };
    configured("sqlite.yaml", "sqlite", "");
    configured("redis.yaml", "redis", &format!("url: '{}'", redis.url()));
    let dsn = format!("dsn: '{}', password: '${{STATE_PASSWORD}}'", postgres.dsn());
    configured("postgres.yaml", "postgres", &dsn);
    configured("http.yaml", "http", &format!("url: '{}', token: '${{STATE_TOKEN}}'", served.url));
    configured("end.yaml", "file", "state_dir: end");

    let store = |folder: &str| records(&project.path().join(Path::new(folder)));
    let before = store(".oxiflow/state");
    assert!(before.len() >= 3 * pipelines(), "{}", before.len());
    let route = ["oxiflow", "sqlite", "redis", "postgres", "http", "end"];
    for pair in route.map(|name| format!("{name}.yaml")).windows(2) {
        hop(&project, &pair[0], &pair[1]);
    }
    let after = store("end");
    assert!(before.keys().eq(after.keys()));
    for (name, bytes) in &before {
        assert!(after[name] == *bytes, "{name} is not what it was");
    }
    assert_eq!(records(&behind.path().join(".oxiflow/state")), before);
}
