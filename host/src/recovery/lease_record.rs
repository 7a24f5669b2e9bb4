//! Replacing a lease record that is damaged: it says nothing of its holder any more.
//!
//! The record that takes its place is released, with a higher epoch than any that a worker can
//! have had. A worker that lives after all finds it at its next renewal and stops; what it saves
//! until then is fenced as always, by compare-and-swap.

use std::time::Duration;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::this_process;
use crate::model::{Lease, MigrationPhase, PipelineName};
use crate::store::{DamagedLease, ExaminedLease, OPERATION_TIMEOUT, StateStore};

use super::backup::quarantine_lease;
use super::known_copies::copies_of;

/// Above what a lease taken after the last save of the state can have had.
const STRIDE: u64 = 1000;

/// An epoch in damaged bytes that is further than this from all others is taken for damage.
const PLAUSIBLE: u64 = 1_000_000;

/// Puts a released lease in the place of a damaged one, whose bytes are quarantined first, and
/// returns the id that they are under; `None` when the lease is not damaged any more.
///
/// # Errors
/// `Invalid` when the pipeline may have been moved to another store, which only the lease tells;
/// otherwise as the store fails.
pub fn replace_damaged_lease(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
) -> Result<Option<String>> {
    let ExaminedLease::Damaged(damaged) = store.examine_lease(pipeline)? else {
        return Ok(None);
    };
    check_not_moved(store, pipeline, &damaged)?;
    let epoch = epoch_above(store, pipeline, &damaged)?;
    let id = quarantine_lease(store, clock, pipeline, &damaged, "before its lease is replaced")?;
    let now = clock.now();
    let lease = Lease {
        released_at: Some(now),
        moved: damaged.salvaged.as_ref().and_then(|lease| lease.moved.clone()),
        ..Lease::new(pipeline.clone(), this_process()?, epoch, Duration::ZERO, "unlock", now)
    };
    match store.save_lease(&lease, &damaged.expected, OPERATION_TIMEOUT) {
        Ok(_) => Ok(Some(id)),
        // Somebody else has replaced it, and may hold it by now.
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(None),
        Err(error) => Err(error),
    }
}

/// A new lease would let a pipeline run here that lives in another store by now.
fn check_not_moved(
    store: &StateStore,
    pipeline: &PipelineName,
    damaged: &DamagedLease,
) -> Result<()> {
    // What is left of the lease says that it was moved, and that is kept. That it says nothing of
    // the kind may be the damage.
    if damaged.salvaged.as_ref().is_some_and(|lease| lease.moved.is_some()) {
        return Ok(());
    }
    let incoming = store.incoming_migration()?.map(|found| found.value);
    let taken_back = incoming.filter(|incoming| incoming.phase == MigrationPhase::Undone);
    let place = match (store.outgoing_migration()?, taken_back) {
        (Some(outgoing), _) => outgoing.value.to,
        (None, Some(incoming)) => incoming.from,
        (None, None) => return Ok(()),
    };
    let (config, backend) = (place.config, place.backend);
    let message = format!("pipeline `{pipeline}` may live in another store: {config} ({backend})");
    Err(Error::new(ErrorKind::Invalid, message)
        .hint("look for it there; undo the migration before it is run here again"))
}

fn epoch_above(store: &StateStore, pipeline: &PipelineName, damaged: &DamagedLease) -> Result<u64> {
    let (of_state, _) = store.examine_state(pipeline)?.counters();
    let of_copies = copies_of(store, pipeline, usize::MAX)?;
    let of_copies = of_copies.iter().map(|copy| copy.state.epoch).max().unwrap_or_default();
    let certain = of_state.max(of_copies);
    let claimed = damaged.salvaged.as_ref().map_or(0, |lease| lease.epoch);
    let claimed = if claimed <= certain.saturating_add(PLAUSIBLE) { claimed } else { 0 };
    Ok(certain.max(claimed).saturating_add(STRIDE))
}
