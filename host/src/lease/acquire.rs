//! Acquiring a lease: at once when it is free or its holder is provably dead, otherwise by
//! watching it until it is released or has not been renewed for its whole time to live.
//!
//! A pipeline without a lease record is free, unless its state says that a worker runs it: then the
//! record is lost, and the worker may not know yet. Its state is watched in the place of the lease.

use std::time::Duration;

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{Expected, Version};

use super::identity::{Liveness, liveness, liveness_by_id, parts_of_id, person};
use super::moved::{check_may_begin, check_not_moved};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Extra, Holder, Lease, ManualLock, PipelineName, PipelineState, PipelineStatus};
use crate::store::{OPERATION_TIMEOUT, StateStore, Versioned};

/// How often a watched lease is looked at, at the most and at the least.
const SHORTEST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// The purpose of those who move pipelines between stores, and are not kept out by that.
pub const MIGRATE: &str = "migrate";

/// What to acquire, and how patiently.
pub struct Acquire<'a> {
    /// The pipeline.
    pub pipeline: &'a PipelineName,
    /// Who wants it.
    pub holder: &'a Holder,
    /// What for; shown to others.
    pub purpose: &'a str,
    /// How long the lease lasts after each renewal.
    pub ttl: Duration,
    /// How long to wait for a live holder to release it; zero fails at once.
    pub wait: Duration,
    /// The epoch is made greater than this, which is that of the state: it never goes back, also
    /// when the lease record was lost.
    pub epoch_floor: u64,
    /// Told once when waiting begins, if there is to be any: the lease waited for.
    pub on_wait: &'a mut dyn FnMut(&Lease),
}

/// A lease that is now held.
#[derive(Debug)]
pub struct Acquired {
    /// The lease and its version.
    pub lease: Versioned<Lease>,
    /// Monotonic time before the attempt that wrote it: others may have watched it since then.
    pub attempted: Duration,
    /// Whom it was taken from, when it was not free.
    pub takeover: Option<Takeover>,
}

/// Whom a lease was taken from, and why that was allowed.
#[derive(Clone, Debug)]
pub struct Takeover {
    /// The lease as it was.
    pub previous: Lease,
    /// Whether its process is known to be dead; otherwise its time ran out.
    pub process_is_dead: bool,
}

/// Acquires a lease.
///
/// # Errors
/// `LeaseHeld`, naming the holder, when a live worker holds it and does not release it in time, or
/// when a person has locked the pipeline; otherwise as the store fails.
pub fn acquire(
    store: &StateStore,
    clock: &dyn Clock,
    request: &mut Acquire<'_>,
) -> Result<Acquired> {
    let started = clock.monotonic();
    let migrates = request.purpose == MIGRATE;
    let mut watch: Option<Watch> = None;
    let mut told = false;
    loop {
        let current = store.load_lease(request.pipeline)?;
        if let Some(lease) = current.as_ref().filter(|_| !migrates) {
            check_not_moved(&lease.value)?;
        }
        let lock = current.as_ref().and_then(|lease| locked_out(&lease.value, request, clock));
        let unleased = match &current {
            None if !migrates => running_without_lease(store, request)?,
            _ => None,
        };
        // Only a run waits for one that may be elsewhere: its steps would run beside the other's. What
        // a command writes fences the worker.
        let unleased = unleased.filter(|lease| {
            let worker = &lease.value.holder.worker_id;
            request.purpose == "run" || liveness_by_id(worker) == Liveness::Alive
        });
        let takeover = match current.as_ref().or(unleased.as_ref()) {
            None => None,
            Some(lease) if lock.is_some() => {
                if !request.wait.is_zero() && !std::mem::replace(&mut told, true) {
                    (request.on_wait)(&lease.value);
                }
                if clock.monotonic() - started >= request.wait {
                    return Err(locked(&lease.value, lock));
                }
                std::thread::sleep(LONGEST_LOOK.min(request.wait));
                continue;
            }
            Some(lease) if lease.value.is_released() => None,
            Some(lease) => {
                let now = clock.monotonic();
                let watch = watch.get_or_insert_with(|| Watch::begin(lease, now));
                let watched = watch.observe(lease, now);
                let alive = match &unleased {
                    Some(unleased) => liveness_by_id(&unleased.value.holder.worker_id),
                    None => liveness(&lease.value.holder),
                };
                let dead = alive == Liveness::Dead;
                // More than the time to live: the holder gives up earlier, by its own clock.
                if !dead && watched <= lease.value.ttl() {
                    // A lease whose time says that it has run out, or that the clocks disagree, is
                    // watched also without being asked to wait, until it is seen to be renewed:
                    // most likely it can be had soon.
                    let doubtful = !watch.is_renewed
                        && match unleased {
                            Some(_) => alive != Liveness::Alive,
                            None => !lease.value.looks_fresh(clock.now()),
                        };
                    // Its time counts from the first look, which may have taken a while.
                    let goes_on = doubtful && now - watch.begun < lease.value.ttl() + LONGEST_LOOK;
                    // Also when the first look took all the time that there was for it.
                    let may_wait = goes_on || !request.wait.is_zero();
                    if may_wait && !std::mem::replace(&mut told, true) {
                        (request.on_wait)(&lease.value);
                    }
                    if !goes_on && now - started >= request.wait {
                        return Err(match &unleased {
                            Some(unleased) => held_without_lease(&unleased.value),
                            None => held(&lease.value, request.purpose),
                        });
                    }
                    let look = (lease.value.ttl() / 10).clamp(SHORTEST_LOOK, LONGEST_LOOK);
                    std::thread::sleep(look);
                    continue;
                }
                Some(Takeover { previous: lease.value.clone(), process_is_dead: dead })
            }
        };
        let attempted = clock.monotonic();
        let lease = new_lease(request, current.as_ref(), clock);
        let expected = Expected::from(current.as_ref().map(|lease| lease.version));
        match store.save_lease(&lease, &expected, OPERATION_TIMEOUT) {
            Ok(version) => {
                let lease = Versioned { value: lease, version };
                let acquired = Acquired { lease, attempted, takeover };
                if current.is_none() && !migrates {
                    begin(store, &acquired.lease)?;
                }
                return Ok(acquired);
            }
            // Somebody else was faster; look again.
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
}

/// The lease that the worker must have had that runs a pipeline by what its state says; `None` when
/// no worker does. It is as old as the state, and lasts as long as the one that is asked for.
fn running_without_lease(
    store: &StateStore,
    request: &Acquire<'_>,
) -> Result<Option<Versioned<Lease>>> {
    let stored = match store.load_state(request.pipeline) {
        // It says nothing of a worker.
        Err(error) if error.kind() == ErrorKind::Corrupt => None,
        stored => stored?,
    };
    let Some(Versioned { value: state, version }) = stored else { return Ok(None) };
    let Some(worker_id) = state.worker_id.filter(|_| state.status == PipelineStatus::Running)
    else {
        return Ok(None);
    };
    let (host, pid) = parts_of_id(&worker_id).unwrap_or(("unknown", 0));
    let holder = Holder {
        host: host.to_owned(),
        boot_id: String::new(),
        pid_namespace: String::new(),
        pid,
        pid_start_time: 0,
        worker_id,
    };
    let PipelineState { pipeline_id, epoch, started_at, last_heartbeat, .. } = state;
    let lease = Lease::new(pipeline_id, holder, epoch, request.ttl, "run", started_at);
    let lease = Lease { renewed_at: last_heartbeat, ..lease };
    Ok(Some(Versioned { value: lease, version }))
}

/// Looks whether a pipeline may begin here, and takes its first lease record back if not: with it
/// the pipeline would look as if it had begun.
fn begin(store: &StateStore, lease: &Versioned<Lease>) -> Result<()> {
    let pipeline = &lease.value.pipeline_id;
    let Err(refused) = check_may_begin(store, pipeline) else { return Ok(()) };
    store.delete_lease(pipeline, &Expected::Version(lease.version))?;
    Err(refused)
}

/// What was seen of a lease since it is watched.
struct Watch {
    /// When it was seen first.
    begun: Duration,
    version: Version,
    /// Since when this version has been seen.
    since: Duration,
    epoch: u64,
    renewed_at: DateTime<Utc>,
    /// Whether its holder has renewed it meanwhile. A request of somebody else changes it too.
    is_renewed: bool,
}

impl Watch {
    fn begin(lease: &Versioned<Lease>, now: Duration) -> Self {
        let Lease { epoch, renewed_at, .. } = lease.value;
        let version = lease.version;
        Self { begun: now, version, since: now, epoch, renewed_at, is_renewed: false }
    }

    /// Notes what is seen now, and says for how long it has been seen.
    fn observe(&mut self, lease: &Versioned<Lease>, now: Duration) -> Duration {
        if self.version != lease.version {
            let Lease { epoch, renewed_at, .. } = lease.value;
            (self.version, self.since) = (lease.version, now);
            self.is_renewed |= (self.epoch, self.renewed_at) != (epoch, renewed_at);
        }
        now.saturating_sub(self.since)
    }
}

fn new_lease(
    request: &Acquire<'_>,
    current: Option<&Versioned<Lease>>,
    clock: &dyn Clock,
) -> Lease {
    let previous_epoch = current.map_or(0, |lease| lease.value.epoch);
    let now = clock.now();
    let epoch = previous_epoch.max(request.epoch_floor).saturating_add(1);
    let (pipeline, holder) = (request.pipeline.clone(), request.holder.clone());
    Lease {
        // Maintenance under one's own lock does not end the lock.
        lock: current.and_then(|lease| lease.value.lock_at(now).cloned()),
        moved: current.and_then(|lease| lease.value.moved.clone()),
        extra: current.map_or_else(Extra::new, |lease| lease.value.extra.clone()),
        ..Lease::new(pipeline, holder, epoch, request.ttl, request.purpose, now)
    }
}

/// The lock that keeps this request out. The person who put it there may do maintenance under it;
/// runs are what it keeps out, whoever starts them.
fn locked_out<'a>(
    lease: &'a Lease,
    request: &Acquire<'_>,
    clock: &dyn Clock,
) -> Option<&'a ManualLock> {
    let lock = lease.lock_at(clock.now())?;
    (request.purpose == "run" || lock.by != person()).then_some(lock)
}

fn locked(lease: &Lease, lock: Option<&ManualLock>) -> Error {
    let pipeline = &lease.pipeline_id;
    let by = lock.map_or_else(String::new, |lock| {
        let until = lock.expires_at.format("%Y-%m-%d %H:%M:%S UTC");
        format!(" by {} until {until}: {}", lock.by, lock.reason)
    });
    Error::new(ErrorKind::LeaseHeld, format!("pipeline `{pipeline}` is locked{by}")).hint(format!(
        "wait until it is unlocked, or unlock it with `oxide_flow state unlock {pipeline}`"
    ))
}

fn held_without_lease(lease: &Lease) -> Error {
    let (pipeline, holder) = (&lease.pipeline_id, &lease.holder);
    let message = format!(
        "pipeline `{pipeline}` is run by worker `{}` (pid {} on {}), as its state says, and its lease \
         is lost",
        holder.worker_id, holder.pid, holder.host,
    );
    let ttl = humantime::format_duration(lease.ttl() + LONGEST_LOOK);
    Error::new(ErrorKind::LeaseHeld, message).hint(format!(
        "the worker stops when it finds its lease gone; try again when its process has ended, or wait \
         for it with `--wait {ttl}`"
    ))
}

fn held(lease: &Lease, purpose: &str) -> Error {
    let (pipeline, holder) = (&lease.pipeline_id, &lease.holder);
    let message = format!(
        "pipeline `{pipeline}` is held by worker `{}` (pid {} on {}, {}, since {})",
        holder.worker_id,
        holder.pid,
        holder.host,
        lease.purpose,
        lease.acquired_at.format("%Y-%m-%d %H:%M:%S UTC"),
    );
    let stop = format!("`oxide_flow worker stop {}`", holder.worker_id);
    let hint = if purpose == "run" {
        format!("wait for it with `--wait 30s`, or stop it with {stop}")
    } else {
        format!("try again when it is done, or stop it with {stop}")
    };
    Error::new(ErrorKind::LeaseHeld, message).hint(hint)
}
