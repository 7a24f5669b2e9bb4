//! Doing something to a pipeline under its lease, so that no worker is at work meanwhile.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{Result, chain};
use crate::lease::{Acquire, HeldLease, Tempo, acquire, this_process};
use crate::model::PipelineName;
use crate::store::StateStore;

/// How long the lease of an administrative change lasts; it is released right after.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// Which pipeline to hold, and what for.
pub struct Claim<'a> {
    /// The pipeline.
    pub pipeline: &'a PipelineName,
    /// What for; shown to those who find the lease held.
    pub purpose: &'a str,
    /// How long to wait for a live worker to finish.
    pub wait: Duration,
    /// The epoch of the lease is greater than this.
    pub epoch_floor: u64,
}

/// Acquires the lease, calls `work` with its epoch, and releases it again. What was done does not
/// depend on the release: a lease that cannot be given back is a warning, and runs out by itself.
///
/// # Errors
/// `LeaseHeld` when a live worker is on the pipeline; as `work` fails; otherwise as the store
/// fails.
pub fn under_lease<T>(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    claim: &Claim<'_>,
    work: impl FnOnce(u64) -> Result<T>,
) -> Result<T> {
    let acquired = acquire(
        store,
        clock.as_ref(),
        &mut Acquire {
            pipeline: claim.pipeline,
            holder: &this_process()?,
            purpose: claim.purpose,
            ttl: LEASE_TTL,
            wait: claim.wait,
            epoch_floor: claim.epoch_floor,
            on_wait: &mut |_| {},
        },
    )?;
    let epoch = acquired.lease.value.epoch;
    let lease = HeldLease::start(
        store.clone(),
        Arc::clone(clock),
        acquired.lease,
        acquired.attempted,
        Tempo::every(LEASE_TTL / 3),
        |event| tracing::debug!(?event, "during an administrative change"),
    )?;
    let done = work(epoch);
    if let Err(error) = lease.release() {
        let (pipeline, error) = (claim.pipeline, chain(&error));
        tracing::warn!(%pipeline, error, "cannot release the lease; it runs out by itself");
    }
    done
}
