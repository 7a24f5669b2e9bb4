//! The one way in which a command replaces a state: under the lease, a copy of what is there first.
//!
//! Invariant: what is kept is what is replaced, since both are read under the lease, and the
//! write is a compare-and-swap on it. A state that can be read becomes a backup, a damaged one is
//! quarantined. The epoch only grows, so a worker that held the pipeline before is fenced.

use std::sync::Arc;
use std::time::Duration;

use super::backup::{back_up_record, quarantine};
use super::guard::{Claim, under_lease};
use super::known_copies::copies_of;
use crate::clock::Clock;
use crate::error::Result;
use crate::history::{self, Event};
use crate::model::{HistoryKind, PipelineName, PipelineState, PipelineStatus};
use crate::store::{ExaminedState, StateStore};

/// Which state to replace, and on whose behalf.
pub struct Rewrite<'a> {
    /// The pipeline.
    pub pipeline: &'a PipelineName,
    /// What for; shown to those who find the lease held, and part of the backup's reason.
    pub purpose: &'a str,
    /// What it is in the history.
    pub kind: HistoryKind,
    /// Why or how, for the history.
    pub why: &'a str,
    /// The administrative options.
    pub options: &'a RewriteOptions<'a>,
    /// The new epoch is greater than this and than that of the stored state.
    pub epoch_floor: u64,
}

/// What all administrative writes of one command have in common.
#[derive(Clone, Copy, Debug)]
pub struct RewriteOptions<'a> {
    /// Who gives the command: user and host.
    pub who: &'a str,
    /// Whether the stored state is backed up first.
    pub backup: bool,
    /// How many history records are kept.
    pub history_keep: usize,
    /// How long to wait for a live worker to finish.
    pub wait: Duration,
}

/// What was written.
#[derive(Debug)]
pub struct Rewritten {
    /// The state as it is stored now.
    pub state: PipelineState,
    /// The copy of what was there.
    pub kept: Option<Kept>,
}

/// The copy of what a command replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A backup of a state that could be read, by id.
    Backup(String),
    /// The quarantined bytes of one that could not, by id.
    Quarantined(String),
}

/// Replaces a state by what `change` makes of the stored one; nothing is written when it makes
/// nothing of it.
///
/// # Errors
/// `LeaseHeld` when a live worker is on the pipeline; as `change` fails; otherwise as the store
/// fails. The state is as it was then.
pub fn rewrite(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    request: &Rewrite<'_>,
    change: impl FnOnce(&ExaminedState) -> Result<Option<PipelineState>>,
) -> Result<Option<Rewritten>> {
    let (pipeline, options) = (request.pipeline, request.options);
    let (known_epoch, _) = known_counters(store, pipeline, &store.examine_state(pipeline)?)?;
    let claim = Claim {
        pipeline,
        purpose: request.purpose,
        wait: options.wait,
        epoch_floor: known_epoch.max(request.epoch_floor),
    };
    under_lease(store, clock, &claim, |epoch| {
        let stored = store.examine_state(pipeline)?;
        let Some(mut state) = change(&stored)? else {
            return Ok(None);
        };
        let kept = keep_first(store, clock.as_ref(), pipeline, &stored, request.purpose, options)?;
        let (_, known_version) = known_counters(store, pipeline, &stored)?;
        state.version = state.version.max(known_version);
        state.epoch = epoch;
        store.save_state(&mut state, &stored.expected())?;
        history::record(
            store,
            clock.as_ref(),
            &Event {
                pipeline,
                kind: request.kind,
                who: options.who,
                why: request.why,
                state: Some(&state),
                keep: options.history_keep,
            },
        );
        Ok(Some(Rewritten { state, kept }))
    })
}

/// How far epoch and version have come, as far as that is certain. Of a state that is damaged or gone
/// the copies tell.
fn known_counters(
    store: &StateStore,
    pipeline: &PipelineName,
    stored: &ExaminedState,
) -> Result<(u64, u64)> {
    let counters = stored.counters();
    if stored.whole().is_some() {
        return Ok(counters);
    }
    let copies = copies_of(store, pipeline, usize::MAX)?;
    Ok(copies.iter().fold(counters, |(epoch, version), copy| {
        (epoch.max(copy.state.epoch), version.max(copy.state.version))
    }))
}

/// Keeps a copy of what a command is about to replace or delete; `None` when there is nothing, or
/// when states are not to be backed up. Damaged bytes are kept in any case.
pub(super) fn keep_first(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
    stored: &ExaminedState,
    purpose: &str,
    options: &RewriteOptions<'_>,
) -> Result<Option<Kept>> {
    let reason = format!("before {purpose}");
    Ok(match stored {
        ExaminedState::Whole(record) if options.backup => {
            Some(Kept::Backup(back_up_record(store, clock, record, &reason)?))
        }
        ExaminedState::Damaged(damaged) => {
            Some(Kept::Quarantined(quarantine(store, clock, pipeline, damaged, &reason)?))
        }
        ExaminedState::Whole(_) | ExaminedState::Absent => None,
    })
}

/// Makes a state from elsewhere one that nobody runs here; the next run resumes it.
pub(super) fn detach(state: &mut PipelineState) {
    state.worker_id = None;
    if state.status == PipelineStatus::Running {
        let last_saved = state.last_heartbeat;
        state.finish(PipelineStatus::Paused, last_saved);
    }
}
