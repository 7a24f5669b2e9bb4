//! The conformance suite over this repository's backends, loaded as shared libraries through the
//! real loader: a test per backend that runs every clause, with worker processes where the backend
//! claims to be safe for several.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;
#[path = "kit/postgres.rs"]
mod postgres;
#[path = "kit/redis.rs"]
mod redis;

use std::path::PathBuf;
use std::process::Command;

use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::conformance::{
    Settings, Subject, run_all, run_worker_from_environment, worker_test,
};
use oxiflow_plugin_api::{BackendError, Storage};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const BACKEND: &str = "OXIFLOW_TEST_BACKEND";
const FOLDER: &str = "OXIFLOW_TEST_FOLDER";
const OPTIONS: &str = "OXIFLOW_TEST_OPTIONS";

/// One store of one backend, opened through the loader.
struct Loaded {
    backend: String,
    folder: PathBuf,
    /// Those it cannot do without.
    options: Value,
    plugin: Plugin,
}

impl Loaded {
    fn new(backend: &str, folder: PathBuf, options: Value) -> Self {
        let plugin = Plugin::load(&kit::plugin_library(backend)).expect("the plugin loads");
        Self { backend: backend.to_owned(), folder, options, plugin }
    }
}

impl Subject for Loaded {
    fn open(&self) -> Result<Box<dyn Storage>, BackendError> {
        self.open_with(json!({}))
    }

    fn open_with(&self, options: Value) -> Result<Box<dyn Storage>, BackendError> {
        let mut all: Map<String, Value> = self.options.as_object().cloned().unwrap_or_default();
        all.extend(options.as_object().cloned().unwrap_or_default());
        self.plugin.open(&all, &self.folder)
    }

    fn config_schema(&self) -> Option<Value> {
        self.plugin.description().config_schema.clone()
    }

    fn worker_command(&self) -> Option<Command> {
        let mut command = worker_test("worker")?;
        command
            .env(BACKEND, &self.backend)
            .env(FOLDER, &self.folder)
            .env(OPTIONS, self.options.to_string());
        Some(command)
    }
}

/// Not a test of its own: the suite starts this program again, to be one of several processes on
/// a store.
#[test]
fn worker() {
    let variables = (std::env::var(BACKEND), std::env::var_os(FOLDER), std::env::var(OPTIONS));
    let (Ok(backend), Some(folder), Ok(options)) = variables else { return };
    let options = serde_json::from_str(&options).expect("JSON");
    let subject = Loaded::new(&backend, folder.into(), options);
    if let Some(done) = run_worker_from_environment(&subject) {
        done.expect("the worker does its part");
    }
}

fn conforms(backend: &str, options: Value, expected_skips: &[u8]) {
    let folder = TempDir::with_prefix("oxiflow-conformance-").expect("a folder");
    let subject = Loaded::new(backend, folder.path().to_owned(), options);
    let seed = std::env::var("OXIFLOW_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let settings = Settings {
        processes: 8,
        process_increments: 1_000,
        kills: 50,
        ..Settings::with_seed(seed.unwrap_or_else(|| u64::from(std::process::id())))
    };
    let report = run_all(&subject, &settings);
    println!("{report}");
    assert!(report.is_conforming(), "{report}");
    let skipped: Vec<u8> = report.skips().map(|(outcome, _)| outcome.number).collect();
    assert_eq!(skipped, expected_skips, "{report}");
}

#[test]
fn the_file_backend_conforms() {
    conforms("file", json!({}), &[]);
}

#[test]
fn the_memory_backend_conforms() {
    // Nothing of it is shared with another process or there after reopening.
    conforms("memory", json!({}), &[1, 2, 5, 6, 11]);
}

#[test]
fn the_postgres_backend_conforms() {
    let Some(server) = postgres::Server::start(&[]) else { return };
    let options = json!({ "dsn": server.dsn(), "password": postgres::PASSWORD });
    conforms("postgres", options, &[]);
}

#[test]
fn the_http_backend_conforms() {
    // Through a real server process, over the file backend.
    let project = kit::Project::new(kit::QUICK);
    let token = "0123456789abcdef0123456789abcdef";
    let served = kit::Served::start_with(&project, &["--token-env", "TOKEN"], &[("TOKEN", token)]);
    conforms("http", json!({ "url": served.url, "token": token }), &[]);
}

#[test]
fn the_redis_backend_conforms() {
    let Some(server) = redis::Server::start(redis::DURABLE) else { return };
    conforms("redis", json!({ "url": server.url() }), &[]);
}

#[test]
fn the_sqlite_backend_conforms() {
    conforms("sqlite", json!({}), &[]);
}
