//! Telling a state that is lost from one that never was or that somebody deleted.
//!
//! All three are the absence of a record. What tells them apart is what surrounds it: copies from
//! the present life of the pipeline, which begins after it was last deleted. Nothing here is asked
//! while there is a state.

use chrono::{DateTime, Utc};

use super::known_copies::copies_of;
use super::rescue::Rescued;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::model::validate::KnownCopy;
use crate::model::{HistoryKind, Lease, MigrationPhase, PipelineName};
use crate::store::{ExaminedState, StateStore};

/// How many of the newest history records are searched for a deletion, and how many copies of
/// either sort are read.
const SEARCHED: usize = 8;

/// The purposes of leases under which states are deleted. They tell also where no history is kept.
const DELETING: [&str; 2] = ["delete", "cleanup"];

/// A state that is gone though nobody deleted it.
#[derive(Debug)]
pub struct LostState {
    /// The pipeline.
    pub pipeline: PipelineName,
    /// The newest copy that is left of it.
    pub newest: KnownCopy,
}

impl LostState {
    /// The loss as an error, with what brings the state back.
    #[must_use]
    pub fn to_error(&self) -> Error {
        let pipeline = &self.pipeline;
        let message = format!("the state of pipeline `{pipeline}` is lost");
        let cause = format!("nothing is stored, and {}", dated(&self.newest));
        Error::new(ErrorKind::Corrupt, message).because(cause).hint(format!(
            "bring the newest copy back with `oxide_flow state repair {pipeline}`, or another with \
             `oxide_flow state restore {pipeline} --at TIME`; to begin anew without it, \
             `oxide_flow run {pipeline} --fresh`"
        ))
    }
}

/// Of when a copy is, in words.
pub(super) fn dated(copy: &KnownCopy) -> String {
    let saved = copy.state.last_heartbeat.format("%Y-%m-%d %H:%M:%S UTC");
    format!("{} is of {saved}", copy.source)
}

/// Looks whether the state of a pipeline is lost; `None` when there is one, or it never had one, or
/// that was deleted or lives in another store.
///
/// # Errors
/// As the store fails.
pub fn find_lost(store: &StateStore, pipeline: &PipelineName) -> Result<Option<LostState>> {
    // In this order: whoever saves the first state meanwhile makes its copies later.
    let copies = copies_of(store, pipeline, SEARCHED)?;
    if copies.is_empty() || !matches!(store.examine_state(pipeline)?, ExaminedState::Absent) {
        return Ok(None);
    }
    let lease = match store.load_lease(pipeline) {
        Ok(lease) => lease.map(|lease| lease.value),
        Err(error) if error.kind() == ErrorKind::Corrupt => None,
        Err(error) => return Err(error),
    };
    if !may_be_lost(store, lease.as_ref())? {
        return Ok(None);
    }
    tracing::error!(target: "oxide_flow::state", %pipeline, "State loss detected");
    let newest = copies.into_iter().next();
    Ok(newest.map(|newest| LostState { pipeline: pipeline.clone(), newest }))
}

/// Whether nothing else explains that a pipeline with copies has no state: neither a deletion, nor a
/// migration.
pub(super) fn may_be_lost(store: &StateStore, lease: Option<&Lease>) -> Result<bool> {
    if lease.is_some_and(|lease| lease.moved.is_some() || was_deleting(lease)) {
        return Ok(false);
    }
    let outgoing = store.outgoing_migration()?.map(|found| found.value.phase);
    let incoming = store.incoming_migration()?.map(|found| found.value.phase);
    let has_left = outgoing.is_some_and(|phase| phase != MigrationPhase::Undone);
    Ok(!has_left && incoming != Some(MigrationPhase::Moving))
}

/// Whether whoever held this lease last held it to delete the state.
fn was_deleting(lease: &Lease) -> bool {
    DELETING.contains(&lease.purpose.as_str())
}

/// Whether the last thing that is known of a pipeline without a state is that it was deleted.
///
/// # Errors
/// As the store fails.
pub fn was_deleted(store: &StateStore, pipeline: &PipelineName) -> Result<bool> {
    Ok(store.load_lease(pipeline)?.is_some_and(|lease| was_deleting(&lease.value)))
}

/// Why a state that was not saved is not the newest of a pipeline that has none stored; `None` when
/// it is.
///
/// # Errors
/// As the store fails.
pub(super) fn what_outdates(store: &StateStore, rescued: &Rescued) -> Result<Option<String>> {
    let pipeline = &rescued.state.pipeline_id;
    if let Some(at) = last_deletion(store, pipeline)?.filter(|at| *at > rescued.rescued_at) {
        let at = at.format("%Y-%m-%d %H:%M:%S UTC");
        return Ok(Some(format!("the state was deleted on {at}")));
    }
    let mine = (rescued.state.epoch, rescued.state.version);
    let copies = copies_of(store, pipeline, SEARCHED)?;
    let newer = copies.into_iter().find(|copy| (copy.state.epoch, copy.state.version) > mine);
    Ok(newer.map(|copy| format!("no state is stored, and {} is newer", copy.source)))
}

fn last_deletion(store: &StateStore, pipeline: &PipelineName) -> Result<Option<DateTime<Utc>>> {
    for id in store.history_ids(pipeline)?.iter().rev().take(SEARCHED) {
        match store.load_history(pipeline, id) {
            Ok(Some(record)) if record.kind == HistoryKind::Delete => return Ok(Some(record.at)),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::debug!(error = chain(&error), "passing over a history record");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
