//! Workers as others see them: listing, finding, asking to stop, releasing what the dead hold.

use chrono::{DateTime, Utc};

use super::identity::{Liveness, liveness};
use super::requests::{Held, add, change_held, request};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Lease, ManualLock, PipelineName, RequestKind};
use crate::store::StateStore;

/// A worker: the holder of a lease.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its lease.
    pub lease: Lease,
    /// What can be said of its process from here.
    pub liveness: Liveness,
    /// What follows from lease and process.
    pub status: WorkerStatus,
}

/// How a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerStatus {
    /// It holds its lease.
    Active,
    /// It was asked to stop and has not released yet.
    Stopping,
    /// It has not renewed in time, though its process is not known to be dead.
    Overdue,
    /// Its process is gone, and the lease still names it.
    Dead,
    /// It gave its lease back.
    Released,
}

impl WorkerStatus {
    /// The word that is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Stopping => "stopping",
            Self::Overdue => "overdue",
            Self::Dead => "dead",
            Self::Released => "released",
        }
    }

    /// Whether a worker may be at work under the lease: it has not given it back, and is not known
    /// to be dead.
    #[must_use]
    pub fn may_live(self) -> bool {
        !matches!(self, Self::Dead | Self::Released)
    }
}

impl Worker {
    /// The worker behind a lease, as seen at `now`.
    #[must_use]
    pub fn of(lease: Lease, now: DateTime<Utc>) -> Self {
        let liveness = liveness(&lease.holder);
        let status = if lease.is_released() {
            WorkerStatus::Released
        } else if liveness == Liveness::Dead {
            WorkerStatus::Dead
        } else if lease.looks_expired(now) {
            WorkerStatus::Overdue
        } else if lease.requests.iter().any(|request| request.kind == RequestKind::Stop) {
            WorkerStatus::Stopping
        } else {
            WorkerStatus::Active
        };
        Self { lease, liveness, status }
    }

    /// The lock that a person has on its pipeline at `now`.
    #[must_use]
    pub fn lock_at(&self, now: DateTime<Utc>) -> Option<&ManualLock> {
        self.lease.lock_at(now)
    }

    /// Whether the worker still holds its lease.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.status != WorkerStatus::Released
    }
}

/// What the leases say, by pipeline name.
#[derive(Debug, Default)]
pub struct Workers {
    /// Per pipeline the worker that holds its lease, or held it last.
    pub workers: Vec<Worker>,
    /// The pipelines whose lease cannot be read.
    pub unreadable: Vec<(PipelineName, Error)>,
}

/// Looks at all leases.
///
/// # Errors
/// As the store fails to list.
pub fn workers(store: &StateStore, clock: &dyn Clock) -> Result<Workers> {
    let mut found = Workers::default();
    for pipeline in store.leased_pipelines()? {
        match store.load_lease(&pipeline) {
            Ok(lease) => {
                found.workers.extend(lease.map(|lease| Worker::of(lease.value, clock.now())));
            }
            Err(error) => found.unreadable.push((pipeline, error)),
        }
    }
    Ok(found)
}

/// Finds a worker by its id.
///
/// # Errors
/// `NotFound` when no lease names it.
pub fn find_worker(store: &StateStore, clock: &dyn Clock, worker_id: &str) -> Result<Worker> {
    let Workers { workers, unreadable } = workers(store, clock)?;
    let found = workers.into_iter().find(|worker| worker.lease.holder.worker_id == worker_id);
    found.ok_or_else(|| {
        let mut message = format!("no lease names a worker `{}`", worker_id.escape_default());
        if !unreadable.is_empty() {
            message.push_str(&format!(" ({} leases cannot be read)", unreadable.len()));
        }
        Error::new(ErrorKind::NotFound, message).hint("list workers with `oxide_flow worker list`")
    })
}

/// What came of asking a worker to stop.
#[derive(Clone, Debug)]
pub enum StopOutcome {
    /// The request is in its lease; the worker acts on it at its next renewal.
    Requested(Lease),
    /// Its process is gone; its lease was released.
    ReleasedDead(Lease),
    /// It has released its lease already.
    AlreadyReleased,
}

/// Asks the worker that holds this lease to stop, or releases the lease when its process is gone.
///
/// # Errors
/// `NotFound` when another worker holds the pipeline by now; otherwise as the store fails.
pub fn request_stop(
    store: &StateStore,
    clock: &dyn Clock,
    worker: &Worker,
    from: &str,
) -> Result<StopOutcome> {
    let mine = &worker.lease;
    let dead = worker.liveness == Liveness::Dead;
    let stop = request(RequestKind::Stop, from, clock);
    let held = change_held(store, mine, |lease| {
        if dead {
            lease.released_at = Some(clock.now());
            return true;
        }
        add(&mut lease.requests, &stop).is_none()
    })?;
    match held {
        Held::Yes(lease) if dead => Ok(StopOutcome::ReleasedDead(*lease)),
        Held::Yes(lease) => Ok(StopOutcome::Requested(*lease)),
        Held::Released => Ok(StopOutcome::AlreadyReleased),
        Held::Replaced => {
            let (worker, pipeline) = (&mine.holder.worker_id, &mine.pipeline_id);
            let message = format!("worker `{worker}` no longer holds pipeline `{pipeline}`");
            Err(Error::new(ErrorKind::NotFound, message))
        }
    }
}

/// Marks the lease of a pipeline released, whoever holds it, with the epoch raised so that the
/// holder is fenced. Returns the lease as it was; `None` when there was none to release.
///
/// # Errors
/// `Corrupt` when the record cannot be read: then nothing says who holds it, and it must be
/// replaced. Otherwise as the store fails.
pub fn force_release(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
) -> Result<Option<Lease>> {
    let mut previous = None;
    store.update_lease(pipeline, |lease| {
        previous = (!lease.is_released()).then(|| lease.clone());
        if previous.is_some() {
            lease.epoch = lease.epoch.saturating_add(1);
            lease.released_at = Some(clock.now());
        }
        previous.is_some()
    })?;
    Ok(previous)
}
