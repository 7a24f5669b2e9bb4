//! What every backend gets for free: retries, and records that can be told from damaged ones.
//!
//! Layers know bytes, keys and versions, never what a pipeline is. [`stack`] owns their order.

mod away;
mod cache;
mod encryption;
mod metrics;
mod records;
mod retry;
mod salvage;
mod seal;
#[cfg(test)]
mod sealed_tests;

use std::sync::Arc;

use oxiflow_plugin_api::Storage;

use crate::clock::Clock;

pub use away::away;
pub use cache::Cache;
pub use encryption::{Derivation, Encryption, KeySource, Keyring};
pub use metrics::{Measured, Metrics, OperationCounters, StorageCounters};
pub use records::{DamagedRecord, Examined, Kept, Record, Records, SealedRecord};
pub use retry::{Retry, opened};
pub use salvage::{Damage, Salvage, damage, salvage};
pub use seal::{
    ENCRYPTED_FORMAT_VERSION, FORMAT_VERSION, Header, NEWEST_FORMAT_VERSION, claimed_key, seal,
    unseal,
};

/// Puts the layers on a backend, the one nearest to it first. `name` is that of the backend, for
/// its figures; `cache_size` is how many records the cache holds.
#[must_use]
pub fn stack(
    backend: Box<dyn Storage>,
    name: &str,
    cache_size: usize,
    clock: Arc<dyn Clock>,
) -> Records {
    // Directly on the backend, so that every attempt of a retried call counts for itself.
    let counters = Arc::new(StorageCounters::default());
    let measured = Measured::new(backend, Arc::clone(&counters));
    // Each backend has its own retry budget, so retries sit directly above its metrics.
    let retried = Retry::new(Arc::new(measured));
    // What is read back after an unknown outcome is compared as sealed bytes, so the seal is above.
    // What was unsealed and parsed once is worth keeping, so the cache is above the seal; `get`
    // goes past it, and with it every lease, every recovery and every compare-and-swap.
    let cache = Arc::new(Cache::new(cache_size));
    // What callers wait for is the sum of all this, so the logical metrics are outermost.
    let metrics = Arc::new(Metrics::new(vec![(name.to_owned(), counters)]));
    Records::new(Arc::new(retried), clock, cache, metrics)
}
