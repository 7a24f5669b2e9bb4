//! Plugins and hosts of different minor versions of the ABI work with each other.
//!
//! `fixtures/abi-1.0` holds a plugin and a host as they were built when 1.0 was published, with
//! the interface and the lock file of then; see its README for what may be changed there.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{BatchMode, Call, Change, Changed, ErrorKind, Expected};
use serde_json::{Map, Value, json};

use kit::{PLUGINS, Project, plugin_library, repository};

/// The folder with what is built of the fixture.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("abi-1.0");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--locked", "--quiet", "--target-dir"])
            .arg(&target)
            .current_dir(repository().join("tests/fixtures/abi-1.0"))
            .status();
        assert!(status.expect("cargo starts").success());
        target.join("debug")
    })
}

fn frozen_plugin() -> PathBuf {
    built().join("liboxiflow_backend_frozen.so")
}

fn options(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// A project that keeps its state in the plugin of then.
fn project() -> Project {
    let project = Project::new(
        "project: {name: test}\nstate:\n  backend: frozen\n  backend_config: {path: frozen.json}\n",
    );
    project.write("pipelines/p.yaml", "pipeline:\n- {name: one, run: 'true'}\n");
    project
}

#[test]
fn a_plugin_of_1_0_is_shown_with_its_version() {
    let library = frozen_plugin();
    let ran = project().run(&["plugin", "inspect", library.to_str().unwrap(), "--json"]).expect(0);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let shown = &document["data"];
    assert_eq!((&shown["abi"], &shown["rust"]), (&json!("1.0"), &json!(true)), "{shown:#}");
    assert_eq!(shown["capabilities"], json!(["durable", "multi_process"]));
}

#[test]
fn a_pipeline_keeps_its_state_in_a_plugin_of_1_0() {
    let project = project();
    let folder = frozen_plugin().parent().unwrap().to_owned();
    let run = |arguments: &[&str]| {
        let mut command = project.command(arguments);
        command.env("OXIFLOW_PLUGIN_PATH", &folder);
        kit::Ran::from(command.output().unwrap()).expect(0)
    };
    run(&["run", "p"]);
    run(&["state", "backup", "p"]);
    run(&["state", "validate", "p"]);
    let shown: Value =
        serde_json::from_str(&run(&["state", "show", "p", "--json"]).stdout).unwrap();
    assert_eq!(shown["data"]["state"]["status"], "completed", "{shown:#}");
    let ran = run(&["-v", "run", "p", "--fresh"]);
    assert!(ran.stderr.contains("opened as of ABI 1.0"), "{}", ran.stderr);
    run(&["state", "delete", "p", "--yes"]);
}

#[test]
fn a_plugin_of_1_0_gets_single_calls_for_a_batch() {
    let folder = tempfile::TempDir::with_prefix("oxiflow-abi-").unwrap();
    let plugin = Plugin::load(&frozen_plugin()).unwrap();
    assert_eq!(plugin.abi_version(), (1, 0));
    let options = options(&json!({ "path": "f.json", "panic_at": "bad" }));
    let store = plugin.open(&options, folder.path()).unwrap();
    assert!(!store.supports_batch());
    let call = Call::unbounded();
    let changes = [Change::put("a", b"1", Expected::Absent), Change::delete("b", Expected::Any)];
    let results = store.apply(&call, &changes, BatchMode::Independent).unwrap();
    assert!(matches!(results[0], Ok(Changed::Put(_))), "{results:?}");
    assert_eq!(results[1], Ok(Changed::Absent));
    let refused = store.apply(&call, &changes, BatchMode::Atomic).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    // What the first version promised holds too: a panic is that call's error.
    let panicked = store.get(&call, "bad").unwrap_err();
    assert_eq!(panicked.kind(), ErrorKind::Panic);
    assert_eq!(store.get(&call, "a").unwrap().unwrap().value, b"1");
}

#[test]
fn plugins_of_now_work_in_a_host_that_knows_only_1_0() {
    let host = built().join("host-of-abi-1-0");
    // Those that need no server; all are built the same way.
    for backend in ["file", "memory", "sqlite"] {
        assert!(PLUGINS.contains(&backend));
        let folder = tempfile::TempDir::with_prefix("oxiflow-abi-").unwrap();
        let mut command = Command::new(&host);
        command.arg(plugin_library(backend)).arg(folder.path()).arg("{}");
        let output = command.output().unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{backend}: {stdout}{stderr}");
        let (major, minor) = Plugin::load(&plugin_library(backend)).unwrap().abi_version();
        assert!((major, minor) > (1, 0), "otherwise this shows nothing");
        let wanted = format!("in a host of ABI 1.0, built with {major}.{minor}");
        assert!(stdout.contains(&wanted), "{backend}: {stdout}");
    }
}

#[test]
fn a_plugin_of_now_makes_batches_for_a_host_of_now() {
    let folder = tempfile::TempDir::with_prefix("oxiflow-abi-").unwrap();
    let plugin = Plugin::load(&plugin_library("sqlite")).unwrap();
    let store = plugin.open(&Map::new(), folder.path()).unwrap();
    assert!(store.supports_batch());
    let call = Call::unbounded();
    let first =
        [Change::put("a", b"1", Expected::Absent), Change::put("b", b"2", Expected::Absent)];
    assert_eq!(store.apply(&call, &first, BatchMode::Atomic).unwrap().len(), 2);
    let second = [Change::delete("a", Expected::Any), Change::put("b", b"3", Expected::Absent)];
    let conflict = store.apply(&call, &second, BatchMode::Atomic).unwrap_err();
    assert_eq!((conflict.kind(), conflict.change()), (ErrorKind::Conflict, Some(1)));
    let there = store.get(&call, "b").unwrap().unwrap();
    assert_eq!(conflict.current(), Some(&there.version));
    assert!(store.get(&call, "a").unwrap().is_some());
}
