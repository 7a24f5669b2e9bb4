//! A copy of a state, kept apart from it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Extra, PipelineState};

/// The record under `backup/<pipeline>/<backup>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// Unique within the pipeline, sortable by time.
    pub backup_id: String,
    /// When it was taken.
    pub created_at: DateTime<Utc>,
    /// Why it was taken, such as `before import`.
    pub reason: String,
    /// The state as it was.
    pub state: PipelineState,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
