//! Deleting states: under the lease, a copy first, by compare-and-swap.
//!
//! The lease record stays, and with it the epoch: were it deleted too, the next worker would
//! start again with the first epoch, and history could not tell its states from older ones. What
//! fences a worker that wakes up is the compare-and-swap alone: its save expects a version that
//! is gone, and versions never come back (contract C5).
//!
//! A full store cannot take a lease, nor a copy. Then a state is deleted without, if that is what
//! the person wants and nobody holds the pipeline: the compare-and-swap still deletes exactly
//! what was seen, and a worker that begins at this moment finds no state and starts over.

use std::sync::Arc;

use super::guard::{Claim, under_lease};
use super::rewrite::{Kept, RewriteOptions, keep_first};
use super::upkeep::{Upkeep, with_room};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::history::{self, Event};
use crate::lease::Worker;
use crate::model::{HistoryKind, PipelineName};
use crate::store::{ExaminedState, ListedBackup, StateStore};

/// Which state to delete, and how.
pub struct Deletion<'a> {
    /// The pipeline.
    pub pipeline: &'a PipelineName,
    /// What for; shown to those who find the lease held, and part of the backup's reason.
    pub purpose: &'a str,
    /// Why, for the history.
    pub why: &'a str,
    /// The administrative options.
    pub options: &'a RewriteOptions<'a>,
    /// Keep nothing of the state, neither a backup nor the bytes of a damaged one.
    pub without_copy: bool,
    /// Delete also all copies: backups, quarantined bytes and history.
    pub with_copies: bool,
    /// What may be removed when the store is full.
    pub upkeep: &'a Upkeep,
}

/// What was deleted.
#[derive(Debug, Default)]
pub struct Deleted {
    /// Whether there was a state.
    pub state: bool,
    /// The copy that was kept of it.
    pub kept: Option<Kept>,
    /// How many copies were deleted.
    pub copies: usize,
}

/// Deletes the state of a pipeline if `may` agrees to what is stored; `None` when it does not.
///
/// # Errors
/// `LeaseHeld` when a live worker is on the pipeline, `NoSpace` when the store is too full for the
/// copy that is to be kept; otherwise as the store fails. The state is as it was then.
pub fn delete(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    deletion: &Deletion<'_>,
    may: &dyn Fn(&ExaminedState) -> bool,
) -> Result<Option<Deleted>> {
    let Deletion { pipeline, purpose, options, upkeep, .. } = *deletion;
    let (epoch_floor, _) = store.examine_state(pipeline)?.counters();
    let claim = Claim { pipeline, purpose, wait: options.wait, epoch_floor };
    // Room for the lease. Under it, room is made for each write by itself: a lease that is released
    // needs some as well, and whoever began again without would find itself in the way.
    let full = match with_room(store, clock.as_ref(), pipeline, upkeep, || {
        under_lease(store, clock, &claim, |_| delete_held(store, clock, deletion, may))
    }) {
        Err(error) if error.kind() == ErrorKind::NoSpace => error,
        done => return done,
    };
    if !deletion.without_copy {
        return Err(
            full.hint("the store is too full to keep a copy first; `--no-backup` keeps none")
        );
    }
    delete_without_lease(store, clock.as_ref(), deletion, may, full)
}

fn delete_held(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    deletion: &Deletion<'_>,
    may: &dyn Fn(&ExaminedState) -> bool,
) -> Result<Option<Deleted>> {
    let Deletion { pipeline, purpose, options, upkeep, .. } = *deletion;
    let stored = store.examine_state(pipeline)?;
    if !may(&stored) {
        return Ok(None);
    }
    let clock = clock.as_ref();
    let mut deleted = Deleted::default();
    if !deletion.without_copy {
        deleted.kept = with_room(store, clock, pipeline, upkeep, || {
            keep_first(store, clock, pipeline, &stored, purpose, options)
        })?;
    }
    deleted.state =
        with_room(store, clock, pipeline, upkeep, || take_away(store, pipeline, &stored))?;
    if deletion.with_copies {
        deleted.copies = delete_copies(store, pipeline)?;
    } else if deleted.state {
        record(store, clock, deletion);
    }
    Ok(Some(deleted))
}

/// See the head of this module. `full` is why there is no lease.
fn delete_without_lease(
    store: &StateStore,
    clock: &dyn Clock,
    deletion: &Deletion<'_>,
    may: &dyn Fn(&ExaminedState) -> bool,
    full: Error,
) -> Result<Option<Deleted>> {
    let pipeline = deletion.pipeline;
    let lease = store.load_lease(pipeline)?;
    let stored = store.examine_state(pipeline)?;
    let is_taken = lease.is_some_and(|lease| {
        let worker = Worker::of(lease.value, clock.now());
        worker.status.may_live() || worker.lock_at(clock.now()).is_some()
    });
    if is_taken {
        return Err(full);
    }
    if !may(&stored) {
        return Ok(None);
    }
    tracing::warn!(
        target: "oxide_flow::state", %pipeline,
        "The store is too full for a lease; deleting by compare-and-swap alone"
    );
    let mut deleted = Deleted { state: take_away(store, pipeline, &stored)?, ..Deleted::default() };
    if deletion.with_copies {
        deleted.copies = delete_copies(store, pipeline)?;
    }
    if deleted.state && !deletion.with_copies {
        // It takes less space than has just become free, and tells that the state is not lost.
        record(store, clock, deletion);
    }
    Ok(Some(deleted))
}

fn take_away(store: &StateStore, pipeline: &PipelineName, stored: &ExaminedState) -> Result<bool> {
    match stored {
        ExaminedState::Absent => Ok(false),
        ExaminedState::Whole(_) | ExaminedState::Damaged(_) => {
            store.delete_state(pipeline, &stored.expected())
        }
    }
}

fn delete_copies(store: &StateStore, pipeline: &PipelineName) -> Result<usize> {
    let ids =
        |listed: Vec<ListedBackup>| listed.into_iter().map(|copy| copy.id).collect::<Vec<_>>();
    let deleted = store.delete_backups(pipeline, &ids(store.list_backups(pipeline)?))?
        + store.delete_quarantined(pipeline, &ids(store.list_quarantined(pipeline)?))?;
    Ok(deleted + history::prune(store, pipeline, 0, false)?.len())
}

fn record(store: &StateStore, clock: &dyn Clock, deletion: &Deletion<'_>) {
    history::record(
        store,
        clock,
        &Event {
            pipeline: deletion.pipeline,
            kind: HistoryKind::Delete,
            who: deletion.options.who,
            why: deletion.why,
            state: None,
            keep: deletion.options.history_keep,
        },
    );
}
