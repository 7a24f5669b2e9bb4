//! Moving pipelines between stores: nothing is lost, nothing runs in both, a kill at any instant
//! leaves a migration that can be finished or taken back, and running workers go along.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

#[path = "migrate/chain.rs"]
mod chain;
mod kit;
#[path = "kit/postgres.rs"]
mod postgres;
#[path = "kit/redis.rs"]
mod redis;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use kit::{Project, QUICK, Ran, Running, contents, records, wait_for};
use serde_json::Value;

/// Counts to a number given by a file `upto`, a record at a time, from where it was.
const COUNTER: &str = r#"
pipeline:
  - name: count
    run: |
      n=${OXIFLOW_LAST_PROCESSED_ID:-0}
      while [ "$n" -lt "$(cat upto)" ]; do
        n=$((n + 1))
        oxide_flow progress --records 1 --last-id $n
      done
      until [ -e end ]; do sleep 0.01; done
"#;

/// A project with its state in one folder, and a file that names another folder.
fn project(pipelines: usize) -> Project {
    let project = Project::new(QUICK);
    project.write(
        "other.yaml",
        &format!("{QUICK}  backend_config: {{state_dir: other}}\nplugins: {{}}\n"),
    );
    for n in 1..=pipelines {
        project.write(&format!("pipelines/p{n}.yaml"), "pipeline: [{name: a, run: 'true'}]");
        project.run(&["run", &format!("p{n}")]).expect(0);
    }
    project
}

/// What the program does with the other store.
fn other(project: &Project, arguments: &[&str]) -> Ran {
    project.run(&[arguments, &["--project", "other.yaml"]].concat())
}

/// Starts the program. What it says goes to the file `log`: a pipe that nobody reads would stop it.
fn start_logged(project: &Project, arguments: &[&str]) -> Running {
    let log = std::fs::File::create(project.path().join("log")).unwrap();
    let mut command = project.command(arguments);
    Running::from(command.stdout(std::process::Stdio::null()).stderr(log).spawn().unwrap())
}

fn counted(project: &Project, file: &str) -> Value {
    let shown = project.run(&["state", "show", "p", "--json", "--project", file]).expect(0);
    serde_json::from_str::<Value>(&shown.stdout).unwrap()["data"]["state"].clone()
}

#[test]
fn all_records_arrive_byte_by_byte_and_the_old_store_sends_workers_away() {
    let project = project(3);
    project.run(&["run", "p1", "--fresh"]).expect(0);
    let before = records(&project.path().join(".oxiflow/state"));
    assert!(before.len() >= 7, "{:?}", before.keys());

    let moved = project.run(&["migrate", "--to", "other.yaml", "--yes", "--verify"]);
    insta::assert_snapshot!(moved.story(&project), @r"
    exit 0
    --- stderr
    from the `file` store of DIR/oxiflow.yaml
    to the `file` store of DIR/other.yaml
    moved 3 pipelines with 8 records, each read back and compared
    the state is kept in the `file` store of DIR/other.yaml now
    compared both stores: 8 records are equal, 0 are not
    ");
    assert_eq!(records(&project.path().join("other")), before);

    let refused = project.run(&["run", "p1"]);
    insta::assert_snapshot!(refused.story(&project), @r"
    exit 2
    --- stderr
    error: pipeline `p1` was moved to the `file` store of DIR/other.yaml on TIME
    hint: use it there: `--project DIR/other.yaml`
    ");
    project.write("pipelines/new.yaml", "pipeline: [{name: a, run: 'true'}]");
    let refused = project.run(&["run", "new"]);
    insta::assert_snapshot!(refused.story(&project), @r"
    exit 2
    --- stderr
    error: pipeline `new` has no state in this store, which was moved to the `file` store of DIR/other.yaml
    hint: use it there: `--project DIR/other.yaml`
    ");
    let left = project.run(&["state", "list"]).expect(0);
    assert_eq!(left.stdout.matches("moved").count(), 3, "{}", left.stdout);
    let left = project.run(&["state", "show", "p1"]).expect(0);
    assert!(left.stderr.contains("left behind when it was moved"), "{}", left.stderr);
    other(&project, &["run", "p1"]).expect(0);
    other(&project, &["run", "new"]).expect(0);

    // Files may be called otherwise by then.
    std::fs::rename(project.path().join("other.yaml"), project.path().join("new.yaml")).unwrap();
    let undone = project.run(&["migrate", "--to", "new.yaml", "--undo", "--yes"]);
    std::fs::rename(project.path().join("new.yaml"), project.path().join("other.yaml")).unwrap();
    insta::assert_snapshot!(undone.story(&project), @r"
    exit 0
    --- stderr
    from the `file` store of DIR/new.yaml
    to the `file` store of DIR/oxiflow.yaml
    moved 4 pipelines with 11 records, each read back and compared
    the state is kept in the `file` store of DIR/oxiflow.yaml now
    ");
    let back = records(&project.path().join(".oxiflow/state"));
    assert_eq!(back, records(&project.path().join("other")));
    assert!(back.len() > before.len());
    other(&project, &["run", "p1"]).expect(2);
    for pipeline in ["p1", "p2", "p3", "new"] {
        project.run(&["run", pipeline]).expect(0);
    }
    project.run(&["migrate", "--to", "other.yaml", "--yes", "--verify"]).expect(0);
}

#[test]
fn what_is_in_the_way_is_said_and_nothing_is_changed() {
    let project = project(1);
    let untouched = contents(project.path());
    let planned = project.run(&["migrate", "--to", "other.yaml", "--dry-run"]);
    let planned = planned.story(&project).replace("2.6 KiB", "SIZE").replace("2.5 KiB", "SIZE");
    insta::assert_snapshot!(planned, @r"
    exit 0
    --- stderr
    1 pipeline with 2 records (SIZE) would be moved; nothing was changed: this was a dry run
    ");
    let not_begun = project.run(&["migrate", "--to", "other.yaml", "--resume", "--yes"]);
    insta::assert_snapshot!(not_begun.story(&project), @r"
    exit 1
    --- stderr
    from the `file` store of DIR/oxiflow.yaml
    to the `file` store of DIR/other.yaml
    error: no migration leads from this store to DIR/other.yaml
    hint: begin one without `--resume` and `--undo`
    ");
    let unasked = project.run(&["migrate", "--to", "other.yaml"]);
    insta::assert_snapshot!(unasked.story(&project), @r"
    exit 2
    --- stderr
    from the `file` store of DIR/oxiflow.yaml
    to the `file` store of DIR/other.yaml
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    ");
    let same = project.run(&["migrate", "--to", "oxiflow.yaml", "--yes"]);
    insta::assert_snapshot!(same.story(&project), @r"
    exit 2
    --- stderr
    from the `file` store of DIR/oxiflow.yaml
    to the `file` store of DIR/oxiflow.yaml
    error: both configurations name the same store
    ");
    let states = |files: BTreeMap<PathBuf, Option<Vec<u8>>>| -> Vec<_> {
        files.into_iter().filter(|(path, _)| path.ends_with("p1.json")).collect()
    };
    assert_eq!(states(contents(project.path())), states(untouched));

    other(&project, &["run", "p1"]).expect(0);
    let in_use = project.run(&["migrate", "--to", "other.yaml", "--yes"]);
    insta::assert_snapshot!(in_use.story(&project), @r"
    exit 2
    --- stderr
    from the `file` store of DIR/oxiflow.yaml
    to the `file` store of DIR/other.yaml
    error: the store of DIR/other.yaml is in use (1 with state)
    hint: name an empty store: another folder, file, database, schema or prefix
    ");
}

#[test]
fn a_running_pipeline_stays_until_it_may_be_taken_along() {
    let project = project(1);
    project.write("pipelines/p.yaml", COUNTER);
    project.write("upto", "1000000");
    let runner = start_logged(&project, &["run", "p"]);
    let reached = |file: &str, at_least: u64| {
        wait_for("the count to go on", || {
            let shown = project.run(&["state", "show", "p", "--json", "--project", file]);
            let shown: Value = serde_json::from_str(&shown.stdout).ok()?;
            let records = shown["data"]["state"]["records_processed"].as_u64()?;
            (records >= at_least).then_some(records)
        })
    };
    reached("oxiflow.yaml", 3);
    let left = project.run(&["migrate", "--to", "other.yaml", "--yes"]);
    assert_eq!(left.code, 4, "{}", left.stderr);
    assert!(left.stderr.contains("`p` is left where it is"), "{}", left.stderr);

    let moved = project.run(&["migrate", "--to", "other.yaml", "--resume", "--live", "--yes"]);
    assert_eq!(moved.code, 0, "{}", moved.stderr);
    assert!(moved.stderr.contains("`p` was taken along by its worker"), "{}", moved.stderr);
    let here = counted(&project, "oxiflow.yaml")["records_processed"].as_u64().unwrap();
    let there = reached("other.yaml", here + 3);
    let workers = other(&project, &["worker", "list"]).expect(0);
    assert!(workers.stdout.contains("active"), "{}", workers.stdout);
    assert_eq!(counted(&project, "oxiflow.yaml")["records_processed"], here);

    project.write("upto", &format!("{}", there + 20));
    project.write("end", "");
    runner.finish().expect(0);
    let log = project.read("log");
    assert!(log.contains("the state is kept in the `file` store of"), "{log}");
    let state = counted(&project, "other.yaml");
    assert_eq!(state["status"], "completed");
    // One record a number: none was lost or counted twice on the way.
    assert_eq!(
        state["records_processed"].to_string(),
        state["last_processed_id"].as_str().unwrap()
    );
    project.run(&["run", "p"]).expect(2);
}

#[test]
fn a_worker_killed_on_its_way_loses_nothing() {
    let mut random = Random::from_seed();
    for round in 0..4 {
        let project = project(0);
        project.write("pipelines/p.yaml", COUNTER);
        project.write("upto", "1000000");
        let runner = start_logged(&project, &["run", "p", "-v"]);
        wait_for("a first checkpoint", || project.state("p"));
        let migration = project.start(&["migrate", "--to", "other.yaml", "--live", "--yes"]);
        // This is no wait for a condition: the point in time is what is tested.
        std::thread::sleep(Duration::from_millis(random.below(700)));
        runner.signal("-KILL");
        if random.below(2) == 0 {
            migration.kill();
        } else {
            migration.finish();
        }
        runner.finish();
        let log = project.read("log");
        let saved = log.lines().filter(|line| line.contains("State saved to disk"));
        let version = |line: &str| line.rsplit_once("version=")?.1.trim().parse::<u64>().ok();
        let acknowledged = saved.filter_map(version).max().unwrap_or(0);

        let resumed = project.run(&["migrate", "--to", "other.yaml", "--resume", "--yes"]);
        let was_done = resumed.stderr.contains("everything was moved before");
        let not_begun = resumed.stderr.contains("no migration leads");
        assert!(resumed.code == 0 || was_done || not_begun, "{}", resumed.stderr);
        let file = if not_begun { "oxiflow.yaml" } else { "other.yaml" };
        let state = counted(&project, file);
        let version = state["version"].as_u64().unwrap();
        assert!(
            version >= acknowledged,
            "round {round}: {acknowledged} was saved, {version} is there"
        );
        let records = state["records_processed"].as_u64().unwrap();
        project.write("upto", &(records + 5).to_string());
        project.write("end", "");
        project.run(&["run", "p", "--project", file]).expect(0);
        let state = counted(&project, file);
        assert_eq!(state["records_processed"].to_string(), state["last_processed_id"]);
    }
}

/// A number that is hard to guess, from a seed that is printed.
struct Random(u64);

impl Random {
    fn from_seed() -> Self {
        let seed = std::env::var("OXIFLOW_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let seed = seed.unwrap_or(u64::from(now.subsec_nanos()));
        println!("OXIFLOW_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn killed_at_any_instant_it_can_be_finished_or_taken_back() {
    let mut random = Random::from_seed();
    let project = project(8);
    let before = records(&project.path().join(".oxiflow/state"));
    let migrate = |flag: &'static str| {
        let mut arguments = vec!["migrate", "--to", "other.yaml", "--yes"];
        arguments.extend((!flag.is_empty()).then_some(flag));
        arguments
    };
    let started = Instant::now();
    project.run(&migrate("")).expect(0);
    let duration = u64::try_from(started.elapsed().as_millis()).unwrap();
    project.run(&migrate("--undo")).expect(0);
    let outgoing = || project.path().join(".oxiflow/state/other/migration/outgoing.json");
    let mut met = 0;
    for round in 0..16 {
        let mut flag = "";
        // Begun, and killed again and again on its way forth and back; in every fourth round once,
        // and when it has begun for certain, however long that took the first time.
        let is_begun = round % 4 == 0;
        for _ in 0..=(if is_begun { 0 } else { random.below(3) }) {
            let mut running = project.start(&migrate(flag));
            if is_begun {
                wait_for("the migration to begin", || outgoing().exists().then_some(()));
            }
            // This is no wait for a condition: the point in time is what is tested.
            std::thread::sleep(Duration::from_millis(random.below(duration)));
            running.ended();
            running.kill();
            flag = if random.below(2) == 0 { "--resume" } else { "--undo" };
        }
        // Wherever it was killed, a pipeline runs in one store at the most. Before it has begun,
        // and after it was taken back, the other store is nobody's business.
        if outgoing().exists() {
            let runs = |file: &str| project.run(&["run", "p1", "--project", file]).code == 0;
            let (here, there) = (runs("oxiflow.yaml"), runs("other.yaml"));
            assert!(!(here && there), "round {round}: p1 runs in both stores");
            met += 1;
        }

        let finished = project.run(&migrate("--undo"));
        let not_begun = finished.stderr.contains("no migration leads");
        assert!(finished.code == 0 || not_begun, "round {round}: {}", finished.stderr);
        project.run(&["run", "p1"]).expect(0);
        let after = records(&project.path().join(".oxiflow/state"));
        assert!(before.keys().all(|file| after.contains_key(file)), "round {round}");
        for (file, bytes) in before.iter().filter(|(file, _)| !file.contains("p1")) {
            assert_eq!(after.get(file), Some(bytes), "round {round}: {file}");
        }
    }
    assert!(met > 2, "only {met} rounds met a migration under way");
    project.run(&["migrate", "--to", "other.yaml", "--yes", "--verify"]).expect(0);
}
