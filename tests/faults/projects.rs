//! Projects with a pipeline `p` and something to change: failed runs, backups, states of the
//! original program, rescued states, records of an old key.

use std::os::unix::fs::PermissionsExt;

use oxide_flow::app::App;
use oxide_flow::config::{Config, ProjectLocation};
use oxide_flow::recovery::{Rescued, write_rescue_file};
use oxiflow_plugin_api::{Call, Expected};
use serde_json::{Map, Value};

use crate::kit::{Project, QUICK, plugin_library, repository};

/// Reports `c1`, and ends well only when there is a file `go`.
const STEP: &str = "
pipeline:
  - name: a
    run: oxide_flow progress --records 3 --last-id c1 && test -e go
";

/// A pipeline `p` that has not run yet and will end well.
pub fn not_begun() -> Project {
    let project = Project::with_pipeline(STEP);
    project.write("go", "");
    project
}

/// One that has.
pub fn completed() -> Project {
    let project = not_begun();
    project.run(&["run"]).expect(0);
    project
}

/// One that failed after `c1`.
pub fn unfinished() -> Project {
    let project = Project::with_pipeline(STEP);
    project.run(&["run"]).expect(1);
    project
}

/// The same, and would end well now.
pub fn resumable() -> Project {
    let project = unfinished();
    project.write("go", "");
    project
}

/// An unfinished one, with two backups.
pub fn with_backups() -> Project {
    let project = unfinished();
    project.run(&["state", "backup", "p"]).expect(0);
    project.run(&["state", "backup", "p"]).expect(0);
    project
}

/// An unfinished one, with an export that has another cursor in `other.json`.
pub fn with_export() -> Project {
    let project = unfinished();
    let exported = project.run(&["state", "export", "p"]).expect(0).stdout;
    let mut state: Value = serde_json::from_str(&exported).expect("a state");
    state["last_processed_id"] = "c7".into();
    project.write("other.json", &state.to_string());
    project
}

/// One whose state was imported over that of a failed run.
pub fn imported() -> Project {
    let project = with_export();
    project.run(&["state", "import", "p", "--file", "other.json", "--yes"]).expect(0);
    project
}

/// One whose state is in the schema of the original program.
pub fn of_the_original_program() -> Project {
    let project = Project::with_pipeline(STEP);
    let path = repository().join("tests/fixtures/states/v1-paused.json");
    let mut body: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    body["pipeline_id"] = "p".into();
    seal(&project, 1, &body);
    project
}

/// An unfinished one whose state is whole and contradicts itself.
pub fn invalid() -> Project {
    let project = unfinished();
    let exported = project.run(&["state", "export", "p"]).expect(0).stdout;
    let mut body: Value = serde_json::from_str(&exported).expect("a state");
    body["records_processed"] = 1.into();
    seal(&project, 2, &body);
    project
}

/// An unfinished one whose state is damaged. Its history has a copy.
pub fn damaged() -> Project {
    let project = unfinished();
    damage(&project, ".oxiflow/state/states/p.json");
    project
}

/// An unfinished one whose lease is damaged.
pub fn with_damaged_lease() -> Project {
    let project = unfinished();
    damage(&project, ".oxiflow/state/leases/p.json");
    project
}

/// Changes a byte in the middle of a file.
fn damage(project: &Project, path: &str) {
    let path = project.path().join(path);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Puts a state of this schema into the store, whatever is wrong with it.
fn seal(project: &Project, schema: u32, body: &Value) {
    let plugin = oxide_flow::plugin::Plugin::load(&plugin_library("file")).unwrap();
    let storage = plugin.open(&Map::new(), project.path()).unwrap();
    let clock = oxide_flow::clock::SystemClock::shared();
    let records = oxide_flow::layer::stack(storage, "file", 0, clock);
    let body = body.to_string().into_bytes();
    records.put(&Call::unbounded(), "state/p", schema, &body, &Expected::Any).unwrap();
}

/// An unfinished one, with a rescued state that follows the stored one in `rescued.oxiflow`.
pub fn rescued() -> Project {
    let project = unfinished();
    let plugins = plugin_library("file").parent().unwrap().display().to_string();
    let env = |name: &str| (name == "OXIFLOW_PLUGIN_PATH").then(|| plugins.clone());
    let location = ProjectLocation::Explicit(project.path().to_owned());
    let app = App::open(Config::load(&location, &env).unwrap(), &env).unwrap();
    let stored = app.store.load_state(&"p".parse().unwrap()).unwrap().unwrap();
    let (mut state, saves) = (stored.value.clone(), stored.value.version);
    state.last_processed_id = "c2".into();
    let (cause, now) = ("the disk was full".to_owned(), app.clock.now());
    let rescued = Rescued::new(&state, &stored.version, saves, cause, now);
    let folder = project.path().join("rescued");
    let file = write_rescue_file(&app.store, &rescued, &[folder]).unwrap();
    std::fs::rename(file, project.path().join("rescued.oxiflow")).unwrap();
    project
}

/// A locked one.
pub fn locked() -> Project {
    let project = unfinished();
    project.run(&["state", "lock", "p", "--reason", "moving"]).expect(0);
    project
}

/// One with more history than is to be kept.
pub fn with_old_history() -> Project {
    let project = unfinished();
    project.run(&["run"]).expect(1);
    project.run(&["run"]).expect(1);
    project.write("oxiflow.yaml", &format!("{QUICK}  history_keep: 1\n"));
    project
}

/// A project with an encrypted store whose key is to be replaced.
pub fn encrypted() -> Project {
    let project = Project::with_pipeline(STEP);
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
}
