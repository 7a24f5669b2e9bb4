//! What is stored of a pipeline, judged: the record, the state in it, its lease and its copies.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::known_copies::copies_of;
use super::lost::{dated, may_be_lost};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::{Liveness, Worker, WorkerStatus, liveness};
use crate::model::validate::{Context, Finding, KnownCopy, Repair, Rule, shown, validate};
use crate::model::{Holder, PipelineName, PipelineState, PipelineStatus};
use crate::store::{Damage, DamagedState, ExaminedLease, ExaminedState, StateStore};

/// How many copies of either sort a state that can be read is held against.
const COMPARED: usize = 8;

/// What is stored of a pipeline, and what is wrong with it.
#[derive(Debug)]
pub struct Inspection {
    /// The pipeline.
    pub pipeline: PipelineName,
    /// Its state as it is stored.
    pub state: ExaminedState,
    /// Its lease as it is stored.
    pub lease: ExaminedLease,
    /// The document of the state, or what is left of it, in the current schema.
    pub document: Option<Value>,
    /// Copies of it, the newest state first.
    pub copies: Vec<KnownCopy>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What is worth knowing though nothing is wrong.
    pub notes: Vec<String>,
}

impl Inspection {
    /// How many findings are errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|found| found.is_error()).count()
    }

    /// Whether the document is certainly what was written.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        match &self.state {
            ExaminedState::Whole(_) => true,
            ExaminedState::Absent => false,
            ExaminedState::Damaged(damaged) => {
                damaged.salvaged.as_ref().is_some_and(|salvaged| salvaged.is_verified)
            }
        }
    }

    /// The process on this machine that a damaged lease still seems to name, and that lives.
    #[must_use]
    pub fn likely_holder(&self) -> Option<&Holder> {
        let ExaminedLease::Damaged(damaged) = &self.lease else { return None };
        let lease = damaged.salvaged.as_ref().filter(|lease| !lease.is_released())?;
        (liveness(&lease.holder) == Liveness::Alive).then_some(&lease.holder)
    }

    /// What to judge a document by that takes the place of the stored one.
    #[must_use]
    pub fn context(&self, now: DateTime<Utc>) -> Context<'_> {
        Context { copies: &self.copies, ..Context::alone(&self.pipeline, now) }
    }
}

/// Looks at everything that is stored of a pipeline.
///
/// # Errors
/// `Unsupported` when a newer oxide_flow wrote it, `Configuration` when its key is not configured;
/// otherwise as the store fails. Damage is no error.
pub fn inspect(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
) -> Result<Inspection> {
    // In this order: a worker that saves meanwhile makes the state newer than its copies, and the
    // lease newer than the state, and both are as they should be.
    let mut copies = copies_of(store, pipeline, COMPARED)?;
    let state = store.examine_state(pipeline)?;
    let lease = store.examine_lease(pipeline)?;
    let known = match &lease {
        ExaminedLease::Whole(lease) => Some(&lease.value),
        ExaminedLease::Absent | ExaminedLease::Damaged(_) => None,
    };
    let mut findings = Vec::new();
    let document = match &state {
        ExaminedState::Absent => {
            let newest = copies.first().map(of_missing);
            if let Some(missing) = newest
                && may_be_lost(store, known)?
            {
                findings.push(missing);
                copies = copies_of(store, pipeline, usize::MAX)?;
            }
            None
        }
        ExaminedState::Whole(record) => Some(document_of(&record.state.value)?),
        ExaminedState::Damaged(damaged) => {
            copies = copies_of(store, pipeline, usize::MAX)?;
            damaged.salvaged.as_ref().map(|salvaged| salvaged.document.clone())
        }
    };
    let now = clock.now();
    let context = Context { pipeline, now, lease: known, copies: &copies };
    if let ExaminedState::Damaged(damaged) = &state {
        findings.extend(of_record(damaged));
    }
    if let Some(document) = &document {
        findings.extend(validate(document, &context));
    }
    if let (ExaminedState::Damaged(damaged), true) = (&state, findings.is_empty()) {
        // Such as a field that is there twice.
        let cause = chain(&damaged.error);
        findings.push(
            Finding::of_record(Rule::InvalidStructure, cause, "a pipeline state")
                .mended_by(Repair::Rewrite),
        );
    }
    if let ExaminedLease::Damaged(damaged) = &lease {
        findings.push(
            Finding::of_record(Rule::LeaseDamaged, chain(&damaged.error), "a lease")
                .mended_by(Repair::ReplaceLease),
        );
    }
    let notes = notes(&state, &lease, clock);
    Ok(Inspection { pipeline: pipeline.clone(), state, lease, document, copies, findings, notes })
}

/// A state as a document.
///
/// # Errors
/// `Internal` when it cannot be written as JSON.
pub(super) fn document_of(state: &PipelineState) -> Result<Value> {
    serde_json::to_value(state).map_err(|error| {
        let message = format!("cannot write the state of `{}` as JSON", state.pipeline_id);
        Error::new(ErrorKind::Internal, message).because(error)
    })
}

/// A state that is lost, which this is the newest copy of.
fn of_missing(newest: &KnownCopy) -> Finding {
    let expected = format!("a record; {}", dated(newest));
    Finding::of_record(Rule::RecordMissing, "nothing", expected)
}

/// What is wrong with the record, apart from what is in it.
fn of_record(damaged: &DamagedState) -> Option<Finding> {
    let cause = chain(&damaged.error);
    let (rule, found, expected) = match damaged.damage.as_ref()? {
        Damage::Unreadable => (Rule::RecordUnreadable, cause, "a record"),
        Damage::Truncated => (Rule::RecordTruncated, cause, "a whole record"),
        Damage::Body => (Rule::RecordChecksum, cause, "the bytes that were written"),
        Damage::AnotherKey(key) => {
            (Rule::RecordOfAnotherKey, shown(&Value::from(key.as_str())), "the key it stands under")
        }
        Damage::Envelope => {
            let found =
                Finding::of_record(Rule::RecordEnvelope, cause, "the bytes that were written");
            return Some(found.mended_by(Repair::Rewrite));
        }
    };
    Some(Finding::of_record(rule, found, expected))
}

fn notes(state: &ExaminedState, lease: &ExaminedLease, clock: &dyn Clock) -> Vec<String> {
    let running =
        state.whole().is_some_and(|record| record.state.value.status == PipelineStatus::Running);
    let worker = match lease {
        ExaminedLease::Whole(lease) => Worker::of(lease.value.clone(), clock.now()),
        ExaminedLease::Absent | ExaminedLease::Damaged(_) => return Vec::new(),
    };
    let id = &worker.lease.holder.worker_id;
    match worker.status {
        WorkerStatus::Dead | WorkerStatus::Released if running => {
            vec!["nobody runs it: the run was interrupted, and the next one resumes it".to_owned()]
        }
        WorkerStatus::Dead => vec![format!("its lease names worker `{id}`, which is gone")],
        WorkerStatus::Released => Vec::new(),
        WorkerStatus::Active | WorkerStatus::Stopping | WorkerStatus::Overdue => {
            vec![format!("worker `{id}` is on it, and may save it again at any time")]
        }
    }
}
