//! Every stored fixture of an older schema becomes a current state, and nothing of it is lost.

use std::path::Path;

use super::*;
use crate::model::{PipelineState, PipelineStatus, StepStatus};

const OLD: &[&str] = &[
    "v1-pending",
    "v1-running",
    "v1-completed",
    "v1-failed",
    "v1-paused",
    "v1-unknown-fields",
    "v1-free-name",
];

fn fixture(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/states");
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn migrated(name: &str) -> Value {
    migrate(fixture(name), 1).unwrap()
}

fn state(name: &str) -> PipelineState {
    serde_json::from_value(migrated(name)).unwrap()
}

fn refused(document: Value, from: u32) -> (ErrorKind, String) {
    let error = migrate(document, from).unwrap_err();
    (error.kind(), crate::error::chain(&error))
}

/// Every value below `value`, with its path.
fn leaves(path: &str, value: &Value, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                leaves(&format!("{path}/{key}"), value, found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                leaves(&format!("{path}/{index}"), value, found);
            }
        }
        value => found.push((path.to_owned(), value.clone())),
    }
}

#[test]
fn the_version_is_told_by_the_field_of_either_program() {
    assert_eq!(version_of(&fixture("v1-pending")), Some(1));
    assert_eq!(version_of(&fixture("v2-completed")), Some(2));
    assert_eq!(version_of(&json!({"schema_version": 9, "metadata": {}})), Some(9));
    let both = json!({"schema_version": 2, "metadata": {"schema_version": "1.0.0"}});
    assert_eq!(version_of(&both), Some(2));
    assert_eq!(version_of(&json!({"metadata": {"schema_version": "3.1.0"}})), Some(3));
    for nothing in [json!({}), json!(null), json!({"schema_version": "2"}), json!([1])] {
        assert_eq!(version_of(&nothing), None, "{nothing}");
    }
}

#[test]
fn there_is_a_step_from_every_version_to_the_current_one() {
    let starts: Vec<u32> = STEPS.iter().map(|(start, _)| *start).collect();
    assert_eq!(starts, (1..SCHEMA_VERSION).collect::<Vec<_>>());
}

#[test]
fn every_field_of_every_original_state_survives() {
    for name in OLD {
        let (before, after) = (fixture(name), migrated(name));
        let mut fields = Vec::new();
        leaves("", &before, &mut fields);
        for (path, value) in fields {
            // A status keeps its data under another name, an error type its word.
            let moved = match path.strip_prefix("/status/") {
                Some(rest) => format!("/metadata/original_status/{rest}"),
                None => path.replace("/status/", "/original_status/"),
            };
            let found = after.pointer(&path).or_else(|| after.pointer(&moved));
            let found = found.unwrap_or_else(|| panic!("{name}: {path} is lost"));
            let word = |value: &Value| value.as_str().map(str::to_lowercase);
            let same = *found == value
                || (path.ends_with("/status") && word(found) == word(&value))
                || path.ends_with("/error_type");
            assert!(same, "{name}: {path} was {value} and is {found}");
        }
    }
}

#[test]
fn what_is_migrated_reads_and_is_written_as_it_was_read() {
    for name in OLD.iter().filter(|name| **name != "v1-free-name") {
        let document = migrated(name);
        let state: PipelineState = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(state.schema_version, SCHEMA_VERSION, "{name}");
        let written = serde_json::to_value(&state).unwrap();
        let read: PipelineState = serde_json::from_value(written).unwrap();
        assert_eq!(read, state, "{name}");
    }
}

#[test]
fn migrating_again_changes_nothing() {
    for name in OLD {
        let once = migrated(name);
        assert_eq!(migrate(once.clone(), version_of(&once).unwrap()).unwrap(), once, "{name}");
    }
    let current = fixture("v2-completed");
    assert_eq!(migrate(current.clone(), 2).unwrap(), current);
}

#[test]
fn the_statuses_of_runs_become_words_and_times() {
    let told = |name: &str| {
        let state = state(name);
        (state.status, state.finished_at.map(|at| at.to_rfc3339()))
    };
    assert_eq!(told("v1-pending"), (PipelineStatus::Pending, None));
    assert_eq!(told("v1-running"), (PipelineStatus::Running, None));
    assert_eq!(told("v1-paused"), (PipelineStatus::Paused, None));
    let end = Some("2025-08-10T15:15:52.894708580+00:00".to_owned());
    assert_eq!(told("v1-completed"), (PipelineStatus::Completed, end));
    let end = Some("2025-08-10T15:15:52.700+00:00".to_owned());
    assert_eq!(told("v1-failed"), (PipelineStatus::Failed, end));
    let paused = state("v1-paused").extra["metadata"]["original_status"].clone();
    assert_eq!(paused, json!({"Paused": {"paused_at": "2025-08-10T15:15:52.5Z"}}));
}

#[test]
fn the_statuses_of_steps_become_words_and_times() {
    let running = state("v1-running").step_states;
    let parse = &running["parse"];
    assert_eq!(parse.status, StepStatus::Completed);
    assert_eq!(parse.finished_at.unwrap().timestamp_subsec_nanos(), 100_000_001);
    assert_eq!((parse.records_processed, parse.batch_number, parse.records_failed), (6, 0, 0));
    assert_eq!(parse.extra["config_hash"], "9f2c");
    assert_eq!(parse.extra["worker_id"], "worker-175833");
    let load = &running["load"];
    assert_eq!((load.status, load.finished_at), (StepStatus::Running, None));
    assert_eq!(load.started_at.unwrap().to_rfc3339(), "2025-08-10T15:15:51.200+00:00");
    assert_eq!(running["report"].status, StepStatus::Pending);
    // Not run again in this run, and why is kept.
    let skipped = &state("v1-completed").step_states["load"];
    assert_eq!(skipped.status, StepStatus::Completed);
    assert_eq!(skipped.extra["original_status"], json!({"Skipped": {"reason": "nothing to load"}}));
}

#[test]
fn a_failure_that_only_a_status_tells_becomes_an_error_and_no_error_is_doubled() {
    let state = state("v1-failed");
    let told: Vec<_> = state
        .errors
        .iter()
        .map(|error| (error.error_id.as_str(), error.message.as_str()))
        .collect();
    let run = "f96b7790-240f-408f-94ad-e20190264898-failed";
    assert_eq!(told, [("e-1", "cannot write"), ("e-2", "low on space"), (run, "the disk is full")]);
    assert_eq!(state.errors[0].extra["original_error_type"], "Network");
    assert_eq!(state.errors[0].extra["stack_trace"], "at load.rs:7");
    assert_eq!(state.errors[2].timestamp.to_rfc3339(), "2025-08-10T15:15:52.700+00:00");

    let mut document = fixture("v1-failed");
    document["errors"] = json!([]);
    let migrated = migrate(document, 1).unwrap();
    let messages: Vec<_> = migrated["errors"].as_array().unwrap().iter().collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert_eq!(messages[1]["step_id"], "load");
}

#[test]
fn a_status_whose_name_was_a_yaml_tag_is_told_by_its_fields() {
    let mut document = fixture("v1-failed");
    document["status"] = document["status"]["Failed"].take();
    document["step_states"]["load"]["status"] =
        document["step_states"]["load"]["status"]["Failed"].take();
    let state: PipelineState = serde_json::from_value(migrate(document, 1).unwrap()).unwrap();
    assert_eq!(state.status, PipelineStatus::Failed);
    assert_eq!(state.step_states["load"].status, StepStatus::Failed);
    assert_eq!(state.errors.len(), 3);
}

#[test]
fn what_is_no_state_of_its_schema_is_refused_with_the_place() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document = fixture("v1-failed");
        change(&mut document);
        refused(document, 1)
    };
    for (wrong, place) in [
        (with(&|d| d["status"] = json!("Exploded")), "`status` is `Exploded`"),
        (with(&|d| d["status"] = json!({"Skipped": {"reason": ""}})), "`status` is `Skipped`"),
        (with(&|d| d["status"] = json!(7)), "`status`"),
        (with(&|d| d["status"] = json!({"Failed": {"error": "x"}})), "`failed_at`"),
        (with(&|d| d["step_states"]["load"]["status"] = json!({})), "`step_states.load.status`"),
        (with(&|d| d["step_states"] = json!([])), "`step_states` is no object"),
        (with(&|d| d["errors"] = json!({})), "`errors` is no list"),
        (with(&|d| d["metadata"] = json!(1)), "`metadata` is no object"),
        (refused(json!("text"), 1), "`the document` is no object"),
    ] {
        assert_eq!(wrong.0, ErrorKind::Invalid, "{}", wrong.1);
        assert!(wrong.1.contains(place), "{}", wrong.1);
    }
}

#[test]
fn unknown_versions_are_refused_and_not_guessed() {
    let (kind, text) = refused(json!({}), SCHEMA_VERSION + 1);
    assert_eq!(
        (kind, text.as_str()),
        (ErrorKind::Unsupported, "the state has schema 3, this one reads up to 2")
    );
    assert_eq!(refused(json!({}), 0).0, ErrorKind::Unsupported);
}
