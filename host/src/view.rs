//! What is shown of a store, as plain documents: the same for `--json` and for the API.
//!
//! Nothing here prints or writes. A record that cannot be read becomes a row that says so, and
//! never hides the others.

use std::path::Path;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::Worker;
use crate::model::{
    HistoryRecord, Lease, ManualLock, Moved, PipelineName, PipelineState, PipelineStatus,
};
use crate::store::StateStore;

/// What is shown instead of the status of a state that a pipeline left behind in another store.
const MOVED: &str = "moved";

/// A pipeline in a listing.
#[derive(Debug, Serialize)]
pub struct PipelineRow {
    /// Its name.
    pub pipeline: String,
    /// Its effective status, `moved`, `lost`, `corrupt` or `unreadable`.
    pub status: String,
    /// The step that runs or ran last.
    pub step: Option<String>,
    /// Records processed.
    pub records_processed: Option<u64>,
    /// Records that failed.
    pub records_failed: Option<u64>,
    /// When the state was last saved.
    pub saved_at: Option<DateTime<Utc>>,
    /// The worker that holds it.
    pub worker_id: Option<String>,
    /// When the state was spooled on this machine, if the store is away.
    pub stale_since: Option<DateTime<Utc>>,
    /// Why it cannot be read.
    pub error: Option<String>,
}

impl PipelineRow {
    /// The row of a pipeline with this state and this lease.
    #[must_use]
    pub fn of(state: &PipelineState, lease: Option<&Worker>) -> Self {
        let holder = lease.filter(|worker| worker.is_holding());
        Self {
            pipeline: state.pipeline_id.to_string(),
            status: effective_status(state, lease).to_owned(),
            step: Some(state.current_step.clone()),
            records_processed: Some(state.records_processed),
            records_failed: Some(state.records_failed),
            saved_at: Some(state.last_heartbeat),
            worker_id: holder.map(|worker| worker.lease.holder.worker_id.clone()),
            stale_since: None,
            error: None,
        }
    }

    /// The row of a pipeline whose state or lease cannot be read.
    #[must_use]
    pub fn unreadable(pipeline: &PipelineName, error: &Error) -> Self {
        let status = if error.kind() == ErrorKind::Corrupt { "corrupt" } else { "unreadable" };
        Self {
            pipeline: pipeline.to_string(),
            status: status.to_owned(),
            step: None,
            records_processed: None,
            records_failed: None,
            saved_at: None,
            worker_id: None,
            stale_since: None,
            error: Some(chain(error)),
        }
    }
}

/// Everything about one pipeline.
#[derive(Debug, Serialize)]
pub struct PipelineView<'a> {
    effective_status: &'a str,
    worker: Option<HolderView<'a>>,
    lock: Option<&'a ManualLock>,
    moved: Option<&'a Moved>,
    /// Whether the store is away, and this was spooled on this machine.
    pub degraded: bool,
    /// When it was spooled.
    pub stale_since: Option<DateTime<Utc>>,
    /// Where it is spooled.
    pub spool_file: Option<&'a Path>,
    state: &'a PipelineState,
}

#[derive(Debug, Serialize)]
struct HolderView<'a> {
    worker_id: &'a str,
    status: &'a str,
    host: &'a str,
    pid: u32,
}

impl<'a> PipelineView<'a> {
    /// A state seen together with its lease: who holds it, who has locked it at `now`, and whether
    /// the pipeline lives in another store.
    #[must_use]
    pub fn new(state: &'a PipelineState, lease: Option<&'a Worker>, now: DateTime<Utc>) -> Self {
        let worker = lease.filter(|worker| worker.is_holding()).map(|worker| HolderView {
            worker_id: &worker.lease.holder.worker_id,
            status: worker.status.as_str(),
            host: &worker.lease.holder.host,
            pid: worker.lease.holder.pid,
        });
        Self {
            effective_status: effective_status(state, lease),
            worker,
            lock: lease.and_then(|worker| worker.lock_at(now)),
            moved: lease.and_then(|worker| worker.lease.moved.as_ref()),
            degraded: false,
            stale_since: None,
            spool_file: None,
            state,
        }
    }
}

/// A worker.
#[derive(Debug, Serialize)]
pub struct WorkerView<'a> {
    status: &'static str,
    process: &'static str,
    /// When its lease runs out; `None` when it holds none, or lasts longer than any calendar.
    expires_at: Option<DateTime<Utc>>,
    /// When this was spooled on this machine, if the store is away.
    pub stale_since: Option<DateTime<Utc>>,
    lease: &'a Lease,
}

impl<'a> From<&'a Worker> for WorkerView<'a> {
    fn from(worker: &'a Worker) -> Self {
        let lease = &worker.lease;
        let ttl = chrono::TimeDelta::from_std(lease.ttl()).ok().filter(|_| worker.is_holding());
        let expires_at = ttl.and_then(|ttl| lease.renewed_at.checked_add_signed(ttl));
        let (status, process) = (worker.status.as_str(), worker.liveness.as_str());
        Self { status, process, expires_at, stale_since: None, lease }
    }
}

/// A history record as a document: everything but the state, which `has_state` stands for.
///
/// # Errors
/// `Internal` when the record does not become JSON.
pub fn history_document(history_id: &str, record: &Result<HistoryRecord>) -> Result<Value> {
    let record = match record {
        Ok(record) => record,
        Err(error) => return Ok(json!({"history_id": history_id, "error": chain(error)})),
    };
    let mut document = serde_json::to_value(record).map_err(|error| {
        let message = format!("cannot write history record `{history_id}` as JSON");
        Error::new(ErrorKind::Internal, message).because(error)
    })?;
    if let Some(fields) = document.as_object_mut() {
        let state = fields.remove("state");
        fields.insert("has_state".to_owned(), json!(state.is_some_and(|state| !state.is_null())));
    }
    Ok(document)
}

/// The worker that holds a pipeline; `None` when nobody does.
///
/// # Errors
/// As the store fails.
pub fn holder_of(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
) -> Result<Option<Worker>> {
    Ok(lease_of(store, clock, pipeline)?.filter(Worker::is_holding))
}

/// The lease of a pipeline with who holds it, or held it last; `None` when nobody ever did.
///
/// # Errors
/// As the store fails.
pub fn lease_of(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
) -> Result<Option<Worker>> {
    Ok(store.load_lease(pipeline)?.map(|lease| Worker::of(lease.value, clock.now())))
}

/// Where a run stands, seen together with its lease: a state that says `running` while nobody
/// runs it was interrupted, and one that a pipeline left behind in another store is `moved`.
#[must_use]
pub fn effective_status(state: &PipelineState, lease: Option<&Worker>) -> &'static str {
    let held = lease.is_some_and(|worker| worker.status.may_live());
    if lease.is_some_and(|worker| worker.lease.moved.is_some()) {
        return MOVED;
    }
    match state.status {
        PipelineStatus::Running if !held => "interrupted",
        status => status.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lease::this_process;

    #[test]
    fn a_lease_that_outlasts_every_calendar_has_no_end_and_is_shown_as_it_is() {
        let shown = |ttl_ms| {
            let at = DateTime::UNIX_EPOCH;
            let (pipeline, holder) = ("p".parse().unwrap(), this_process().unwrap());
            let ttl = Duration::from_millis(ttl_ms);
            let lease = Lease::new(pipeline, holder, 1, ttl, "run", at);
            let document = json!(WorkerView::from(&Worker::of(lease, at)));
            (document["expires_at"].clone(), document["lease"]["ttl_ms"].clone())
        };
        assert_eq!(shown(1000), (json!("1970-01-01T00:00:01Z"), json!(1000)));
        // The first is more than a duration can be, the second only more than a date.
        for absurd in [u64::MAX, i64::MAX.unsigned_abs()] {
            assert_eq!(shown(absurd), (Value::Null, json!(absurd)));
        }
    }
}
