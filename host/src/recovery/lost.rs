//! Telling a state that is lost from one that never was or that somebody deleted.
//!
//! All three are the absence of a record. What tells them apart is what surrounds it: copies from
//! the present life of the pipeline, which begins after it was last deleted. Nothing here is asked
//! while there is a state.

use super::known_copies::copies_of;
use crate::error::{Error, ErrorKind, Result};
use crate::model::validate::KnownCopy;
use crate::model::{Lease, MigrationPhase, PipelineName};
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
        let saved = self.newest.state.last_heartbeat.format("%Y-%m-%d %H:%M:%S UTC");
        let cause = format!("nothing is stored, and {} is of {saved}", self.newest.source);
        Error::new(ErrorKind::Corrupt, message).because(cause).hint(format!(
            "bring the newest copy back with `oxide_flow state repair {pipeline}`, or another with \
             `oxide_flow state restore {pipeline} --at TIME`; to begin anew without it, \
             `oxide_flow run {pipeline} --fresh`"
        ))
    }
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
