//! `oxide_flow plugin certify`: this repository's backends keep the contract, each tried in full
//! through the program; and of plugins that are wrong in one way, exactly what is wrong is told.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;
#[path = "kit/postgres.rs"]
mod postgres;
#[path = "kit/redis.rs"]
mod redis;

#[path = "certify/author.rs"]
mod author;
#[path = "certify/backends.rs"]
mod backends;
#[path = "certify/command.rs"]
mod command;
#[path = "certify/lmdb.rs"]
mod lmdb;
#[path = "certify/wrong.rs"]
mod wrong;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use kit::{Project, Ran};

/// A folder without a project in it: certifying needs none.
fn nowhere() -> Project {
    let project = Project::new("");
    std::fs::remove_file(project.path().join("oxiflow.yaml")).expect("an empty folder");
    project
}

/// Certifies a library with these arguments.
fn certify(library: &Path, arguments: &[&str]) -> Ran {
    let mut all = vec!["plugin", "certify", library.to_str().expect("text")];
    all.extend(arguments);
    nowhere().run(&all)
}

/// What a run with `--json` says, and its exit code.
fn certificate(library: &Path, arguments: &[&str]) -> (Value, i32) {
    let ran = certify(library, &[arguments, &["--json"]].concat());
    let document: Value = serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|error| panic!("{error}\n{}{}", ran.stdout, ran.stderr));
    assert_eq!(document["kind"], "oxide_flow.plugin-certificate/1");
    (document["data"].clone(), ran.code)
}

/// How many tests of each clause ended like this.
fn clauses(certificate: &Value, results: &[&str]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for test in certificate["tests"].as_array().expect("tests") {
        if results.iter().any(|result| test["result"] == *result) {
            let clause = test["clause"].as_str().expect("a clause").to_owned();
            *counts.entry(clause).or_insert(0) += 1;
        }
    }
    counts
}

/// The clauses that a plugin broke.
fn broken(certificate: &Value) -> Vec<String> {
    clauses(certificate, &["failed", "died"]).into_keys().collect()
}
