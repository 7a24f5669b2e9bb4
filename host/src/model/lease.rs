//! The lease of a pipeline: who runs it, until when, and what others ask of that worker.
//!
//! One record per pipeline, changed only by compare-and-swap. The epoch grows with every
//! acquisition and never goes back, also over release: the record stays, marked released.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Extra, PipelineName};

/// Who a worker is: enough to tell on its own machine whether it still lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Unique among all workers ever.
    pub worker_id: String,
    /// Host name, for people.
    pub host: String,
    /// Names one boot of one kernel.
    pub boot_id: String,
    /// Names the process-id namespace: containers on one kernel share the boot id and not this.
    pub pid_namespace: String,
    /// Process id.
    pub pid: u32,
    /// When the process started, in clock ticks since boot: with the pid it names one process.
    pub pid_start_time: u64,
}

/// The record under `lease/<pipeline>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// The pipeline it is about.
    pub pipeline_id: PipelineName,
    /// Who holds it, or held it last.
    #[serde(flatten)]
    pub holder: Holder,
    /// Counts the acquisitions.
    pub epoch: u64,
    /// How long the lease lasts after a renewal, in milliseconds.
    pub ttl_ms: u64,
    /// What the holder does with it: `run`, or the name of an administrative command.
    pub purpose: String,
    /// When it was acquired.
    pub acquired_at: DateTime<Utc>,
    /// When it was last renewed.
    pub renewed_at: DateTime<Utc>,
    /// When it was released; absent while it is held.
    #[serde(default)]
    pub released_at: Option<DateTime<Utc>>,
    /// What others ask of the holder, oldest first; acknowledged ones stay until release.
    #[serde(default)]
    pub requests: Vec<Request>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Something another process asks of the holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Unique.
    pub id: String,
    /// What is asked.
    pub kind: RequestKind,
    /// Who asks: user and host.
    pub from: String,
    /// When it was asked.
    pub requested_at: DateTime<Utc>,
    /// When the holder saw it and began to obey.
    #[serde(default)]
    pub acknowledged_at: Option<DateTime<Utc>>,
}

/// What can be asked of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// Checkpoint, end the step gracefully, release.
    Stop,
}

impl Lease {
    /// How long the lease lasts after a renewal.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    /// Whether the lease was given back.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.released_at.is_some()
    }

    /// Whether the lease has run out by the wall clock. Good for display and for deciding whether
    /// to look closer, never for taking over: clocks of two hosts may differ by minutes.
    #[must_use]
    pub fn looks_expired(&self, now: DateTime<Utc>) -> bool {
        (now - self.renewed_at).to_std().is_ok_and(|age| age > self.ttl())
    }
}
