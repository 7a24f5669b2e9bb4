//! Sealing every record again with the current key, after the keys have changed.
//!
//! A plan first, then each record for itself by compare-and-swap: killed at any instant, what was
//! done stays done and a second time finishes the rest.
//!
//! A worker expects its state and its lease to stay at the versions it wrote, so a record that
//! changed under it would stop it. Therefore a record is read *before* it is looked whether a
//! worker lives: a worker that comes later reads the state again under its lease before it relies
//! on it, and one that was there is seen.

use std::sync::Arc;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::Worker;
use crate::store::{Sealed, StateStore};

/// How often a record is read again because somebody wrote it in between.
const ATTEMPTS: u32 = 10;

/// What is to be done with the records of a store.
#[derive(Debug, Default)]
pub struct RekeyPlan {
    /// Keys of records that are sealed otherwise than new ones.
    pub stale: Vec<String>,
    /// How many records are sealed as new ones are.
    pub current: usize,
    /// Keys of records that a live worker relies on, with its id.
    pub held: Vec<(String, String)>,
    /// Keys of records that cannot be read, and why.
    pub failed: Vec<(String, Error)>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Rekeyed {
    /// How many records were sealed again.
    pub rewritten: usize,
    /// How many records needed nothing.
    pub current: usize,
    /// Records that a live worker relies on, with its id; left as they are.
    pub held: Vec<(String, String)>,
    /// Records that could not be read or written, and why.
    pub failed: Vec<(String, Error)>,
}

/// Looks at all records.
///
/// # Errors
/// `Configuration` when encryption is not configured; otherwise as the store fails to list.
pub fn plan_rekey(store: &StateStore, clock: &dyn Clock) -> Result<RekeyPlan> {
    if !store.is_encrypted() {
        return Err(Error::new(ErrorKind::Configuration, "no key is configured")
            .hint("name one under `state.encryption` in oxiflow.yaml"));
    }
    let mut plan = RekeyPlan::default();
    // Without the records themselves: they may be more than there is memory.
    let mut read = Vec::new();
    for key in store.all_keys()? {
        match store.load_sealed(&key) {
            Ok(Some(sealed)) => read.push((key, sealed.kind())),
            // Deleted since it was listed.
            Ok(None) => {}
            Err(error) => plan.failed.push((key, error)),
        }
    }
    // Only now: reading may have found the salt that is in use.
    for (key, seal) in read {
        if store.is_current(&seal)? {
            plan.current += 1;
        } else {
            match live_worker(store, clock, &key) {
                Ok(Some(worker)) => plan.held.push((key, worker)),
                Ok(None) => plan.stale.push(key),
                Err(error) => plan.failed.push((key, error)),
            }
        }
    }
    Ok(plan)
}

/// Seals the stale records of a plan again. `on_done` is called after each.
#[must_use]
pub fn rekey(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    plan: RekeyPlan,
    on_done: &mut dyn FnMut(&str),
) -> Rekeyed {
    let RekeyPlan { stale, current, held, failed } = plan;
    let mut done = Rekeyed { rewritten: 0, current, held, failed };
    for key in stale {
        match reseal(store, clock.as_ref(), &key) {
            Ok(Resealed::Rewritten) => done.rewritten += 1,
            Ok(Resealed::Current) => done.current += 1,
            Ok(Resealed::Held(worker)) => done.held.push((key.clone(), worker)),
            Ok(Resealed::Gone) => {}
            Err(error) => done.failed.push((key.clone(), error)),
        }
        on_done(&key);
    }
    done
}

enum Resealed {
    Rewritten,
    Current,
    Held(String),
    Gone,
}

fn reseal(store: &StateStore, clock: &dyn Clock, key: &str) -> Result<Resealed> {
    let mut attempt = 1;
    loop {
        let Some(sealed) = store.load_sealed(key)? else {
            return Ok(Resealed::Gone);
        };
        match reseal_once(store, clock, key, &sealed) {
            Err(error) if error.kind() == ErrorKind::Conflict && attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

fn reseal_once(
    store: &StateStore,
    clock: &dyn Clock,
    key: &str,
    sealed: &Sealed,
) -> Result<Resealed> {
    if store.is_current(&sealed.kind())? {
        return Ok(Resealed::Current);
    }
    if let Some(worker) = live_worker(store, clock, key)? {
        return Ok(Resealed::Held(worker));
    }
    store.reseal(key, sealed)?;
    Ok(Resealed::Rewritten)
}

/// The worker that relies on a record; one that cannot be seen from here may live.
fn live_worker(store: &StateStore, clock: &dyn Clock, key: &str) -> Result<Option<String>> {
    let Some(pipeline) = StateStore::contended_by(key) else {
        return Ok(None);
    };
    let worker = store.load_lease(&pipeline)?.map(|lease| Worker::of(lease.value, clock.now()));
    let live = worker.filter(|worker| worker.status.may_live());
    Ok(live.map(|worker| worker.lease.holder.worker_id))
}
