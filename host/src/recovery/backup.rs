//! Keeping copies: backups of states, and the bytes of damaged ones.

use base64ct::{Base64, Encoding};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use serde_json::json;

use super::lost::find_lost;
use super::rewrite::Kept;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::history;
use crate::model::{Backup, Extra, PipelineName, PipelineState, Quarantined};
use crate::store::{DamagedLease, DamagedState, ExaminedState, StateRecord, StateStore};

/// The time in the id of a copy.
const ID_TIME: &str = "%Y%m%dT%H%M%S%.3fZ";

/// Keeps a copy of a state, and returns the id of the backup.
///
/// # Errors
/// As the store fails; a backup that was asked for and not made must stop what follows.
pub fn back_up(
    store: &StateStore,
    clock: &dyn Clock,
    state: &PipelineState,
    reason: &str,
) -> Result<String> {
    keep(store, clock, state, reason, Extra::new())
}

/// Keeps a copy of a stored state; one of an older schema also as it is stored, under `original`.
///
/// # Errors
/// As [`back_up`].
pub fn back_up_record(
    store: &StateStore,
    clock: &dyn Clock,
    record: &StateRecord,
    reason: &str,
) -> Result<String> {
    let mut extra = Extra::new();
    if let Some(original) = &record.original {
        let original = json!({"schema": original.schema, "document": original.document});
        extra.insert("original".to_owned(), original);
    }
    keep(store, clock, &record.state.value, reason, extra)
}

/// Keeps a copy of whatever is stored as the state of a pipeline, which a worker may be on: a
/// backup of what was saved last, or the bytes of a damaged state.
///
/// # Errors
/// `NotFound` when there is no state, `Corrupt` when it is lost; otherwise as the store fails.
pub fn back_up_now(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
    reason: &str,
) -> Result<(ExaminedState, Kept)> {
    let stored = store.examine_state(pipeline)?;
    let kept = match &stored {
        ExaminedState::Whole(record) => Kept::Backup(back_up_record(store, clock, record, reason)?),
        ExaminedState::Damaged(damaged) => {
            Kept::Quarantined(quarantine(store, clock, pipeline, damaged, reason)?)
        }
        ExaminedState::Absent => {
            if let Some(lost) = find_lost(store, pipeline)? {
                return Err(lost.to_error());
            }
            let message = format!("pipeline `{pipeline}` has no state");
            return Err(Error::new(ErrorKind::NotFound, message)
                .hint("`oxide_flow state list` shows those that have one"));
        }
    };
    Ok((stored, kept))
}

/// Keeps the bytes of a damaged state before it is replaced, and returns the id they are under.
///
/// # Errors
/// As the store fails; what was not kept must not be replaced.
pub fn quarantine(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
    damaged: &DamagedState,
    reason: &str,
) -> Result<String> {
    let id = keep_bytes(
        store,
        Quarantined {
            quarantine_id: String::new(),
            pipeline_id: pipeline.clone(),
            key: format!("state/{pipeline}"),
            quarantined_at: clock.now(),
            reason: reason.to_owned(),
            damage: chain(&damaged.error),
            bytes: damaged.remains.as_deref().map(Base64::encode_string),
            extra: Extra::new(),
        },
    )?;
    tracing::warn!(target: "oxide_flow::state", %pipeline, quarantine_id = id, reason,
        "Damaged state quarantined");
    Ok(id)
}

/// Keeps the bytes of a damaged lease before it is replaced, and returns the id they are under.
///
/// # Errors
/// As [`quarantine`].
pub(super) fn quarantine_lease(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
    damaged: &DamagedLease,
    reason: &str,
) -> Result<String> {
    keep_bytes(
        store,
        Quarantined {
            quarantine_id: String::new(),
            pipeline_id: pipeline.clone(),
            key: format!("lease/{pipeline}"),
            quarantined_at: clock.now(),
            reason: reason.to_owned(),
            damage: chain(&damaged.error),
            bytes: damaged.remains.as_deref().map(Base64::encode_string),
            extra: Extra::new(),
        },
    )
}

fn keep_bytes(store: &StateStore, kept: Quarantined) -> Result<String> {
    let id = id_after(None, kept.quarantined_at);
    store.save_quarantined(&Quarantined { quarantine_id: id.clone(), ..kept })?;
    Ok(id)
}

fn keep(
    store: &StateStore,
    clock: &dyn Clock,
    state: &PipelineState,
    reason: &str,
    extra: Extra,
) -> Result<String> {
    let created_at = clock.now();
    let last = store.list_backups(&state.pipeline_id)?.into_iter().next_back();
    let backup_id = id_after(last.and_then(|last| time_of(&last.id)), created_at);
    store.save_backup(&Backup {
        backup_id: backup_id.clone(),
        created_at,
        reason: reason.to_owned(),
        state: state.clone(),
        extra,
    })?;
    let pipeline = &state.pipeline_id;
    tracing::info!(target: "oxide_flow::state", %pipeline, backup_id, reason, "Backup created");
    Ok(backup_id)
}

/// The id of a copy made now, after the one that was made at `last`: the newest one is that which
/// was made last, whatever the clocks of the machines say.
fn id_after(last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    history::id_after(last, now, TimeDelta::milliseconds(1), ID_TIME)
}

/// When the copy of this id was made, or a moment after the one before it if that was made by a clock
/// that is ahead; `None` when it is no id of ours.
pub(super) fn time_of(copy_id: &str) -> Option<DateTime<Utc>> {
    let (time, _) = copy_id.split_once('-')?;
    NaiveDateTime::parse_from_str(time, ID_TIME).ok().map(|time| time.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_when_the_copy_was_made() {
        let time = DateTime::from_timestamp_millis(1_795_000_000_679).unwrap();
        assert_eq!(time_of(&id_after(None, time)), Some(time));
        for foreign in ["", "-", "latest", "20261123-fzz1x1", "20261399T000000.000Z-fzz1x1"] {
            assert_eq!(time_of(foreign), None, "{foreign}");
        }
    }
}
