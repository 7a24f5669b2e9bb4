//! The lease of a pipeline: who runs it, until when, and what others ask of that worker.
//!
//! One record per pipeline, changed only by compare-and-swap. The epoch grows with every
//! acquisition and never goes back, also over release: the record stays, marked released.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Destination, Extra, Moved, PipelineName};
use crate::metrics::Figures;

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
    /// What the holder measured, as of its last renewal; absent before the first.
    #[serde(default, deserialize_with = "readable", skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Figures>,
    /// A lock that a person put on the pipeline; it outlives the command that put it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<ManualLock>,
    /// Where the pipeline went, when it lives in another store: nobody acquires this lease then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A person's lock on a pipeline, for maintenance. It belongs to no process, so no process's
/// death ends it: it ends by `state unlock`, or when its time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualLock {
    /// Who put it there: user and host.
    pub by: String,
    /// Why, in the person's words.
    pub reason: String,
    /// When it was put there.
    pub locked_at: DateTime<Utc>,
    /// When it ends by itself, by the wall clock: nothing renews it that could be waited for.
    pub expires_at: DateTime<Utc>,
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
    /// Where to, for those that move a pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// How it went, for those that take their time; absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<RequestOutcome>,
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestOutcome {
    /// It is done.
    Done,
    /// It cannot be done, and why.
    Failed(String),
}

/// What can be asked of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// Checkpoint, end the step gracefully, release.
    Stop,
    /// Forget the records that are kept in memory; acknowledged when that is done.
    ClearCache,
    /// Write to another store as well, from the next checkpoint on.
    Mirror,
    /// Leave this store for the one that is written to as well.
    CutOver,
    /// Something that a newer oxide_flow can do.
    #[serde(other)]
    Unknown,
}

impl Lease {
    /// A lease as it is acquired at this moment, with nothing that was said of the pipeline before.
    #[must_use]
    pub fn new(
        pipeline_id: PipelineName,
        holder: Holder,
        epoch: u64,
        ttl: Duration,
        purpose: &str,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            pipeline_id,
            holder,
            epoch,
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            purpose: purpose.to_owned(),
            acquired_at: now,
            renewed_at: now,
            released_at: None,
            requests: Vec::new(),
            metrics: None,
            lock: None,
            moved: None,
            extra: Extra::new(),
        }
    }

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

    /// The lock that a person has on the pipeline at `now`.
    #[must_use]
    pub fn lock_at(&self, now: DateTime<Utc>) -> Option<&ManualLock> {
        self.lock.as_ref().filter(|lock| now < lock.expires_at)
    }

    /// Whether the lease has run out by the wall clock. Good for display and for deciding whether
    /// to look closer, never for taking over: clocks of two hosts may differ by minutes.
    #[must_use]
    pub fn looks_expired(&self, now: DateTime<Utc>) -> bool {
        (now - self.renewed_at).to_std().is_ok_and(|age| age > self.ttl())
    }

    /// Whether its time can be that of a live holder: within the time to live of `now`, either way.
    /// One further ahead says nothing of its age, since the holder's clock is another one.
    #[must_use]
    pub fn looks_fresh(&self, now: DateTime<Utc>) -> bool {
        (now - self.renewed_at).abs().to_std().is_ok_and(|apart| apart <= self.ttl())
    }
}

/// Figures in the form of another version are as good as none, and no reason to call the lease of
/// a live worker damaged.
fn readable<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Figures>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(metrics: &str) -> serde_json::Result<Lease> {
        serde_json::from_str(&format!(
            r#"{{"pipeline_id":"p","worker_id":"w","host":"h","boot_id":"b","pid_namespace":"n",
            "pid":1,"pid_start_time":1,"epoch":1,"ttl_ms":1000,"purpose":"run",
            "acquired_at":"2026-01-01T00:00:00Z","renewed_at":"2026-01-01T00:00:00Z"{metrics}}}"#
        ))
    }

    #[test]
    fn figures_that_cannot_be_read_do_not_damage_the_lease() {
        assert_eq!(lease("").unwrap().metrics, None);
        assert_eq!(lease(r#","metrics":{"logical":"of another version"}"#).unwrap().metrics, None);
        let known = lease(r#","metrics":{"measured_ms":5,"new":1}"#).unwrap();
        assert_eq!(known.metrics.unwrap().measured_ms, 5);
    }

    #[test]
    fn a_lease_of_a_clock_that_is_far_ahead_looks_neither_expired_nor_fresh() {
        let lease = lease("").unwrap();
        let looks = |milliseconds| {
            let now = lease.renewed_at + chrono::TimeDelta::milliseconds(milliseconds);
            (lease.looks_expired(now), lease.looks_fresh(now))
        };
        assert_eq!([looks(0), looks(1000), looks(-1000)], [(false, true); 3]);
        assert_eq!(looks(1001), (true, false));
        assert_eq!(looks(-1001), (false, false));
    }

    #[test]
    fn a_lock_ends_when_its_time_is_over() {
        let lock = r#","lock":{"by":"ann@h","reason":"r","locked_at":"2026-01-01T00:00:00Z",
            "expires_at":"2026-01-01T01:00:00Z"}"#;
        let lease = lease(lock).unwrap();
        let at = |minutes| lease.acquired_at + chrono::TimeDelta::minutes(minutes);
        assert!(lease.lock_at(at(59)).is_some());
        assert!(lease.lock_at(at(60)).is_none());
    }
}
