//! What went wrong in a run, as it is kept in the state.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Extra;

/// One failure of a step or of the pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorRecord {
    /// A sortable, unique id.
    pub error_id: String,
    /// The step that failed; absent for errors of the pipeline as a whole.
    #[serde(default)]
    pub step_id: Option<String>,
    /// What kind of failure it was.
    pub error_type: ErrorType,
    /// What happened, for people.
    pub message: String,
    /// Where it happened: the attempt, the exit status, the last lines of output.
    #[serde(default)]
    pub context: String,
    /// When it happened.
    pub timestamp: DateTime<Utc>,
    /// Whether another attempt was allowed.
    pub retryable: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What kind of failure an [`ErrorRecord`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    /// The pipeline or its configuration is wrong: the command cannot be started.
    Configuration,
    /// The step ran and failed.
    Processing,
    /// The step ran longer than its `timeout_seconds`.
    Timeout,
    /// The step was ended by a signal it was not sent by the runner.
    Resource,
    /// The worker that ran the step died.
    Interrupted,
    /// Nothing is known of the cause.
    #[serde(other)]
    Unknown,
}
