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
use serde_json::{Map, Value, json};

use crate::kit::{Project, QUICK, Ran, plugin_library, repository};

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
    },
    Change {
        name: "lock",
        prepare: unfinished,
        arguments: |_| words("state lock p --reason moving"),
        says: "locked pipeline `p` until",
        again: &[],
        between: Between::Nothing,
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
    },
];

/// Reports `c1`, and ends well only when there is a file `go`.
const STEP: &str = "
pipeline:
  - name: a
    run: oxide_flow progress --records 3 --last-id c1 && test -e go
";

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// The `data` of what a command printed with `--json`.
fn data(ran: &Ran) -> Value {
    let mut document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    document["data"].take()
}

/// A project whose pipeline `p` failed after `c1`.
fn unfinished() -> Project {
    let project = Project::steady(STEP);
    project.run(&["run"]).expect(1);
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

/// What a person sees of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The state without what changes from one save to the next; null when there is none.
    state: Value,
    /// How often it was saved.
    version: u64,
    /// The reason of a lock on it; null without one.
    lock: Value,
}

/// Looks at the pipeline. It must be readable.
#[track_caller]
pub fn look(project: &Project, context: &str) -> Seen {
    let ran = project.run(&["state", "show", "p", "--json"]);
    if ran.code != 0 {
        assert!(ran.stderr.contains("has no state"), "{context}: {}", ran.stderr);
        return Seen { state: Value::Null, version: 0, lock: Value::Null };
    }
    let mut data = data(&ran);
    let mut state = data["state"].take();
    let version = state["version"].as_u64().expect("a number");
    for changing in ["version", "epoch", "worker_id", "last_heartbeat"] {
        state[changing] = json!(null);
    }
    Seen { state, version, lock: data["lock"]["reason"].take() }
}

/// Fails unless every record of the store is whole.
#[track_caller]
pub fn verify(project: &Project, context: &str) {
    for command in ["state list", "worker list --all", "state history p"] {
        let ran = project.run(&words(command).iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ran.code, 0, "{context}: {command}: {}{}", ran.stdout, ran.stderr);
    }
}

/// A change with a project to be copied, and how the pipeline looks before and after it.
pub struct Prepared {
    /// The change.
    pub change: &'static Change,
    /// The project before it.
    pub project: Project,
    /// The arguments of the command.
    pub arguments: Vec<String>,
    before: Seen,
    after: Seen,
}

impl Prepared {
    /// Prepares a change. `undisturbed` makes it once, in a copy.
    pub fn new(change: &'static Change, undisturbed: impl FnOnce(&Project, &[String])) -> Self {
        let project = (change.prepare)();
        let arguments = (change.arguments)(&project);
        let before = look(&project, change.name);
        let copy = project.duplicate();
        undisturbed(&copy, &arguments);
        let after = look(&copy, change.name);
        verify(&copy, change.name);
        Self { change, project, arguments, before, after }
    }

    /// Fails unless the pipeline is as before or after the change, and as after it when the
    /// command ended well or said that the change is made.
    #[track_caller]
    pub fn judge(&self, project: &Project, ran: &Ran, context: &str) {
        let seen = look(project, context);
        let done = ran.code == 0 || ran.stderr.contains(self.change.says);
        let fine = if done { self.is_after(&seen) } else { self.may_be(&seen) };
        let Self { before, after, .. } = self;
        assert!(fine, "{context}: {ran:?}\nfound {seen:?}\nbefore {before:?}\nafter {after:?}");
        assert!(!ran.stderr.contains("panicked") && ran.code != 70, "{context}: {ran:?}");
    }

    /// Fails unless the command, given again with nothing in its way, finishes the change.
    #[track_caller]
    pub fn finish(&self, project: &Project, context: &str) {
        let ran = project.run(&self.arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let seen = look(project, context);
        let code_fits = ran.code == 0 || self.change.again.contains(&ran.code);
        assert!(code_fits && self.is_after(&seen), "{context}: {ran:?}\nfound {seen:?}");
        verify(project, context);
    }

    /// Whether the change is a run, and it has run to its end.
    pub fn has_run(&self, project: &Project) -> bool {
        let runs = matches!(self.change.between, Between::Cursors(_));
        runs && self.is_after(&look(project, self.change.name))
    }

    fn is_after(&self, seen: &Seen) -> bool {
        match self.change.between {
            Between::Nothing => (&seen.state, &seen.lock) == (&self.after.state, &self.after.lock),
            // Each run has its own id and times.
            Between::Cursors(_) => ["status", "last_processed_id"]
                .iter()
                .all(|field| seen.state[field] == self.after.state[field]),
        }
    }

    fn may_be(&self, seen: &Seen) -> bool {
        let untouched = (&seen.state, &seen.lock) == (&self.before.state, &self.before.lock);
        let under_way = match self.change.between {
            Between::Nothing => false,
            Between::Cursors(cursors) => {
                let cursor = seen.state["last_processed_id"].as_str();
                let records = seen.state["records_processed"].as_u64();
                cursor.is_some_and(|cursor| cursors.contains(&cursor))
                    && (cursor == Some("")) == (records == Some(0))
            }
        };
        seen.version >= self.before.version && (untouched || under_way || self.is_after(seen))
    }
}
