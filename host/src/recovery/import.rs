//! Putting a state from outside in the place of the stored one.
//!
//! Everything that can be wrong with the new state is found before anything is written. States of
//! older schemas, also of the original program, are migrated first.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::inspect::document_of;
use super::rewrite::{Rewrite, RewriteOptions, Rewritten, detach, rewrite};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::validate::{Context, Finding, validate};
use crate::model::{HistoryKind, PipelineName, PipelineState, SCHEMA_VERSION, schema};
use crate::store::StateStore;

/// The largest epoch or version that is let in: both only grow, and without room to grow no worker is
/// fenced.
const LARGEST: u64 = u64::MAX / 2;

/// What to import, and where to.
pub struct Import<'a> {
    /// The pipeline whose state is replaced.
    pub pipeline: &'a PipelineName,
    /// The new state, as JSON.
    pub document: Value,
    /// Where it comes from, for the history.
    pub source: &'a str,
    /// On whose behalf, and how.
    pub options: RewriteOptions<'a>,
    /// Whether a state is let in that `validate` calls invalid.
    pub ignore_rules: bool,
    /// Whether the pipeline's own rules let the new state in.
    pub accept: &'a dyn Fn(&Value) -> Result<()>,
}

/// Replaces the state of a pipeline.
///
/// # Errors
/// `Invalid` when the document is no state of this pipeline or no valid one, `LeaseHeld` when a live
/// worker is on it; otherwise as the store fails. Nothing is written then.
pub fn import(store: &StateStore, clock: &Arc<dyn Clock>, import: Import<'_>) -> Result<Rewritten> {
    let pipeline = import.pipeline;
    let mut state = read_state(import.document, pipeline)?;
    detach(&mut state);
    let document = document_of(&state)?;
    if !import.ignore_rules {
        check_counters(&state)?;
        judge(&document, pipeline, clock.now())?;
    }
    (import.accept)(&document)?;
    let why = format!("from {}", import.source);
    let request = Rewrite {
        pipeline,
        purpose: "import",
        kind: HistoryKind::Import,
        why: &why,
        options: &import.options,
        epoch_floor: state.epoch,
    };
    let rewritten = rewrite(store, clock, &request, |_| Ok(Some(state)))?;
    rewritten.ok_or_else(|| Error::new(ErrorKind::Internal, "an import wrote nothing"))
}

/// Reads a state from a document of any schema that was ever written.
///
/// # Errors
/// `Unsupported` when a newer oxide_flow exported it, `Invalid` when it is no state.
pub fn read_document(document: Value) -> Result<PipelineState> {
    let document = match schema::version_of(&document) {
        Some(newer) if newer > SCHEMA_VERSION => {
            let message =
                format!("the state has schema {newer}, this one reads up to {SCHEMA_VERSION}");
            return Err(Error::new(ErrorKind::Unsupported, message)
                .hint("import it with the newer oxide_flow that exported it"));
        }
        Some(version) => schema::migrate(document, version)?,
        None => document,
    };
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        invalid(format!("the document is no pipeline state: at `{path}`"))
            .because(error.into_inner())
            .hint("export one with `oxide_flow state export` to see what it looks like")
    })
}

fn read_state(mut document: Value, pipeline: &PipelineName) -> Result<PipelineState> {
    if schema::version_of(&document) == Some(1) {
        take_foreign_name(&mut document, pipeline);
    }
    let state = read_document(document)?;
    if state.pipeline_id != *pipeline {
        let message = format!("the document is the state of pipeline `{}`", state.pipeline_id);
        return Err(invalid(message)
            .hint("import it under that name, or change its `pipeline_id` if you mean it"));
    }
    if let Some((id, _)) = state.step_states.iter().find(|(id, step)| **id != step.step_id) {
        return Err(invalid(format!("the step under `{id}` has another `step_id`")));
    }
    if state.run_id.is_empty() {
        return Err(invalid("the document has an empty `run_id`".to_owned()));
    }
    Ok(state)
}

/// Finds counters that would not grow any more.
fn check_counters(state: &PipelineState) -> Result<()> {
    let counters = [("version", state.version), ("epoch", state.epoch)];
    if let Some((name, number)) = counters.into_iter().find(|(_, number)| *number > LARGEST) {
        return Err(invalid(format!("the `{name}` {number} leaves no room to count on")));
    }
    Ok(())
}

/// Finds what `validate` would find of the state once it is stored.
fn judge(document: &Value, pipeline: &PipelineName, now: DateTime<Utc>) -> Result<()> {
    let findings = validate(document, &Context::alone(pipeline, now));
    let mut errors = findings.iter().filter(|found| found.is_error());
    let Some(first) = errors.next() else { return Ok(()) };
    let Finding { rule, field, found, expected, .. } = first;
    let more = match errors.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let message = format!("the document breaks the rule `{}`{more}", rule.name());
    let cause = format!("`{field}` is {found}, and should be {expected}");
    Err(invalid(message).because(cause).hint(format!(
        "nothing was changed; mend it, or import it all the same with `--ignore-rules` and mend it with \
         `oxide_flow state repair {pipeline}`"
    )))
}

/// The original program named pipelines freely, such as `Nightly Load`. Such a name cannot be
/// kept as the id, so the state goes under the name that was asked for and remembers its own.
fn take_foreign_name(document: &mut Value, pipeline: &PipelineName) {
    let Some(name) = document["pipeline_id"].as_str().map(str::to_owned) else { return };
    if name.parse::<PipelineName>().is_err() && document["metadata"].is_object() {
        document["metadata"]["original_pipeline_id"] = json!(name);
        document["pipeline_id"] = json!(pipeline);
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}
