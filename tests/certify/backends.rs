//! The backends of this repository, each with all tests, with worker processes where the backend
//! claims to be safe for several. With `OXIFLOW_CERTIFY=full` at full strength, as for a release.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::{broken, certificate, clauses, kit, postgres, redis};

/// A server on a busy disk takes its time to prepare a store.
const PATIENT: &str = "connect_timeout=1m";

/// Certifies a backend with these options; only these clauses may have tests that do not apply.
#[track_caller]
fn is_certified(backend: &str, options: &[&str], skipped: &[(&str, usize)]) {
    file_is_certified(&kit::plugin_library(backend), options, skipped);
}

/// The same of a file; returns its certificate.
#[track_caller]
pub fn file_is_certified(library: &Path, options: &[&str], skipped: &[(&str, usize)]) -> Value {
    let seed = std::env::var("OXIFLOW_TEST_SEED").unwrap_or(std::process::id().to_string());
    let in_full = std::env::var("OXIFLOW_CERTIFY").is_ok_and(|form| form == "full");
    let mut arguments = vec!["--seed", &seed];
    arguments.extend((!in_full).then_some("--quick"));
    arguments.extend(options.iter().flat_map(|option| ["--option", option]));
    let (certificate, code) = certificate(library, &arguments);
    assert_eq!((broken(&certificate), code), (Vec::new(), 0), "{certificate:#}");
    let verdict = if in_full { "certified" } else { "passed" };
    assert_eq!(certificate["verdict"], verdict, "{certificate:#}");
    let expected = skipped.iter().map(|(clause, count)| ((*clause).to_owned(), *count)).collect();
    let mut found = clauses(&certificate, &["skipped"]);
    // Batches are an extension, which a backend need not have.
    found.remove("C15");
    assert_eq!(found, expected, "{certificate:#}");
    let promises = if skipped.is_empty() { 2 } else { 0 };
    let capabilities: Option<&Vec<Value>> = certificate["capabilities"].as_array();
    assert_eq!(capabilities.map(Vec::len), Some(promises), "{certificate:#}");
    certificate
}

/// Builds the library of an example in this folder, by its own Makefile.
#[track_caller]
pub fn make(example: &str, folder: &Path) {
    let made = Command::new("make")
        .args(["--silent", "--directory"])
        .arg(kit::repository().join("plugins").join(example))
        .arg(format!("OUTPUT={}", folder.display()))
        .output();
    kit::Ran::from(made.expect("make starts")).expect(0);
}

#[test]
fn the_file_backend_is_certified() {
    is_certified("file", &[], &[]);
}

#[test]
fn the_memory_backend_is_certified() {
    // Nothing of it is shared with another process or there after reopening.
    is_certified("memory", &[], &[("C1", 1), ("C2", 1), ("C5", 1), ("C6", 2), ("C11", 1)]);
}

#[test]
fn the_sqlite_backend_is_certified() {
    is_certified("sqlite", &[], &[]);
}

#[test]
fn the_postgres_backend_is_certified() {
    let Some(server) = postgres::Server::start(&[]) else { return };
    let dsn = format!("dsn={}", server.dsn());
    let password = format!("password={}", postgres::PASSWORD);
    is_certified("postgres", &[&dsn, &password, PATIENT], &[]);
}

#[test]
fn the_http_backend_is_certified() {
    // Through a real server process, over the file backend.
    let project = kit::Project::new(kit::QUICK);
    let token = "0123456789abcdef0123456789abcdef";
    let served = kit::Served::start_with(&project, &["--token-env", "TOKEN"], &[("TOKEN", token)]);
    let (url, token) = (format!("url={}", served.url), format!("token={token}"));
    is_certified("http", &[&url, &token, PATIENT], &[]);
}

#[test]
fn the_redis_backend_is_certified() {
    let Some(server) = redis::Server::start(redis::DURABLE) else { return };
    is_certified("redis", &[&format!("url={}", server.url()), PATIENT], &[]);
}

#[test]
fn the_example_in_c_is_built_by_its_own_makefile_and_certified() {
    let folder = TempDir::with_prefix("oxiflow-c-").expect("a folder");
    make("example-c", folder.path());
    file_is_certified(&folder.path().join("liboxiflow_backend_cfolder.so"), &[], &[]);
}
