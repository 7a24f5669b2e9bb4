//! The figures of one process, or the sum of several: plain data that a lease record carries.
//!
//! Whatever was not measured is absent, and a ratio without anything to divide is `None`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Distribution;

/// What a process measured since it opened its store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// For how long it has been measured, in milliseconds; the sum over the processes.
    pub measured_ms: u64,
    /// What callers of the store saw: after retries, with the check of each record.
    pub logical: StorageFigures,
    /// What each backend did, by its name: every attempt for itself.
    pub backends: BTreeMap<String, StorageFigures>,
    /// Times to turn a value into JSON.
    #[serde(skip_serializing_if = "is_default")]
    pub serialise: Distribution,
    /// Times to turn JSON into a value.
    #[serde(skip_serializing_if = "is_default")]
    pub deserialise: Distribution,
    /// What the cache did.
    #[serde(skip_serializing_if = "is_default")]
    pub cache: CacheFigures,
}

/// What one storage did, by operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageFigures {
    /// Reads of a key.
    #[serde(skip_serializing_if = "is_default")]
    pub get: OperationFigures,
    /// Writes of a key.
    #[serde(skip_serializing_if = "is_default")]
    pub put: OperationFigures,
    /// Deletes of a key.
    #[serde(skip_serializing_if = "is_default")]
    pub delete: OperationFigures,
    /// Pages of listings.
    #[serde(skip_serializing_if = "is_default")]
    pub list: OperationFigures,
}

/// What one operation did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperationFigures {
    /// Calls that failed. A compare-and-swap that lost is none: it is an answer.
    #[serde(skip_serializing_if = "is_default")]
    pub errors: u64,
    /// Compare-and-swaps that found another version.
    #[serde(skip_serializing_if = "is_default")]
    pub conflicts: u64,
    /// Bytes read or written by the calls that succeeded.
    #[serde(skip_serializing_if = "is_default")]
    pub bytes: u64,
    /// How long the calls took, also those that failed.
    pub latency: Distribution,
}

/// What a cache did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheFigures {
    /// Most records it holds; 0 when it is turned off.
    pub capacity: u64,
    /// Records it holds.
    pub entries: u64,
    /// Reads that found the record unchanged.
    pub hits: u64,
    /// Reads that had to check and parse the record.
    pub misses: u64,
    /// Records that made room for others.
    pub evictions: u64,
}

impl Figures {
    /// Adds what another process measured.
    pub fn add(&mut self, other: &Self) {
        self.measured_ms = self.measured_ms.saturating_add(other.measured_ms);
        self.logical.add(&other.logical);
        for (name, figures) in &other.backends {
            self.backends.entry(name.clone()).or_default().add(figures);
        }
        self.serialise.add(&other.serialise);
        self.deserialise.add(&other.deserialise);
        self.cache.add(&other.cache);
    }
}

impl StorageFigures {
    /// The operations with their names.
    #[must_use]
    pub fn operations(&self) -> [(&'static str, &OperationFigures); 4] {
        [("get", &self.get), ("put", &self.put), ("delete", &self.delete), ("list", &self.list)]
    }

    /// Calls that failed, of all calls, from 0 to 1; `None` when there was no call.
    #[must_use]
    pub fn error_rate(&self) -> Option<f64> {
        let sum = |of: fn(&OperationFigures) -> u64| {
            self.operations().into_iter().fold(0u64, |sum, (_, op)| sum.saturating_add(of(op)))
        };
        ratio(sum(|operation| operation.errors), sum(|operation| operation.latency.count()))
    }

    fn add(&mut self, other: &Self) {
        self.get.add(&other.get);
        self.put.add(&other.put);
        self.delete.add(&other.delete);
        self.list.add(&other.list);
    }
}

impl OperationFigures {
    /// Bytes per second of the time spent in calls; `None` when no byte was moved.
    #[must_use]
    pub fn throughput(&self) -> Option<f64> {
        let busy = self.latency.total();
        (self.bytes > 0 && busy > Duration::ZERO).then(|| self.bytes as f64 / busy.as_secs_f64())
    }

    fn add(&mut self, other: &Self) {
        self.errors = self.errors.saturating_add(other.errors);
        self.conflicts = self.conflicts.saturating_add(other.conflicts);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.latency.add(&other.latency);
    }
}

impl CacheFigures {
    /// Hits of all reads through the cache, from 0 to 1; `None` when there was none.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        ratio(self.hits, self.hits.saturating_add(self.misses))
    }

    fn add(&mut self, other: &Self) {
        let fields = [
            (&mut self.capacity, other.capacity),
            (&mut self.entries, other.entries),
            (&mut self.hits, other.hits),
            (&mut self.misses, other.misses),
            (&mut self.evictions, other.evictions),
        ];
        for (sum, more) in fields {
            *sum = sum.saturating_add(more);
        }
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Histogram;

    fn some(calls: u64, errors: u64) -> Figures {
        let latency = Histogram::default();
        (0..calls).for_each(|n| latency.record(Duration::from_micros(100 + n)));
        let get = OperationFigures {
            errors,
            conflicts: 0,
            bytes: 10 * calls,
            latency: latency.distribution(),
        };
        let storage = StorageFigures { get, ..StorageFigures::default() };
        let cache = CacheFigures { hits: calls, misses: errors, ..CacheFigures::default() };
        let backends = BTreeMap::from([("file".to_owned(), storage.clone())]);
        Figures { logical: storage, backends, cache, ..Figures::default() }
    }

    #[test]
    fn what_was_not_measured_is_unknown_and_not_zero() {
        let none = Figures::default();
        assert_eq!((none.logical.error_rate(), none.cache.hit_rate()), (None, None));
        assert_eq!(none.logical.get.throughput(), None);
    }

    #[test]
    fn figures_of_workers_add_up() {
        let mut sum = some(30, 1);
        sum.add(&some(10, 1));
        assert_eq!((sum.logical.get.latency.count(), sum.logical.get.bytes), (40, 400));
        assert_eq!(sum.logical.error_rate(), Some(0.05));
        assert_eq!(sum.backends["file"], sum.logical);
        assert_eq!((sum.cache.hits, sum.cache.misses), (40, 2));
    }

    #[test]
    fn figures_survive_their_way_through_json_and_stay_small() {
        let figures = some(10_000, 3);
        let text = serde_json::to_string(&figures).unwrap();
        assert_eq!(serde_json::from_str::<Figures>(&text).unwrap(), figures);
        assert!(text.len() < 2000, "{} bytes: {text}", text.len());
    }
}
