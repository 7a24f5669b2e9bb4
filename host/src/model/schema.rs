//! Schema evolution: older states become current ones, one version at a time.
//!
//! [`STEPS`] has one function for each version that was ever followed by another; a state is led
//! through all of them from its own version on. Each is pure, JSON to JSON, and loses nothing:
//! what the next version has no place for stays where it was, as an unknown field, or moves under
//! `metadata`. A released step is never edited, since records made by it are in use.

use serde_json::{Map, Value, json};

use super::SCHEMA_VERSION;
use crate::error::{Error, ErrorKind, Result};

/// Leads a state from one schema version to the next.
type Step = fn(Value) -> Result<Value>;

/// The steps by the version that each starts from.
const STEPS: &[(u32, Step)] = &[(1, from_original)];

/// The schema version a state says it has; `None` when it says nothing of the kind.
///
/// Version 1 is the original program's, which wrote it as `metadata.schema_version: "1.0.0"`.
#[must_use]
pub fn version_of(document: &Value) -> Option<u32> {
    if let Some(version) = document.get("schema_version") {
        return version.as_u64().map(|version| u32::try_from(version).unwrap_or(u32::MAX));
    }
    let original = document.get("metadata")?.get("schema_version")?.as_str()?;
    original.split('.').next()?.parse().ok()
}

/// Leads a state of schema `from` to the current one; a current state stays as it is.
///
/// # Errors
/// `Unsupported` when the schema is newer than this oxide_flow or older than any, `Invalid` when
/// the state does not follow the schema it is said to have.
pub fn migrate(document: Value, from: u32) -> Result<Value> {
    if from > SCHEMA_VERSION {
        let message = format!("the state has schema {from}, this one reads up to {SCHEMA_VERSION}");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .hint("a newer oxide_flow wrote it: install that version or a later one"));
    }
    (from..SCHEMA_VERSION).try_fold(document, |document, version| {
        let step = STEPS.iter().find(|(start, _)| *start == version);
        let (_, step) = step.ok_or_else(|| {
            let message = format!("there was never a schema {version} of states");
            Error::new(ErrorKind::Unsupported, message)
        })?;
        step(document).map_err(|error| {
            error.while_doing(format!("cannot migrate a state of schema {version}"))
        })
    })
}

/// Version 1 to 2: statuses become words, ends of runs and steps become times of their own,
/// failures that only a status told become error records, and steps get counters of their own.
fn from_original(mut document: Value) -> Result<Value> {
    let state = object(&mut document, "the document")?;
    let status = Status::read(state.get("status"), "status")?;
    let run_id = state.get("run_id").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !status.fields.is_empty() {
        let metadata = state.entry("metadata").or_insert_with(|| json!({}));
        object(metadata, "metadata")?.insert("original_status".to_owned(), status.original.clone());
    }
    let mut failures = Vec::new();
    failures.extend(status.failure(None, &run_id)?);
    state.insert("schema_version".to_owned(), json!(2));
    state.insert("status".to_owned(), json!(status.word("status")?));
    state.entry("epoch").or_insert_with(|| json!(0));
    state.entry("finished_at").or_insert_with(|| status.end());

    if let Some(steps) = state.get_mut("step_states") {
        for (id, step) in object(steps, "step_states")? {
            let path = format!("step_states.{id}");
            failures.extend(migrate_step(object(step, &path)?, &path, &run_id)?);
        }
    }
    let errors = state.entry("errors").or_insert_with(|| json!([]));
    let errors = errors.as_array_mut().ok_or_else(|| invalid("`errors` is no list"))?;
    for error in errors.iter_mut() {
        migrate_error(object(error, "errors")?);
    }
    for failure in failures {
        let same = |error: &Value| {
            error["step_id"] == failure["step_id"] && error["message"] == failure["message"]
        };
        if !errors.iter().any(same) {
            errors.push(failure);
        }
    }
    Ok(document)
}

/// Returns the failure that only the status of the step tells of.
fn migrate_step(step: &mut Map<String, Value>, path: &str, run_id: &str) -> Result<Option<Value>> {
    let place = format!("{path}.status");
    let status = Status::read(step.get("status"), &place)?;
    // Version 2 has no word for a step that was passed over: like a completed one, it is not
    // run again in this run.
    let word = if status.name == "Skipped" { "completed" } else { status.word(&place)? };
    step.insert("status".to_owned(), json!(word));
    if let Some(started_at) = status.fields.get("started_at") {
        step.entry("started_at").or_insert_with(|| started_at.clone());
    }
    step.entry("finished_at").or_insert_with(|| status.end());
    for counter in ["batch_number", "records_failed", "data_size_processed"] {
        step.entry(counter).or_insert_with(|| json!(0));
    }
    let id = step.get("step_id").cloned();
    let failure = status.failure(id.as_ref().and_then(Value::as_str), run_id)?;
    if !status.fields.is_empty() {
        step.insert("original_status".to_owned(), status.original);
    }
    Ok(failure)
}

fn migrate_error(error: &mut Map<String, Value>) {
    let Some(original) = error.get("error_type").cloned() else { return };
    let word = match original.as_str() {
        Some("Configuration") => "configuration",
        Some("Processing") => "processing",
        Some("Resource") => "resource",
        _ => "unknown",
    };
    error.insert("error_type".to_owned(), json!(word));
    if word == "unknown" && original != "Unknown" {
        error.insert("original_error_type".to_owned(), original);
    }
}

/// A status of version 1: `"Pending"`, or `{"Running": {"started_at": …}}`.
struct Status {
    name: String,
    fields: Map<String, Value>,
    original: Value,
}

impl Status {
    fn read(value: Option<&Value>, path: &str) -> Result<Self> {
        let original = value.cloned().unwrap_or_default();
        let (name, fields) = match &original {
            Value::String(name) => (name.clone(), Map::new()),
            Value::Object(fields) => match fields.iter().next() {
                Some((name, Value::Object(inner))) if fields.len() == 1 => {
                    (name.clone(), inner.clone())
                }
                // The original's YAML has the name as a tag, which is no part of the data; the
                // fields tell it as well.
                _ => (name_by_fields(fields).unwrap_or_default().to_owned(), fields.clone()),
            },
            _ => (String::new(), Map::new()),
        };
        if name.is_empty() {
            return Err(invalid(format!("`{path}` is no status of schema 1")));
        }
        Ok(Self { name, fields, original })
    }

    fn word(&self, path: &str) -> Result<&'static str> {
        match self.name.as_str() {
            "Pending" => Ok("pending"),
            "Running" => Ok("running"),
            "Paused" => Ok("paused"),
            "Completed" => Ok("completed"),
            "Failed" => Ok("failed"),
            name => Err(invalid(format!("`{path}` is `{name}`, which is no status of schema 1"))),
        }
    }

    /// When it ended, or null.
    fn end(&self) -> Value {
        let end = self.fields.get("completed_at").or_else(|| self.fields.get("failed_at"));
        end.cloned().unwrap_or_default()
    }

    /// The error record that a failed status stands for.
    fn failure(&self, step: Option<&str>, run_id: &str) -> Result<Option<Value>> {
        if self.name != "Failed" {
            return Ok(None);
        }
        let (Some(message), Some(at)) = (self.fields.get("error"), self.fields.get("failed_at"))
        else {
            return Err(invalid("a failed status has no `error` or no `failed_at`"));
        };
        Ok(Some(json!({
            "error_id": format!("{run_id}-{}failed", step.map(|id| format!("{id}-")).unwrap_or_default()),
            "step_id": step,
            "error_type": "unknown",
            "message": message,
            "context": "",
            "timestamp": at,
            "retryable": false,
        })))
    }
}

fn name_by_fields(fields: &Map<String, Value>) -> Option<&'static str> {
    let names = [
        ("completed_at", "Completed"),
        ("failed_at", "Failed"),
        ("paused_at", "Paused"),
        ("started_at", "Running"),
        ("reason", "Skipped"),
    ];
    names.iter().find(|(field, _)| fields.contains_key(*field)).map(|(_, name)| *name)
}

fn object<'a>(value: &'a mut Value, path: &str) -> Result<&'a mut Map<String, Value>> {
    value.as_object_mut().ok_or_else(|| invalid(format!("`{path}` is no object")))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
