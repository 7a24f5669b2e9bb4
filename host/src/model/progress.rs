//! What a step reports: how much it did since its last report, and where it is.

use serde::{Deserialize, Serialize};

/// One progress report: a JSON line on the descriptor in `OXIFLOW_PROGRESS_FD`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Progress {
    /// Records processed since the last report.
    pub records: u64,
    /// Records that failed since the last report; not part of `records`.
    #[serde(skip_serializing_if = "is_zero")]
    pub failed: u64,
    /// Bytes processed since the last report.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// The cursor that resume starts after; absent when it has not moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_id: Option<String>,
    /// The number of the batch just finished; counted by the runner when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// How many records the step expects in all, processed and failed together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// A line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Progress {
    /// Reads one line.
    ///
    /// # Errors
    /// When the line is no JSON object with these fields.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }

    /// Whether the report says that work was done, and not only a total or a message.
    #[must_use]
    pub fn counts_as_batch(&self) -> bool {
        self.records > 0 || self.failed > 0 || self.bytes > 0 || self.last_id.is_some()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
