//! Locks that a person puts on a pipeline for maintenance.
//!
//! A lock is a field of the lease record beside its holder, not a holder itself: no process
//! stands behind it, so none can die and give it away. It is put there under the lease, so no
//! worker is at work then, and everybody who acquires the lease looks at it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::acquire::{Acquire, acquire};
use super::identity::{person, this_process};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Lease, ManualLock, PipelineName};
use crate::store::StateStore;

/// How long the lease lasts that is taken to put the lock there.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// Locks a pipeline for this person, and returns the lock. It lasts `ttl` from when it is there, however
/// long that was waited for.
///
/// # Errors
/// `LeaseHeld` when a live worker holds the pipeline and does not release it within `wait`, or
/// when another person has locked it; `Usage` when `ttl` reaches past the end of the calendar;
/// otherwise as the store fails.
pub fn lock(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
    reason: &str,
    ttl: Duration,
    wait: Duration,
) -> Result<ManualLock> {
    let by = person();
    let lock_from = |locked_at: DateTime<Utc>| {
        let expires_at = locked_at.checked_add_signed(TimeDelta::from_std(ttl).ok()?)?;
        Some(ManualLock { by: by.clone(), reason: reason.to_owned(), locked_at, expires_at })
    };
    if lock_from(clock.now()).is_none() {
        return Err(Error::new(ErrorKind::Usage, "the lock would last too long"));
    }
    let epoch_floor = match store.load_state(pipeline) {
        Ok(state) => state.map_or(0, |state| state.value.epoch),
        // A damaged state is what maintenance is for; the lease record has the epoch too.
        Err(error) if error.kind() == ErrorKind::Corrupt => 0,
        Err(error) => return Err(error),
    };
    let acquired = acquire(
        store,
        clock,
        &mut Acquire {
            pipeline,
            holder: &this_process()?,
            purpose: "lock",
            ttl: LEASE_TTL,
            wait,
            epoch_floor,
            on_wait: &mut |_| {},
        },
    )?;
    let mine = acquired.lease.value.epoch;
    let mut lock = None;
    // The lock comes and the lease goes in one write: there is no moment between them.
    store.update_lease(pipeline, |lease| {
        let now = clock.now();
        lock = lock_from(now).filter(|_| lease.epoch == mine && !lease.is_released());
        if lock.is_some() {
            lease.lock.clone_from(&lock);
            lease.released_at = Some(now);
        }
        lock.is_some()
    })?;
    lock.ok_or_else(|| {
        let message = format!("the lease of `{pipeline}` was taken over while it was locked");
        Error::new(ErrorKind::Fenced, message).hint("lock it again")
    })
}

/// Takes the lock off a pipeline if `may` agrees, and returns it; `None` when it is not locked.
///
/// # Errors
/// As `may`; otherwise as the store fails.
pub fn unlock(
    store: &StateStore,
    clock: &dyn Clock,
    pipeline: &PipelineName,
    may: impl FnOnce(&ManualLock) -> Result<()>,
) -> Result<Option<ManualLock>> {
    let locked = |lease: &Lease| lease.lock_at(clock.now()).cloned();
    let Some(lock) = store.load_lease(pipeline)?.and_then(|lease| locked(&lease.value)) else {
        return Ok(None);
    };
    may(&lock)?;
    let mut removed = false;
    store.update_lease(pipeline, |lease| {
        // Only the lock that was agreed on; another one may be there by now.
        removed = lease.lock.as_ref() == Some(&lock);
        if removed {
            lease.lock = None;
        }
        removed
    })?;
    Ok(removed.then_some(lock))
}
