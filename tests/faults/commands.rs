//! The commands that change a store, each with a project in which it has something to change.
//!
//! A new command that writes is one entry in [`CHANGES`]: kills, errors and full disks are then
//! tried at it.

use std::os::unix::fs::PermissionsExt;

use chrono::{DateTime, Utc};
use oxide_flow::app::App;
use oxide_flow::config::{Config, ProjectLocation};
use oxide_flow::recovery::{Rescued, write_rescue_file};
use oxiflow_plugin_api::{Call, Expected};
use serde_json::{Map, Value};

use crate::kit::{Project, QUICK, plugin_library, repository};
use crate::subject::data;

/// A command that changes the store.
pub struct Change {
    /// What it is called in messages.
    pub name: &'static str,
    /// Makes a project in which it has something to change.
    pub prepare: fn() -> Project,
    /// Its arguments.
    pub arguments: fn(&Project) -> Vec<String>,
    /// What it says once the change is made, and not before.
    pub says: &'static str,
    /// Its exit codes when the change has been made before, beside 0.
    pub again: &'static [i32],
    /// Which states there may be meanwhile.
    pub between: Between,
    /// What becomes of the backups.
    pub copies: Copies,
}

/// What a command does to the backups of the pipeline.
#[derive(Clone, Copy)]
pub enum Copies {
    /// Nothing that matters.
    Nothing,
    /// It adds one, and before it changes the state.
    Adds,
    /// It leaves so many.
    Leaves(usize),
}

/// Which states of the pipeline there may be while a command is under way.
#[derive(Clone, Copy)]
pub enum Between {
    /// The one before and the one after.
    Nothing,
    /// Those of a run: it saves several times, with one of these cursors.
    Cursors(&'static [&'static str]),
}

/// All of them.
pub const CHANGES: &[Change] = &[
    Change {
        name: "first run",
        prepare: || {
            let project = Project::steady(STEP);
            project.write("go", "");
            project
        },
        arguments: |_| words("run p"),
        says: "p: completed in",
        again: &[],
        between: Between::Cursors(&["", "c1"]),
        copies: Copies::Nothing,
    },
    Change {
        name: "resumed run",
        prepare: || {
            let project = unfinished();
            project.write("go", "");
            project
        },
        arguments: |_| words("run p"),
        says: "p: completed in",
        again: &[],
        between: Between::Cursors(&["c1"]),
        copies: Copies::Nothing,
    },
    Change {
        name: "fresh run",
        prepare: || {
            let project = unfinished();
            project.write("go", "");
            project
        },
        arguments: |_| words("run p --fresh"),
        says: "p: completed in",
        again: &[],
        between: Between::Cursors(&["", "c1"]),
        copies: Copies::Adds,
    },
    Change {
        name: "import",
        prepare: || {
            let project = unfinished();
            write_other(&project);
            project
        },
        arguments: |_| words("state import p --file other.json --yes"),
        says: "imported the state",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "rollback",
        prepare: || {
            let project = unfinished();
            write_other(&project);
            project.run(&["state", "import", "p", "--file", "other.json", "--yes"]).expect(0);
            project
        },
        arguments: |project| {
            let history = data(&project.run(&["state", "history", "p", "--json"]).expect(0));
            let first = history.as_array().unwrap().last().unwrap()["history_id"].clone();
            words(&format!("state rollback p --to {} --yes", first.as_str().unwrap()))
        },
        says: "rolled back",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "upgrade",
        prepare: || {
            let project = Project::steady(STEP);
            write_schema_1(&project);
            project
        },
        arguments: |_| words("state upgrade p --yes"),
        says: "upgraded",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "push",
        prepare: || {
            let project = unfinished();
            write_rescued(&project);
            project
        },
        arguments: |_| words("state push rescued.oxiflow --yes"),
        says: "put back the state",
        // The stored state is no longer the one that the rescued one follows.
        again: &[4],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "rekey",
        prepare: || {
            let project = Project::steady(STEP);
            for (name, byte) in [("one", "01"), ("two", "02")] {
                project.write(name, &byte.repeat(32));
                let mode = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(project.path().join(name), mode).unwrap();
            }
            let plain = project.read("oxiflow.yaml");
            project.write("oxiflow.yaml", &format!("{plain}  encryption: {{key_file: one}}\n"));
            project.run(&["run"]).expect(1);
            let keys = "{key_file: two, fallback: {key_file: one}}";
            project.write("oxiflow.yaml", &format!("{plain}  encryption: {keys}\n"));
            project
        },
        arguments: |_| words("state rekey --yes"),
        says: "rewrote",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "lock",
        prepare: unfinished,
        arguments: |_| words("state lock p --reason moving"),
        says: "locked pipeline `p` until",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "unlock",
        prepare: || {
            let project = unfinished();
            project.run(&["state", "lock", "p", "--reason", "moving"]).expect(0);
            project
        },
        arguments: |_| words("state unlock p"),
        says: "unlocked pipeline",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "maintain",
        prepare: || {
            let project = unfinished();
            project.run(&["run"]).expect(1);
            project.run(&["run"]).expect(1);
            project.write("oxiflow.yaml", &format!("{QUICK}  history_keep: 1\n"));
            project
        },
        arguments: |_| words("maintain"),
        says: "removed",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "backup",
        prepare: unfinished,
        arguments: |_| words("state backup p"),
        says: "backed up the state",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "restore",
        prepare: || {
            let project = unfinished();
            write_other(&project);
            project.run(&["state", "import", "p", "--file", "other.json", "--yes"]).expect(0);
            project
        },
        arguments: |project| {
            let backups = data(&project.run(&["state", "list-backups", "p", "--json"]).expect(0));
            let only = backups[0]["id"].as_str().unwrap();
            words(&format!("state restore p --backup {only} --yes"))
        },
        says: "restored `p` from backup",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "delete",
        prepare: unfinished,
        arguments: |_| words("state delete p --yes"),
        says: "deleted the state",
        // There is no state to delete.
        again: &[1],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "delete with backups",
        prepare: with_backups,
        arguments: |_| words("state delete p --backups --yes"),
        says: "records of backups",
        again: &[1],
        between: Between::Nothing,
        copies: Copies::Leaves(0),
    },
    Change {
        name: "cleanup",
        prepare: || {
            let project = Project::steady(STEP);
            project.write("go", "");
            project.run(&["run"]).expect(0);
            project
        },
        arguments: |_| words("state cleanup --stale --yes"),
        says: "removed 1 state",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "cleanup of backups",
        prepare: with_backups,
        arguments: |_| words("state cleanup --backups --older-than 1ms --yes"),
        says: "removed",
        again: &[],
        between: Between::Nothing,
        // The newest that verifies never goes.
        copies: Copies::Leaves(1),
    },
];

/// Reports `c1`, and ends well only when there is a file `go`.
const STEP: &str = "
pipeline:
  - name: a
    run: oxide_flow progress --records 3 --last-id c1 && test -e go
";

/// The words of a command line.
pub fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// A project whose pipeline `p` failed after `c1`.
fn unfinished() -> Project {
    let project = Project::steady(STEP);
    project.run(&["run"]).expect(1);
    project
}

/// The same with two backups.
fn with_backups() -> Project {
    let project = unfinished();
    project.run(&["state", "backup", "p"]).expect(0);
    project.run(&["state", "backup", "p"]).expect(0);
    project
}

/// Writes an export with another cursor to `other.json`.
fn write_other(project: &Project) {
    let exported = project.run(&["state", "export", "p"]).expect(0).stdout;
    let mut state: Value = serde_json::from_str(&exported).expect("a state");
    state["last_processed_id"] = "c7".into();
    project.write("other.json", &state.to_string());
}

/// Puts a state of the original program into the store.
fn write_schema_1(project: &Project) {
    let path = repository().join("tests/fixtures/states/v1-paused.json");
    let mut body: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    body["pipeline_id"] = "p".into();
    let plugin = oxide_flow::plugin::Plugin::load(&plugin_library("file")).unwrap();
    let storage = plugin.open(&Map::new(), project.path()).unwrap();
    let clock = oxide_flow::clock::SystemClock::shared();
    let records = oxide_flow::layer::stack(storage, "file", 0, clock);
    let body = body.to_string().into_bytes();
    records.put(&Call::unbounded(), "state/p", 1, &body, &Expected::Any).unwrap();
}

/// Writes a rescued state that follows the stored one to `rescued.oxiflow`.
fn write_rescued(project: &Project) {
    let plugins = plugin_library("file").parent().unwrap().display().to_string();
    let env = |name: &str| (name == "OXIFLOW_PLUGIN_PATH").then(|| plugins.clone());
    let location = ProjectLocation::Explicit(project.path().to_owned());
    let app = App::open(Config::load(&location, &env).unwrap(), &env).unwrap();
    let stored = app.store.load_state(&"p".parse().unwrap()).unwrap().unwrap();
    let mut state = stored.value;
    state.last_processed_id = "c2".into();
    let now: DateTime<Utc> = app.clock.now();
    let rescued = Rescued::new(&state, &stored.version, "the disk was full".into(), now);
    let folder = project.path().join("rescued");
    let file = write_rescue_file(&app.store, &rescued, &[folder]).unwrap();
    std::fs::rename(file, project.path().join("rescued.oxiflow")).unwrap();
}
