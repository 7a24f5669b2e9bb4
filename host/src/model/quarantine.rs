//! Damaged bytes, kept apart from what replaced them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Extra, PipelineName};

/// The record under `quarantine/<pipeline>/<id>`: what a damaged record held when it was replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Unique within the pipeline, sortable by time.
    pub quarantine_id: String,
    /// The pipeline the record was about.
    pub pipeline_id: PipelineName,
    /// The key that held the bytes.
    pub key: String,
    /// When they were put here.
    pub quarantined_at: DateTime<Utc>,
    /// Why they were replaced, such as `before repair`.
    pub reason: String,
    /// What was wrong with them.
    pub damage: String,
    /// The bytes, in Base64; absent when the backend did not hand them over.
    pub bytes: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
