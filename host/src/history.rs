//! Keeps what happened to pipelines: runs that ended, and administrative changes.
//!
//! Whoever changed a state calls [`record`] once the change is durable. History tells of a change
//! and is no part of it: when it cannot be written, that is a warning, and the change stands.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::model::{HistoryKind, HistoryRecord, PipelineName, PipelineState};
use crate::store::StateStore;

/// The time in a history id: it sorts as text, and is short enough to be typed.
const ID_TIME: &str = "%Y%m%dT%H%M%S%.6fZ";

/// Something that happened to a pipeline.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// The pipeline.
    pub pipeline: &'a PipelineName,
    /// What happened.
    pub kind: HistoryKind,
    /// Who did it: the worker for a run, user and host for a command.
    pub who: &'a str,
    /// Why or how, for people.
    pub why: &'a str,
    /// The state after; `None` when it was deleted or there was none.
    pub state: Option<&'a PipelineState>,
    /// How many records of this pipeline are kept, this one included; 0 keeps none.
    pub keep: usize,
}

/// Writes a history record, deletes those that are too many, and returns the new record's id;
/// `None` when none was kept. A failure is logged as a warning.
pub fn record(store: &StateStore, clock: &dyn Clock, event: &Event<'_>) -> Option<String> {
    let pipeline = event.pipeline;
    match try_record(store, clock, event) {
        Ok(history_id) => history_id,
        Err(error) => {
            let (kind, error) = (event.kind.as_str(), chain(&error));
            tracing::warn!(
                target: "oxide_flow::state", %pipeline, kind, error,
                "History not written; the change itself is done"
            );
            None
        }
    }
}

/// Deletes the oldest history records of a pipeline beyond the newest `keep`, and returns the ids
/// of those deleted, or that would be with `dry_run`.
///
/// # Errors
/// As the store fails; some may be deleted then.
pub fn prune(
    store: &StateStore,
    pipeline: &PipelineName,
    keep: usize,
    dry_run: bool,
) -> Result<Vec<String>> {
    let mut ids = store.history_ids(pipeline)?;
    ids.truncate(ids.len().saturating_sub(keep));
    if !dry_run {
        store.delete_history(pipeline, &ids)?;
    }
    Ok(ids)
}

/// Deletes the history records of a pipeline that were written before a time, and returns their
/// ids, or those that would be deleted with `dry_run`.
///
/// # Errors
/// As the store fails; some may be deleted then.
pub fn prune_before(
    store: &StateStore,
    pipeline: &PipelineName,
    before: DateTime<Utc>,
    dry_run: bool,
) -> Result<Vec<String>> {
    let mut ids = store.history_ids(pipeline)?;
    ids.retain(|id| time_of(id).is_some_and(|at| at < before));
    if !dry_run {
        store.delete_history(pipeline, &ids)?;
    }
    Ok(ids)
}

/// When the record of this id was written, or a moment later if the clock went back before; `None`
/// when it is no id of ours.
#[must_use]
pub fn time_of(history_id: &str) -> Option<DateTime<Utc>> {
    let (time, _) = history_id.split_once('-')?;
    NaiveDateTime::parse_from_str(time, ID_TIME).ok().map(|time| time.and_utc())
}

/// A record that a person means.
#[derive(Debug)]
pub struct Found {
    /// The record.
    pub record: HistoryRecord,
    /// The ids of newer ones that cannot be read and were not counted, and why.
    pub skipped: Vec<(String, Error)>,
}

/// Finds the record that a person means: by its id, or `-N` for the N-th before the present
/// state, so that `-1` is what `rollback` goes back to. Of those that are counted, one that cannot
/// be read hides no older one.
///
/// # Errors
/// `NotFound` when there is no such record, `Corrupt` when it, or every one that is counted, is
/// damaged; otherwise as the store fails.
pub fn find(store: &StateStore, pipeline: &PipelineName, wanted: &str) -> Result<Found> {
    let none = || {
        Error::new(ErrorKind::NotFound, format!("pipeline `{pipeline}` has no history `{wanted}`"))
            .hint(format!("`oxide_flow state history {pipeline}` shows what there is"))
    };
    let back = wanted.strip_prefix('-').map(str::parse::<usize>);
    let Some(back) = back else {
        // Only what an id is made of goes into a key.
        if wanted.is_empty()
            || !wanted.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        {
            return Err(none());
        }
        let record = store.load_history(pipeline, wanted)?.ok_or_else(none)?;
        return Ok(Found { record, skipped: Vec::new() });
    };
    let back = back.ok().filter(|back| *back > 0).ok_or_else(|| {
        let message = format!("`{wanted}` is no history id and no number of steps back");
        Error::new(ErrorKind::Usage, message).hint("use an id, or -1 for the last one before now")
    })?;
    let present = store.load_state(pipeline)?.map(|state| state.value);
    let (mut left, mut skipped) = (back, Vec::new());
    for history_id in store.history_ids(pipeline)?.into_iter().rev() {
        let record = match store.load_history(pipeline, &history_id) {
            Ok(Some(record)) => record,
            // Pruned since it was listed.
            Ok(None) => continue,
            Err(error) if error.is_of_one_record() => {
                skipped.push((history_id, error));
                continue;
            }
            Err(error) => return Err(error),
        };
        // Going back to what is there already is not what anybody means by going back.
        if present.as_ref().is_some_and(|state| record.is_of(state)) || record.state.is_none() {
            continue;
        }
        left -= 1;
        if left == 0 {
            return Ok(Found { record, skipped });
        }
    }
    Err(match skipped.into_iter().next() {
        None => none(),
        Some((_, error)) => {
            let message = format!("no history `{wanted}` of `{pipeline}` can be read");
            Error::new(error.kind(), message)
                .because(error)
                .hint(format!("`oxide_flow state history {pipeline}` shows what there is"))
        }
    })
}

fn try_record(store: &StateStore, clock: &dyn Clock, event: &Event<'_>) -> Result<Option<String>> {
    if event.keep == 0 {
        return Ok(None);
    }
    let (pipeline, now) = (event.pipeline, clock.now());
    let ids = store.history_ids(pipeline)?;
    let history_id = next_id(ids.last().map(String::as_str), now);
    let by = (event.who, event.why);
    let id = history_id.clone();
    let record = HistoryRecord::new(id, pipeline, event.kind, now, by, event.state);
    store.save_history(&record)?;
    let excess = (ids.len() + 1).saturating_sub(event.keep);
    store.delete_history(pipeline, &ids[..excess])?;
    Ok(Some(history_id))
}

fn next_id(last: Option<&str>, now: DateTime<Utc>) -> String {
    id_after(last.and_then(time_of), now, TimeDelta::microseconds(1), ID_TIME)
}

/// An id of this form that sorts after the one of `last`, also when the clock was set back in between
/// or `last` came from a machine whose clock is ahead.
pub(crate) fn id_after(
    last: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    tick: TimeDelta,
    form: &str,
) -> String {
    let time = last.map_or(now, |last| now.max(last + tick));
    let unique = ulid::Ulid::generate().to_string().to_lowercase();
    // The last digits of a ulid are random.
    format!("{}-{}", time.format(form), &unique[unique.len() - 6..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_the_order_of_writing_also_when_the_clock_goes_back() {
        let mut last: Option<String> = None;
        for seconds in [1_800_000_000, 1_800_000_000, 1_700_000_000, 1_900_000_000, 0] {
            let now = DateTime::from_timestamp(seconds, 123_456_000).unwrap();
            let next = next_id(last.as_deref(), now);
            assert!(last.is_none_or(|last| last < next), "{next}");
            last = Some(next);
        }
    }

    #[test]
    fn a_foreign_id_does_not_stop_history() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        assert!(next_id(Some("something"), now).starts_with("20270115T080000.000000Z-"));
    }
}
