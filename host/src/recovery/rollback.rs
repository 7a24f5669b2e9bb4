//! Going back to a state that the history kept.

use std::sync::Arc;

use super::rewrite::{Rewrite, RewriteOptions, Rewritten, detach, rewrite};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{HistoryKind, HistoryRecord, PipelineState};
use crate::store::StateStore;

/// The state that going back to this record makes, but for its version and epoch, which only
/// grow.
///
/// # Errors
/// `Invalid` when the record holds no state.
pub fn rollback_target(record: &HistoryRecord) -> Result<PipelineState> {
    let mut state = record.state.clone().ok_or_else(|| {
        let (pipeline, id) = (&record.pipeline_id, &record.history_id);
        let message = format!("history record `{id}` of `{pipeline}` holds no state");
        Error::new(ErrorKind::Invalid, message).hint("go back to a record before it")
    })?;
    if state.pipeline_id != record.pipeline_id {
        let message = format!("history record holds the state of pipeline `{}`", state.pipeline_id);
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    detach(&mut state);
    Ok(state)
}

/// Puts the state of a history record back.
///
/// # Errors
/// `Invalid` when the record holds no state, `LeaseHeld` when a live worker is on the pipeline;
/// otherwise as the store fails. The state is as it was then.
pub fn rollback(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    record: &HistoryRecord,
    options: &RewriteOptions<'_>,
) -> Result<Rewritten> {
    let target = rollback_target(record)?;
    let why = format!("to {}", record.history_id);
    let request = Rewrite {
        pipeline: &record.pipeline_id,
        purpose: "rollback",
        kind: HistoryKind::Rollback,
        why: &why,
        options,
        epoch_floor: target.epoch,
    };
    let rewritten = rewrite(store, clock, &request, |_| Ok(Some(target)))?;
    rewritten.ok_or_else(|| Error::new(ErrorKind::Internal, "a rollback wrote nothing"))
}
