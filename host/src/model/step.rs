//! The state of one step.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Extra;

/// How far a step is. A step's counters add up over its attempts in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepState {
    /// The id, unique within the pipeline; also the key in `step_states`.
    pub step_id: String,
    /// The name for people.
    pub step_name: String,
    /// Where it stands.
    pub status: StepStatus,
    /// The cursor that resume starts after; empty before the first report.
    pub last_processed_id: String,
    /// Batches finished.
    pub batch_number: u64,
    /// Records processed.
    pub records_processed: u64,
    /// Records that failed.
    pub records_failed: u64,
    /// Bytes processed.
    pub data_size_processed: u64,
    /// How many records the step expects in all, if it said so.
    #[serde(default)]
    pub records_total: Option<u64>,
    /// When it was first started in this run.
    #[serde(default)]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended; absent while it may still run.
    #[serde(default)]
    pub finished_at: Option<DateTime<Utc>>,
    /// Milliseconds it ran, over all attempts, without the time between them.
    pub processing_time_ms: u64,
    /// Attempts after the first.
    pub retry_count: u64,
    /// Attempts that failed.
    pub error_count: u64,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl StepState {
    /// A step that has not run.
    #[must_use]
    pub fn pending(id: &str, name: &str) -> Self {
        Self {
            step_id: id.to_owned(),
            step_name: name.to_owned(),
            status: StepStatus::Pending,
            last_processed_id: String::new(),
            batch_number: 0,
            records_processed: 0,
            records_failed: 0,
            data_size_processed: 0,
            records_total: None,
            started_at: None,
            finished_at: None,
            processing_time_ms: 0,
            retry_count: 0,
            error_count: 0,
            extra: Extra::new(),
        }
    }
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Not started in this run.
    Pending,
    /// Started; after a crash it is found like this and runs again from its cursor.
    Running,
    /// Ended well; not run again in this run.
    Completed,
    /// Ended badly.
    Failed,
}

impl StepStatus {
    /// The word that is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}
