//! What is shown of a store, as plain documents: the same for `--json` and for the API.
//!
//! Nothing here prints or writes. A record that cannot be read becomes a row that says so, and
//! never hides the others.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::{Worker, WorkerStatus};
use crate::model::{HistoryRecord, Lease, ManualLock, PipelineName, PipelineState, PipelineStatus};
use crate::store::StateStore;

/// A pipeline in a listing.
#[derive(Debug, Serialize)]
pub struct PipelineRow {
    /// Its name.
    pub pipeline: String,
    /// Its effective status, or `corrupt`, or `unreadable`.
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
    /// Why it cannot be read.
    pub error: Option<String>,
}

impl PipelineRow {
    /// The row of a pipeline with this state.
    #[must_use]
    pub fn of(state: &PipelineState, holder: Option<&Worker>) -> Self {
        Self {
            pipeline: state.pipeline_id.to_string(),
            status: effective_status(state, holder).to_owned(),
            step: Some(state.current_step.clone()),
            records_processed: Some(state.records_processed),
            records_failed: Some(state.records_failed),
            saved_at: Some(state.last_heartbeat),
            worker_id: holder.map(|worker| worker.lease.holder.worker_id.clone()),
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
    /// A state seen together with who holds it and who has locked it.
    #[must_use]
    pub fn new(
        state: &'a PipelineState,
        holder: Option<&'a Worker>,
        lock: Option<&'a ManualLock>,
    ) -> Self {
        let worker = holder.map(|worker| HolderView {
            worker_id: &worker.lease.holder.worker_id,
            status: worker.status.as_str(),
            host: &worker.lease.holder.host,
            pid: worker.lease.holder.pid,
        });
        Self { effective_status: effective_status(state, holder), worker, lock, state }
    }
}

/// A worker.
#[derive(Debug, Serialize)]
pub struct WorkerView<'a> {
    status: &'static str,
    process: &'static str,
    expires_at: Option<DateTime<Utc>>,
    lease: &'a Lease,
}

impl<'a> From<&'a Worker> for WorkerView<'a> {
    fn from(worker: &'a Worker) -> Self {
        let lease = &worker.lease;
        let ttl = chrono::TimeDelta::from_std(lease.ttl()).unwrap_or_default();
        let expires_at = worker.is_holding().then(|| lease.renewed_at + ttl);
        let (status, process) = (worker.status.as_str(), worker.liveness.as_str());
        Self { status, process, expires_at, lease }
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
    let lease = store.load_lease(pipeline)?;
    Ok(lease.map(|lease| Worker::of(lease.value, clock.now())).filter(Worker::is_holding))
}

/// Where a run stands, seen together with its worker: a state that says `running` while nobody
/// runs it was interrupted.
#[must_use]
pub fn effective_status(state: &PipelineState, holder: Option<&Worker>) -> &'static str {
    let held = holder.is_some_and(|worker| {
        !matches!(worker.status, WorkerStatus::Dead | WorkerStatus::Released)
    });
    match state.status {
        PipelineStatus::Running if !held => "interrupted",
        status => status.as_str(),
    }
}
