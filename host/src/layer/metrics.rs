//! Counts and times of what storages do.
//!
//! [`Measured`] sits directly above one backend and sees every attempt; [`Records`](super::Records)
//! counts into [`Metrics::logical`] what its callers wait for, with retries and checks. Counting
//! is a few relaxed atomic operations beside two looks at the clock: no lock, no allocation
//! (`cargo bench --bench metrics` measures it).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use oxiflow_plugin_api::{
    BackendError, BatchMode, Call, Capabilities, Change, Entry, ErrorKind, Expected, Health,
    Listed, Storage, Version, Write, batch,
};

use crate::metrics::{Figures, Histogram, OperationFigures, StorageFigures};

/// Counters of one operation.
#[derive(Default)]
pub struct OperationCounters {
    errors: AtomicU64,
    conflicts: AtomicU64,
    bytes: AtomicU64,
    latency: Histogram,
}

/// What the counters must know of an error: a compare-and-swap that found another version is no
/// failure of the storage.
pub trait Failure {
    /// Whether somebody else wrote first.
    fn is_conflict(&self) -> bool;
}

impl Failure for BackendError {
    fn is_conflict(&self) -> bool {
        self.kind() == ErrorKind::Conflict
    }
}

impl Failure for crate::error::Error {
    fn is_conflict(&self) -> bool {
        self.kind() == crate::error::ErrorKind::Conflict
    }
}

impl OperationCounters {
    /// Counts a call; `bytes` says how many the result moved.
    ///
    /// # Errors
    /// Those of the call.
    pub fn observe<T, E: Failure>(
        &self,
        call: impl FnOnce() -> Result<T, E>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Result<T, E> {
        let started = Instant::now();
        let result = call();
        self.latency.record(started.elapsed());
        match &result {
            Ok(done) => {
                let moved = u64::try_from(bytes(done)).unwrap_or(u64::MAX);
                self.bytes.fetch_add(moved, Ordering::Relaxed);
            }
            Err(error) if error.is_conflict() => {
                self.conflicts.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        result
    }

    fn figures(&self) -> OperationFigures {
        OperationFigures {
            errors: self.errors.load(Ordering::Relaxed),
            conflicts: self.conflicts.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            latency: self.latency.distribution(),
        }
    }
}

/// Counters of one storage.
#[derive(Default)]
pub struct StorageCounters {
    /// Reads.
    pub get: OperationCounters,
    /// Writes. A batch is one of them.
    pub put: OperationCounters,
    /// Deletes.
    pub delete: OperationCounters,
    /// Pages of listings.
    pub list: OperationCounters,
}

impl StorageCounters {
    fn figures(&self) -> StorageFigures {
        StorageFigures {
            get: self.get.figures(),
            put: self.put.figures(),
            delete: self.delete.figures(),
            list: self.list.figures(),
        }
    }
}

/// Everything that one process counts about its store.
pub struct Metrics {
    since: Instant,
    backends: Vec<(String, Arc<StorageCounters>)>,
    /// What callers of the records see.
    pub logical: StorageCounters,
    /// Times to turn a value into JSON.
    pub serialise: Histogram,
    /// Times to turn JSON into a value.
    pub deserialise: Histogram,
}

impl Metrics {
    /// Counters above backends of these names and counters.
    #[must_use]
    pub fn new(backends: Vec<(String, Arc<StorageCounters>)>) -> Self {
        Self {
            since: Instant::now(),
            backends,
            logical: StorageCounters::default(),
            serialise: Histogram::default(),
            deserialise: Histogram::default(),
        }
    }

    /// The figures so far, without those of the cache, which keeps its own.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let backends =
            self.backends.iter().map(|(name, counters)| (name.clone(), counters.figures()));
        Figures {
            measured_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            logical: self.logical.figures(),
            backends: backends.collect(),
            serialise: self.serialise.distribution(),
            deserialise: self.deserialise.distribution(),
            ..Figures::default()
        }
    }
}

/// A backend whose calls are counted.
pub struct Measured {
    inner: Box<dyn Storage>,
    counters: Arc<StorageCounters>,
}

impl Measured {
    /// Counts the calls of this backend.
    #[must_use]
    pub fn new(inner: Box<dyn Storage>, counters: Arc<StorageCounters>) -> Self {
        Self { inner, counters }
    }
}

impl Storage for Measured {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        self.counters.get.observe(
            || self.inner.get(call, key),
            |entry| entry.as_ref().map_or(0, |entry| entry.value.len()),
        )
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.counters.put.observe(|| self.inner.put(call, key, value, expected), |_| value.len())
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        self.counters.delete.observe(|| self.inner.delete(call, key, expected), |_| 0)
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        self.counters.list.observe(|| self.inner.list(call, prefix, after, limit), |_| 0)
    }

    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        if !self.inner.supports_batch() {
            return batch::one_by_one(self, call, changes, mode);
        }
        let bytes = |change: &Change<'_>| match change.write {
            Write::Put(value) => value.len(),
            Write::Delete => 0,
        };
        let written = changes.iter().map(bytes).sum();
        self.counters.put.observe(|| self.inner.apply(call, changes, mode), |_| written)
    }

    fn supports_batch(&self) -> bool {
        self.inner.supports_batch()
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        // Asked for rarely, and its latency is part of its answer.
        self.inner.health(call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_swap_is_a_conflict_and_not_an_error() {
        let counters = OperationCounters::default();
        let bytes = |bytes: &usize| *bytes;
        counters.observe(|| Ok::<_, BackendError>(7), bytes).unwrap();
        counters.observe(|| Err(BackendError::conflict(None)), bytes).unwrap_err();
        counters.observe(|| Err(BackendError::unavailable("away")), bytes).unwrap_err();
        let seen = counters.figures();
        assert_eq!((seen.errors, seen.conflicts, seen.bytes), (1, 1, 7));
        assert_eq!(seen.latency.count(), 3);
    }

    #[test]
    fn threads_lose_no_count() {
        let counters = OperationCounters::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counters.observe(|| Ok::<_, BackendError>(3), |bytes| *bytes).unwrap();
                    }
                });
            }
        });
        let seen = counters.figures();
        assert_eq!((seen.latency.count(), seen.bytes), (4000, 12_000));
    }
}
