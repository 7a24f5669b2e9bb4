//! Every damage to a stored record is detected, and whatever the runner leaves behind is valid:
//! over the real file backend and the real runner.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use oxide_flow::app::App;
use oxide_flow::config::{Config, ProjectLocation};
use oxide_flow::error::ErrorKind;
use oxide_flow::recovery::inspect;
use oxide_flow::store::ExaminedState;
use serde_json::json;

use crate::kit::{self, Project, Running};

const STATE: &str = ".oxiflow/state/states/p.json";

const PIPELINE: &str = r#"
pipeline:
  - {name: a, run: "oxide_flow progress --records 3 --last-id c3 --total 9"}
  - {name: b, run: "test -e go"}
"#;

/// A project whose pipeline `p` failed at its second step.
fn failed() -> Project {
    let project = Project::with_pipeline(PIPELINE);
    project.run(&["run", "--quiet"]).expect(1);
    project
}

/// The project's store, opened in this process.
fn open(project: &Project) -> App {
    let location = ProjectLocation::Explicit(project.path().to_owned());
    let plugins = kit::plugin_folder().display().to_string();
    let env = move |name: &str| (name == "OXIFLOW_PLUGIN_PATH").then(|| plugins.clone());
    App::open(Config::load(&location, &env).unwrap(), &env).unwrap()
}

/// A small generator, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let seed = std::env::var("OXIFLOW_TEST_SEED").map_or(seed, |text| text.parse().unwrap());
        eprintln!("OXIFLOW_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

#[test]
fn every_changed_byte_every_truncation_and_every_swap_is_detected() {
    let project = failed();
    project.write("pipelines/q.yaml", PIPELINE);
    project.run(&["run", "q", "--quiet"]).expect(1);
    let app = open(&project);
    let name = "p".parse().unwrap();
    let version = project.state("p").unwrap()["version"].clone();
    let file = project.path().join(STATE);
    let whole = std::fs::read(&file).unwrap();
    let mut tried = 0;
    let mut is_detected = |bytes: &[u8], what: &str| {
        std::fs::write(&file, bytes).unwrap();
        let error = app.store.load_state(&name).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
        let ExaminedState::Damaged(found) = app.store.examine_state(&name).unwrap() else {
            panic!("{what} is not seen");
        };
        // What is called verified is what was written.
        if let Some(salvaged) = found.salvaged.filter(|salvaged| salvaged.is_verified) {
            let cursor = &salvaged.document["step_states"]["a"]["last_processed_id"];
            assert_eq!((cursor, &salvaged.document["version"]), (&json!("c3"), &version), "{what}");
        }
        tried += 1;
    };
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        is_detected(&bytes, &format!("byte {at}"));
        is_detected(&whole[..at], &format!("cut to {at}"));
    }
    let other = std::fs::read(project.path().join(".oxiflow/state/states/q.json")).unwrap();
    is_detected(&other, "another pipeline's record");
    assert_eq!(tried, 2 * whole.len() + 1);
    std::fs::write(&file, &whole).unwrap();
    assert!(matches!(app.store.examine_state(&name).unwrap(), ExaminedState::Whole(_)));
}

const LIVELY: &str = r#"
pipeline:
  - name: extract
    incremental: true
    run: |
      n=$OXIFLOW_BATCH_NUMBER
      for i in 1 2 3 4 5 6; do
        n=$((n + 1))
        echo "{\"records\":$i,\"failed\":1,\"bytes\":7,\"last_id\":\"c$n\",\"total\":99}" >&"$OXIFLOW_PROGRESS_FD"
        sleep 0.03
      done
  - {name: flaky, run: "test $OXIFLOW_ATTEMPT = 2", retry_attempts: 1}
  - {name: optional, run: "exit 3", continue_on_error: true}
  - {name: load, run: "echo '{\"records\":1,\"last_id\":\"x\"}' >&$OXIFLOW_PROGRESS_FD; test -e go"}
"#;

#[test]
fn a_healthy_state_has_no_findings_at_two_hundred_random_moments() {
    let project = Project::with_pipeline(LIVELY);
    let app = open(&project);
    let name = "p".parse().unwrap();
    let mut random = Random::new(4711);
    let (mut seen, mut statuses) = (0, BTreeMap::new());
    let mut running: Option<Running> = None;
    let mut is_at_work = false;
    let started = Instant::now();
    let often = |statuses: &BTreeMap<String, u32>| statuses.get("running") > Some(&50);
    while seen < 200 || statuses.len() < 3 || !often(&statuses) {
        assert!(started.elapsed() < 3 * kit::PATIENCE, "{seen} moments: {statuses:?}");
        match running.as_mut().map(Running::ended) {
            None | Some(Some(_)) => {
                // Every other run ends well.
                match random.below(2) {
                    0 => project.write("go", ""),
                    _ => std::fs::remove_file(project.path().join("go")).unwrap_or_default(),
                }
                running = Some(project.start(&["run"]));
            }
            // Ended before it had begun, none would come far on a machine that is slow to start it.
            Some(None) if is_at_work => match random.below(40) {
                0 => running.take().unwrap().kill(),
                1 => running.as_ref().unwrap().signal("-TERM"),
                _ => {}
            },
            Some(None) => {}
        }
        // What is looked at is a random moment, so there is nothing to wait for.
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let found = inspect(&app.store, app.clock.as_ref(), &name).unwrap();
        assert_eq!(found.findings, [], "{:#}", found.document.unwrap());
        if let Some(document) = found.document {
            let worker = document["worker_id"].as_str().unwrap_or_default();
            is_at_work =
                running.as_ref().is_some_and(|run| worker.contains(&format!("-{}-", run.pid())));
            *statuses.entry(document["status"].as_str().unwrap().to_owned()).or_insert(0) += 1;
            seen += 1;
        }
    }
    eprintln!("{statuses:?}");
}
