//! Mending a stored state: a plan that can be shown, then one write of it.
//!
//! What is trusted, in this order: a document that is certainly as it was written, mended field by
//! field; the newest copy that itself verifies and is valid; and, only when a person accepts it, a
//! document that the damage may have changed anywhere.
//!
//! Invariants: a valid state is left alone. Nothing is written that is not valid. What is replaced
//! is kept first. A copy of the broken record is no candidate, since it is as broken. Nothing is
//! invented: what does not follow from the record or from a copy is named as lost.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::inspect::{Inspection, document_of};
use super::rewrite::{Rewrite, RewriteOptions, Rewritten, detach, rewrite};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::validate::{Context, Cost, Finding, KnownCopy, Repair, mend, shown, validate};
use crate::model::{Difference, HistoryKind, PipelineState, PipelineStatus, differences};
use crate::store::{ExaminedLease, ExaminedState, StateStore};

/// What to do about a pipeline's state.
#[derive(Clone, Debug, PartialEq)]
pub enum RepairPlan {
    /// It is valid, or there is none and none is lost.
    Nothing,
    /// To write this.
    Write(Box<Remedy>),
    /// Nothing can be done without a person; this is why.
    Impossible(&'static str),
}

/// A state to write in the place of a broken one.
#[derive(Clone, Debug, PartialEq)]
pub struct Remedy {
    /// How it was made.
    pub way: Way,
    /// The state, but for its epoch and version, which only grow.
    pub state: PipelineState,
    /// The fields that differ from what is stored, as far as that can be read.
    pub changes: Vec<Difference>,
    /// What is lost, for people.
    pub losses: Vec<String>,
}

/// How a remedy was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the record itself, which is as it was written.
    Fields,
    /// From this copy.
    Copy(String),
    /// From the record itself, though the damage may have changed it anywhere.
    Unverified,
}

impl Way {
    /// The word that is shown to programs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Fields => "fields",
            Self::Copy(_) => "copy",
            Self::Unverified => "unverified",
        }
    }
}

/// Decides what to do about what was found.
///
/// # Errors
/// `Internal` when a state cannot be written as JSON.
pub fn plan_repair(inspection: &Inspection, now: DateTime<Utc>) -> Result<RepairPlan> {
    let context = inspection.context(now);
    let is_broken = match &inspection.state {
        ExaminedState::Damaged(_) => true,
        // What is wrong with the lease record is mended by itself, and does not need the state.
        ExaminedState::Whole(_) | ExaminedState::Absent => inspection
            .findings
            .iter()
            .any(|found| found.is_error() && found.repair != Repair::ReplaceLease),
    };
    if !is_broken {
        return Ok(RepairPlan::Nothing);
    }
    let document = inspection.document.as_ref();
    let mended = document.and_then(|document| {
        let mended = mend(document, &context)?;
        let state: PipelineState = serde_json::from_value(mended.document).ok()?;
        Some((state, mended.cost, mended.lost))
    });
    let candidate = candidate(inspection, now)?;
    match (mended, candidate) {
        (Some((state, cost, lost)), copy)
            if inspection.is_verified() && (cost < Cost::Progress || copy.is_none()) =>
        {
            let losses = lost.iter().map(|field| format!("what was in `{field}`")).collect();
            remedy(Way::Fields, state, document, losses)
        }
        (_, Some(copy)) => {
            let losses = lost_since(copy, inspection);
            remedy(Way::Copy(copy.source.clone()), copy.state.clone(), document, losses)
        }
        (Some((state, _, lost)), None) => {
            let losses = lost.iter().map(|field| format!("what was in `{field}`")).collect();
            remedy(Way::Unverified, state, document, losses)
        }
        (None, None) => Ok(RepairPlan::Impossible(if document.is_some() {
            "what is left of the state does not say where the run is, and there is no valid copy"
        } else {
            "nothing of the state can be read, and there is no valid copy"
        })),
    }
}

/// The newest copy that is itself valid.
fn candidate(inspection: &Inspection, now: DateTime<Utc>) -> Result<Option<&KnownCopy>> {
    let context = Context::alone(&inspection.pipeline, now);
    for copy in &inspection.copies {
        let document = document_of(&copy.state)?;
        if !validate(&document, &context).iter().any(Finding::is_error) {
            return Ok(Some(copy));
        }
    }
    Ok(None)
}

fn remedy(
    way: Way,
    mut state: PipelineState,
    document: Option<&Value>,
    losses: Vec<String>,
) -> Result<RepairPlan> {
    detach(&mut state);
    let changes = match document {
        Some(document) => differences(document, &document_of(&state)?),
        None => Vec::new(),
    };
    // These only grow, whatever is restored.
    let changes = changes.into_iter().filter(|c| !matches!(c.path.as_str(), "version" | "epoch"));
    let changes = changes.collect();
    Ok(RepairPlan::Write(Box::new(Remedy { way, state, changes, losses })))
}

/// What was saved after a copy was made.
fn lost_since(copy: &KnownCopy, inspection: &Inspection) -> Vec<String> {
    let saved = copy.state.last_heartbeat.format("%Y-%m-%d %H:%M:%S UTC");
    let (source, version) = (&copy.source, copy.state.version);
    let mut losses = Vec::new();
    let certainty = if inspection.is_verified() { "" } else { ", unverified" };
    if is_last_save(copy, inspection) {
        return losses;
    }
    match &inspection.document {
        Some(document) if is_same_save(document, &copy.state) => return losses,
        Some(document) => {
            let number = |field: &str, restored: u64| match document[field].as_u64() {
                Some(stored) if stored > restored => Some(format!(
                    "`{field}` goes back to {restored} (what is stored says {stored}{certainty})"
                )),
                _ => None,
            };
            losses.extend(number("records_processed", copy.state.records_processed));
            losses.extend(number("records_failed", copy.state.records_failed));
            losses.extend(number("batch_number", copy.state.batch_number));
            let cursor = &document["last_processed_id"];
            if cursor.as_str().is_some_and(|cursor| cursor != copy.state.last_processed_id) {
                let restored = shown(&Value::from(copy.state.last_processed_id.as_str()));
                let stored = shown(cursor);
                losses.push(format!(
                    "the cursor goes back to {restored} (what is stored says \
                     {stored}{certainty})"
                ));
            }
        }
        None => {}
    }
    losses.insert(0, format!("what was saved after {source} (version {version}, {saved})"));
    losses
}

/// Whether a copy is certainly the last save of a state that is lost: its worker had ended, which
/// writes nothing more, and nobody has held the pipeline since.
fn is_last_save(copy: &KnownCopy, inspection: &Inspection) -> bool {
    let ExaminedLease::Whole(lease) = &inspection.lease else { return false };
    matches!(inspection.state, ExaminedState::Absent)
        && lease.value.is_released()
        && lease.value.epoch == copy.state.epoch
        && copy.state.status != PipelineStatus::Running
}

/// Whether a document seems to be the very save that a state is of. Damage in one place does not
/// make another save look like it.
fn is_same_save(document: &Value, state: &PipelineState) -> bool {
    let saved: Option<DateTime<Utc>> =
        serde_json::from_value(document["last_heartbeat"].clone()).ok();
    document["run_id"].as_str() == Some(&state.run_id)
        && document["version"].as_u64() == Some(state.version)
        && document["epoch"].as_u64() == Some(state.epoch)
        && saved == Some(state.last_heartbeat)
}

/// Whether a remedy loses nothing, so that nobody needs to be asked.
#[must_use]
pub fn is_lossless(remedy: &Remedy) -> bool {
    remedy.losses.is_empty() && remedy.way != Way::Unverified
}

/// Writes a remedy, after what it replaces is kept.
///
/// # Errors
/// `Conflict` when what is stored is not what the plan was made for, `LeaseHeld` when a live worker
/// is on the pipeline, `Internal` when the remedy is not valid; otherwise as the store fails.
/// Nothing is written then.
pub fn repair(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    inspection: &Inspection,
    remedy: &Remedy,
    purpose: &str,
    options: &RewriteOptions<'_>,
) -> Result<Rewritten> {
    let pipeline = &inspection.pipeline;
    let why = match &remedy.way {
        Way::Fields => "mended from the record itself".to_owned(),
        Way::Copy(source) => format!("from {source}"),
        Way::Unverified => "from what was left of the record, unverified".to_owned(),
    };
    let known = inspection.copies.iter().map(|copy| copy.state.epoch).max().unwrap_or_default();
    let request = Rewrite {
        pipeline,
        purpose,
        kind: HistoryKind::Repair,
        why: &why,
        // What a repair replaces is kept, whatever is configured for other commands.
        options: &RewriteOptions { backup: true, ..*options },
        epoch_floor: known.max(remedy.state.epoch),
    };
    let rewritten = rewrite(store, clock, &request, |stored| {
        if !is_same_record(stored, &inspection.state) {
            let message = format!("the state of `{pipeline}` was written meanwhile");
            return Err(Error::new(ErrorKind::Conflict, message)
                .hint(format!("look again with `oxide_flow state validate {pipeline}`")));
        }
        let document = document_of(&remedy.state)?;
        let context = Context::alone(pipeline, clock.now());
        if let Some(wrong) = validate(&document, &context).iter().find(|found| found.is_error()) {
            let message = format!("the repaired state would break `{}`", wrong.rule.name());
            return Err(Error::new(ErrorKind::Internal, message));
        }
        Ok(Some(remedy.state.clone()))
    })?;
    rewritten.ok_or_else(|| Error::new(ErrorKind::Internal, "a repair wrote nothing"))
}

fn is_same_record(one: &ExaminedState, other: &ExaminedState) -> bool {
    let bytes = |state: &ExaminedState| match state {
        ExaminedState::Damaged(damaged) => damaged.remains.clone(),
        ExaminedState::Absent | ExaminedState::Whole(_) => None,
    };
    one.expected() == other.expected() && bytes(one) == bytes(other)
}

/// Whether the lease record must be replaced before anything can be repaired under it.
#[must_use]
pub fn needs_lease(inspection: &Inspection) -> bool {
    matches!(inspection.lease, ExaminedLease::Damaged(_))
}
