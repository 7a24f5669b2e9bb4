//! Keeping a pipeline's copies within their bounds, and making those that are due.
//!
//! Shared by the runner, which looks after its own pipeline, and by commands, which look after
//! all. Nothing here takes a lease: copies are written once and never changed, and a state is
//! only read. Deleting needs no space, so it works on a full store.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::backup::back_up_record;
use super::copies::{load_verified, newest_verified, time_of};
use super::retention::{Candidate, Expired, Retention, plan_retention};
use crate::clock::Clock;
use crate::config::StateSection;
use crate::error::{ErrorKind, Result, chain};
use crate::history;
use crate::model::{PipelineName, PipelineStatus};
use crate::store::{ListedBackup, StateRecord, StateStore};

/// The reason of a backup that nobody asked for.
const SCHEDULED: &str = "scheduled";

/// What is kept of each pipeline, and what is done for that.
#[derive(Clone, Copy, Debug)]
pub struct Upkeep {
    /// How many backups and quarantined bytes are kept, and for how long.
    pub retention: Retention,
    /// How many history records are kept.
    pub history_keep: usize,
    /// How often a state is backed up; `None` when it is not.
    pub backup_interval: Option<Duration>,
    /// How often a run looks after its pipeline.
    pub cleanup_interval: Duration,
}

impl From<&StateSection> for Upkeep {
    fn from(state: &StateSection) -> Self {
        Self {
            retention: Retention::from(state),
            history_keep: state.history_keep,
            backup_interval: state.backup_interval.filter(|_| state.backup_enabled),
            cleanup_interval: state.cleanup_interval,
        }
    }
}

/// Whether a scheduled backup of a pipeline is to be made now.
#[derive(Debug)]
pub enum Due {
    /// Yes, of this state.
    Now(Box<StateRecord>),
    /// No, but after this time if the state changes.
    In(Duration),
    /// No: there is no state, or nothing has happened since the newest backup.
    Unchanged,
}

/// Deletes the backups of a pipeline that are not to be kept, and returns them; with `dry_run` it
/// only says which. The newest one that verifies stays.
///
/// # Errors
/// As the store fails, and when a backup cannot be judged; some may be deleted then.
pub fn prune_backups(
    store: &StateStore,
    pipeline: &PipelineName,
    retention: Retention,
    now: DateTime<Utc>,
    dry_run: bool,
) -> Result<Vec<Expired>> {
    let listed = store.list_backups(pipeline)?;
    let candidates = candidates(&listed);
    // Only when something is to go is it worth reading backups.
    if plan_retention(&candidates, None, retention, now).is_empty() {
        return Ok(Vec::new());
    }
    let protected = newest_verified(store, pipeline, &listed)?;
    let expired = plan_retention(&candidates, protected.as_deref(), retention, now);
    if dry_run {
        return Ok(expired);
    }
    store.delete_backups(pipeline, &ids(&expired))?;
    for copy in &expired {
        let (backup_id, why) = (&copy.id, copy.why.as_str());
        tracing::info!(target: "oxide_flow::state", %pipeline, backup_id, why, "Backup removed");
    }
    Ok(expired)
}

/// Deletes quarantined bytes of a pipeline that are older than copies are kept, and returns them;
/// with `dry_run` it only says which.
///
/// # Errors
/// As the store fails; some may be deleted then.
pub fn prune_quarantined(
    store: &StateStore,
    pipeline: &PipelineName,
    retention: Retention,
    now: DateTime<Utc>,
    dry_run: bool,
) -> Result<Vec<Expired>> {
    let candidates = candidates(&store.list_quarantined(pipeline)?);
    let by_age = Retention { keep: 0, ..retention };
    let expired = plan_retention(&candidates, None, by_age, now);
    if !dry_run {
        store.delete_quarantined(pipeline, &ids(&expired))?;
    }
    Ok(expired)
}

fn ids(expired: &[Expired]) -> Vec<String> {
    expired.iter().map(|copy| copy.id.clone()).collect()
}

/// Says whether a scheduled backup is due: when the newest backup is older than `interval` and
/// the state has changed since. A pipeline without backups counts from its oldest history record,
/// and without one from the start of its run.
///
/// # Errors
/// `Corrupt` when the state is damaged; otherwise as the store fails.
pub fn backup_due(
    store: &StateStore,
    pipeline: &PipelineName,
    interval: Duration,
    now: DateTime<Utc>,
) -> Result<Due> {
    let newest = store.list_backups(pipeline)?.into_iter().next_back();
    let first = |ids: Vec<String>| ids.first().and_then(|id| history::time_of(id));
    let since = match &newest {
        Some(newest) => time_of(newest),
        None => first(store.history_ids(pipeline)?),
    };
    let left = |since: DateTime<Utc>| {
        let due = TimeDelta::from_std(interval).ok().and_then(|i| since.checked_add_signed(i));
        // An interval beyond the calendar is never over.
        due.map_or(interval, |due| (due - now).to_std().unwrap_or_default())
    };
    if let Some(left) = since.map(left).filter(|left| !left.is_zero()) {
        return Ok(Due::In(left));
    }
    let Some(record) = store.load_state_record(pipeline)? else {
        return Ok(Due::Unchanged);
    };
    let state = &record.state.value;
    let has_begun = state.step_states.values().any(|step| step.started_at.is_some());
    if state.status == PipelineStatus::Running && !has_begun {
        // There is nothing in it that the state before it did not have.
        return Ok(Due::Unchanged);
    }
    if since.is_none() && state.finished_at.is_none() && !left(state.started_at).is_zero() {
        return Ok(Due::In(left(state.started_at)));
    }
    if let Some(newest) = newest {
        match load_verified(store, pipeline, &newest.id) {
            Ok(Some(backup)) if backup.state == *state => return Ok(Due::Unchanged),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Due::Now(Box::new(record)))
}

/// Makes the scheduled backup of a state, and returns its id.
///
/// # Errors
/// As the store fails.
pub fn make_scheduled_backup(
    store: &StateStore,
    clock: &dyn Clock,
    record: &StateRecord,
    upkeep: &Upkeep,
) -> Result<String> {
    with_room(store, clock, &record.state.value.pipeline_id, upkeep, || {
        back_up_record(store, clock, record, SCHEDULED)
    })
}

/// Whose copies are removed to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomScope {
    /// Those of one pipeline.
    Own,
    /// Those of all pipelines.
    All,
}

/// Removes the copies that need not be kept, on a store that is full, and says how many that
/// were. What cannot be removed is logged.
pub fn make_room(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
    scope: RoomScope,
    upkeep: &Upkeep,
) -> usize {
    let pipelines = match scope {
        RoomScope::Own => Ok(BTreeSet::from([pipeline.clone()])),
        RoomScope::All => pipelines_with_copies(store),
    };
    let now = clock.now();
    let mut removed = 0;
    let mut note = |result: Result<usize>| match result {
        Ok(number) => removed += number,
        Err(error) => tracing::debug!(error = chain(&error), "cannot make room in the store"),
    };
    match pipelines {
        Ok(pipelines) => {
            for name in pipelines {
                let Upkeep { retention, history_keep, .. } = *upkeep;
                let pruned = prune_backups(store, &name, retention, now, false);
                note(pruned.map(|expired| expired.len()));
                let pruned = prune_quarantined(store, &name, retention, now, false);
                note(pruned.map(|expired| expired.len()));
                let pruned = history::prune(store, &name, history_keep, false);
                note(pruned.map(|pruned| pruned.len()));
            }
        }
        Err(error) => note(Err(error)),
    }
    if removed > 0 {
        tracing::warn!(
            target: "oxide_flow::state", %pipeline, removed,
            "The store is full; copies that need not be kept were removed"
        );
    }
    removed
}

/// Writes, and when the store is full once more after making room.
///
/// # Errors
/// As `write` fails.
pub fn with_room<T>(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
    upkeep: &Upkeep,
    mut write: impl FnMut() -> Result<T>,
) -> Result<T> {
    match write() {
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            if make_room(store, clock, pipeline, RoomScope::All, upkeep) == 0 {
                return Err(error);
            }
            write()
        }
        written => written,
    }
}

/// The pipelines of which there are copies, also those that have no state any more.
///
/// # Errors
/// As the store fails.
pub fn pipelines_with_copies(store: &StateStore) -> Result<BTreeSet<PipelineName>> {
    let mut pipelines = BTreeSet::new();
    pipelines.extend(store.pipelines_with_backups()?);
    pipelines.extend(store.pipelines_with_quarantined()?);
    pipelines.extend(store.pipelines_with_history()?);
    Ok(pipelines)
}

fn candidates(listed: &[ListedBackup]) -> Vec<Candidate> {
    let candidate = |listed: &ListedBackup| Candidate {
        id: listed.id.clone(),
        at: time_of(listed),
        bytes: listed.bytes,
    };
    listed.iter().map(candidate).collect()
}
