//! What happened to the state of a pipeline, kept apart from it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Extra, PipelineName, PipelineState, PipelineStatus, StepStatus};

/// The record under `history/<pipeline>/<id>`: one for each run that ended and each
/// administrative change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// Unique within the pipeline; sorts by the order in which the records were written.
    pub history_id: String,
    /// The pipeline it is about.
    pub pipeline_id: PipelineName,
    /// What happened.
    pub kind: HistoryKind,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// Who did it: the worker for a run, user and host for a command.
    pub who: String,
    /// Why or how, for people.
    pub why: String,
    /// The run of the state after; absent when there is none.
    pub run_id: Option<String>,
    /// The status of the state after; absent when there is none.
    pub status: Option<PipelineStatus>,
    /// The epoch of the state after.
    pub epoch: u64,
    /// The version of the state after.
    pub version: u64,
    /// Records processed, over all steps.
    pub records_processed: u64,
    /// Records that failed, over all steps.
    pub records_failed: u64,
    /// Bytes processed, over all steps.
    pub data_size_processed: u64,
    /// Attempts after the first, over all steps.
    pub retry_count: u64,
    /// The steps in short, by id.
    pub steps: Vec<StepSummary>,
    /// The whole state after; absent when it was deleted or there was none.
    pub state: Option<PipelineState>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A step in a [`HistoryRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSummary {
    /// The step.
    pub step_id: String,
    /// Where it stood.
    pub status: StepStatus,
    /// Records processed.
    pub records_processed: u64,
    /// Records that failed.
    pub records_failed: u64,
    /// Milliseconds it ran.
    pub processing_time_ms: u64,
}

/// What a [`HistoryRecord`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryKind {
    /// A run ended: completed, failed or paused.
    Run,
    /// A run started over with `--fresh`.
    FreshStart,
    /// `state import`.
    Import,
    /// `state restore`.
    Restore,
    /// `state repair`.
    Repair,
    /// `state unlock`.
    Unlock,
    /// `state upgrade`.
    Upgrade,
    /// `state rollback`.
    Rollback,
    /// The state was deleted.
    Delete,
    /// Something that a newer oxide_flow does.
    #[serde(other)]
    Other,
}

impl HistoryKind {
    /// The word that is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::FreshStart => "fresh_start",
            Self::Import => "import",
            Self::Restore => "restore",
            Self::Repair => "repair",
            Self::Unlock => "unlock",
            Self::Upgrade => "upgrade",
            Self::Rollback => "rollback",
            Self::Delete => "delete",
            Self::Other => "other",
        }
    }
}

impl HistoryRecord {
    /// A record of something that left the pipeline in this state, or in none.
    #[must_use]
    pub fn new(
        history_id: String,
        pipeline: &PipelineName,
        kind: HistoryKind,
        at: DateTime<Utc>,
        (who, why): (&str, &str),
        state: Option<&PipelineState>,
    ) -> Self {
        let steps = state.map(|state| {
            let steps = state.step_states.values();
            let summarized = steps.map(|step| StepSummary {
                step_id: step.step_id.clone(),
                status: step.status,
                records_processed: step.records_processed,
                records_failed: step.records_failed,
                processing_time_ms: step.processing_time_ms,
            });
            summarized.collect()
        });
        let number = |field: fn(&PipelineState) -> u64| state.map_or(0, field);
        Self {
            history_id,
            pipeline_id: pipeline.clone(),
            kind,
            at,
            who: who.to_owned(),
            why: why.to_owned(),
            run_id: state.map(|state| state.run_id.clone()),
            status: state.map(|state| state.status),
            epoch: number(|state| state.epoch),
            version: number(|state| state.version),
            records_processed: number(|state| state.records_processed),
            records_failed: number(|state| state.records_failed),
            data_size_processed: number(|state| state.data_size_processed),
            retry_count: number(|state| state.retry_count),
            steps: steps.unwrap_or_default(),
            state: state.cloned(),
            extra: Extra::new(),
        }
    }

    /// Whether this is the state that the record was written for, unchanged since.
    #[must_use]
    pub fn is_of(&self, state: &PipelineState) -> bool {
        self.state.is_some() && (self.epoch, self.version) == (state.epoch, state.version)
    }
}
