//! How a run begins: what it makes of what earlier ones left, in the store and in the spool.
//!
//! The lease is held by then. Invariant: no step starts, and nothing of the run itself is saved, before
//! the state is saved under the epoch of the lease. What comes before that save only takes in or keeps
//! what earlier runs left: spooled states, by compare-and-swap, backups, and damaged bytes.

use oxiflow_plugin_api::Version;

use super::session::{Begin, RunRequest};
use crate::clock::Clock;
use crate::error::{ErrorKind, Result};
use crate::model::{PipelineState, StepState};
use crate::recovery::{self, Settled, find_lost, replay, was_deleted};
use crate::store::{ExaminedState, StateStore};

/// What is known of a pipeline before its lease is taken.
pub(super) struct Ahead {
    /// The lease gets a greater epoch than this.
    pub epoch_floor: u64,
    /// Whether there is no state since somebody deleted it.
    is_deleted: bool,
}

/// Looks whether a run may begin, before anything is changed.
///
/// # Errors
/// `Corrupt` when the state is damaged, in the store or in the spool, or lost, unless the run starts
/// over; otherwise as the store fails.
pub(super) fn look_ahead(store: &StateStore, request: &RunRequest) -> Result<Ahead> {
    let pipeline = &request.pipeline;
    let examined = if request.fresh {
        store.examine_state(pipeline)?
    } else {
        let record = store.load_state_record(pipeline)?;
        record.map_or(ExaminedState::Absent, |record| ExaminedState::Whole(Box::new(record)))
    };
    let (epoch_floor, _) = examined.counters();
    let spool = &request.fallback.spool;
    let spooled = if request.fresh { Vec::new() } else { spool.entries(store, pipeline)? };
    if !matches!(examined, ExaminedState::Absent) {
        return Ok(Ahead { epoch_floor, is_deleted: false });
    }
    let is_deleted = was_deleted(store, pipeline)?;
    let newest = spooled.last().filter(|_| !is_deleted);
    // The lease, and what it says of epochs, may be lost too.
    let mut epoch_floor = newest.map_or(0, |spooled| spooled.rescued.state.epoch);
    if let Some(lost) = find_lost(store, pipeline)? {
        let is_spooled = match newest {
            Some(spooled) => spooled.conflict_with(store, None)?.is_none(),
            None => false,
        };
        if !(request.fresh || is_spooled) {
            return Err(lost.to_error());
        }
        epoch_floor = epoch_floor.max(lost.newest.state.epoch);
    }
    Ok(Ahead { epoch_floor, is_deleted })
}

/// Deals with what earlier runs spooled. A run that starts over is not kept from it by damage.
pub(super) fn settle_spool(
    store: &StateStore,
    request: &RunRequest,
    ahead: &Ahead,
) -> Result<Vec<Settled>> {
    let (spool, pipeline) = (&request.fallback.spool, &request.pipeline);
    if ahead.is_deleted {
        return spool.give_up(pipeline, "the state was deleted");
    }
    match replay(store, spool, pipeline) {
        Err(error) if request.fresh && error.kind() == ErrorKind::Corrupt => {
            spool.give_up(pipeline, &crate::error::chain(&error))
        }
        settled => settled,
    }
}

/// Writes the state under the new epoch, after keeping what that gives up. A worker that was taken
/// over may save once more in between: that is its acknowledged progress, so it is read again.
pub(super) fn take_on(
    store: &StateStore,
    clock: &dyn Clock,
    request: &RunRequest,
    epoch: u64,
    replayed: bool,
) -> Result<(PipelineState, Version, Begin)> {
    loop {
        let examined = if request.fresh {
            store.examine_state(&request.pipeline)?
        } else {
            let record = store.load_state_record(&request.pipeline)?;
            record.map_or(ExaminedState::Absent, |record| ExaminedState::Whole(Box::new(record)))
        };
        let expected = examined.expected();
        let (stored, is_damaged) = match examined {
            ExaminedState::Absent => (None, false),
            ExaminedState::Whole(record) => (Some(*record), false),
            ExaminedState::Damaged(damaged) => {
                let reason = "before a fresh run";
                recovery::quarantine(store, clock, &request.pipeline, &damaged, reason)?;
                (None, true)
            }
        };
        if let Some(record) = stored.as_ref().filter(|_| request.backup) {
            if record.state.value.can_resume() && request.fresh {
                recovery::back_up_record(store, clock, record, "before a fresh run")?;
            } else if record.original.is_some() {
                recovery::back_up_record(store, clock, record, "before an upgrade")?;
            }
        }
        let previous = stored.map(|record| record.state.value);
        let (mut state, mut begin) = next_state(request, previous, replayed, clock);
        if is_damaged {
            begin = Begin::New;
        }
        state.take_on(&request.holder.worker_id, epoch, clock.now());
        match store.save_state(&mut state, &expected) {
            Ok(version) => return Ok((state, version, begin)),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
}

/// The state a run begins with. A run whose end was only spooled has told that it did not end well,
/// so it is resumed also when it had completed: its steps are done, and it ends.
fn next_state(
    request: &RunRequest,
    previous: Option<PipelineState>,
    replayed: bool,
    clock: &dyn Clock,
) -> (PipelineState, Begin) {
    let steps = || request.steps.iter().map(|(id, name)| (id.as_str(), name.as_str()));
    match previous {
        Some(mut state) if (state.can_resume() || replayed) && !request.fresh => {
            let status = state.status;
            state.add_missing_steps(steps());
            (state, Begin::Resumed(status))
        }
        previous => {
            let run_id = ulid::Ulid::generate().to_string();
            let mut state = PipelineState::new(&request.pipeline, &run_id, steps(), clock.now());
            let begin = if previous.is_some() { Begin::New } else { Begin::First };
            if let Some(previous) = previous {
                state.version = previous.version;
                state.extra = previous.extra;
                for id in request.incremental.iter().filter(|_| !request.fresh) {
                    keep_cursor(&mut state, previous.step_states.get(id));
                }
            }
            (state, begin)
        }
    }
}

/// An incremental step starts where it ended in the run before.
fn keep_cursor(state: &mut PipelineState, previous: Option<&StepState>) {
    let Some(previous) = previous else { return };
    if let Some(step) = state.step_states.get_mut(&previous.step_id) {
        step.last_processed_id.clone_from(&previous.last_processed_id);
        step.batch_number = previous.batch_number;
    }
}
