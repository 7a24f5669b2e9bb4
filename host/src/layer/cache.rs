//! Keeps parsed records for as long as nobody has overwritten them.
//!
//! The contract has no cheap way to ask for the version alone, so every read goes to the backend:
//! it is the backend's version that says whether the kept value still stands, and a version is
//! never reused for a key (C5). A hit therefore saves the check and the parse of a record, not the
//! read, and never serves what another process has overwritten. What is read this way comes
//! without a version, so it cannot feed a compare-and-swap.

use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use oxiflow_plugin_api::Version;

use crate::metrics::CacheFigures;

/// After how many reads the hit rate is looked at again: enough to mean something.
const WINDOW: u64 = 100;

/// Below this rate of hits the cache does not earn its memory.
const LOW_RATE: f64 = 0.5;

/// Values under their keys, each valid for one version.
pub struct Cache {
    inner: Mutex<Inner>,
}

struct Inner {
    /// `None` when the cache is turned off.
    entries: Option<LruCache<String, Cached>>,
    figures: CacheFigures,
    /// The figures when the current window of reads began.
    window: CacheFigures,
    /// Whether the rate was low in the window before, so that it is told once and not on and on.
    told: bool,
}

struct Cached {
    version: Version,
    value: Arc<dyn Any + Send + Sync>,
}

impl Cache {
    /// A cache of up to `capacity` values; 0 turns it off.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        // Memory is taken as values come, not for the whole capacity at once.
        let entries = NonZeroUsize::new(capacity).map(|capacity| {
            let mut entries = LruCache::unbounded();
            entries.resize(capacity);
            entries
        });
        let capacity = u64::try_from(capacity).unwrap_or(u64::MAX);
        let figures = CacheFigures { capacity, ..CacheFigures::default() };
        let inner = Inner { entries, window: figures.clone(), figures, told: false };
        Self { inner: Mutex::new(inner) }
    }

    /// The value kept for this version of a key.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self, key: &str, version: &Version) -> Option<Arc<T>> {
        let mut inner = self.lock();
        let entries = inner.entries.as_mut()?;
        let kept = entries.get(key).filter(|cached| cached.version == *version);
        let found = kept.and_then(|cached| Arc::clone(&cached.value).downcast().ok());
        match &found {
            Some(_) => inner.figures.hits += 1,
            None => inner.figures.misses += 1,
        }
        let low = inner.low_rate();
        drop(inner);
        if let Some(rate) = low {
            tracing::warn!(
                target: "oxide_flow::state", rate, recommendations = "increase cache size",
                "Cache hit rate low"
            );
        }
        found
    }

    /// Keeps the value of this version of a key, in the place of any other version's.
    pub fn insert<T: Any + Send + Sync>(&self, key: &str, version: Version, value: Arc<T>) {
        let mut inner = self.lock();
        let Some(entries) = &mut inner.entries else { return };
        let replaced = entries.push(key.to_owned(), Cached { version, value });
        // What comes back under another key made room.
        if replaced.is_some_and(|(replaced, _)| replaced != key) {
            inner.figures.evictions += 1;
        }
    }

    /// Forgets a key.
    pub fn remove(&self, key: &str) {
        if let Some(entries) = &mut self.lock().entries {
            entries.pop(key);
        }
    }

    /// Forgets everything, and says how many values that were.
    pub fn clear(&self) -> usize {
        let mut inner = self.lock();
        let Some(entries) = &mut inner.entries else { return 0 };
        let forgotten = entries.len();
        entries.clear();
        forgotten
    }

    /// What the cache did so far.
    #[must_use]
    pub fn figures(&self) -> CacheFigures {
        let inner = self.lock();
        let entries = inner.entries.as_ref().map_or(0, LruCache::len);
        CacheFigures {
            entries: u64::try_from(entries).unwrap_or(u64::MAX),
            ..inner.figures.clone()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// At the end of a window of reads: the rate of hits, if it is low and a larger cache would
    /// help, and if that was not so in the window before.
    fn low_rate(&mut self) -> Option<f64> {
        let hits = self.figures.hits - self.window.hits;
        let reads = hits + self.figures.misses - self.window.misses;
        if reads < WINDOW {
            return None;
        }
        // Without evictions the misses are first reads and overwritten records: no size helps.
        let too_small = self.figures.evictions > self.window.evictions;
        self.window = self.figures.clone();
        let rate = hits as f64 / reads as f64;
        let low = too_small && rate < LOW_RATE;
        let told = std::mem::replace(&mut self.told, low);
        (low && !told).then_some((rate * 100.0).round() / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn read(cache: &Cache, key: &str, version: u64) -> Option<u64> {
        cache.get::<u64>(key, &Version::from(version)).map(|value| *value)
    }

    fn keep(cache: &Cache, key: &str, version: u64) {
        cache.insert(key, Version::from(version), Arc::new(version * 10));
    }

    #[test]
    fn a_value_is_served_for_its_own_version_only() {
        let cache = Cache::new(4);
        keep(&cache, "a", 1);
        assert_eq!((read(&cache, "a", 1), read(&cache, "a", 2)), (Some(10), None));
        keep(&cache, "a", 2);
        assert_eq!((read(&cache, "a", 1), read(&cache, "a", 2)), (None, Some(20)));
        let seen = cache.figures();
        assert_eq!((seen.hits, seen.misses, seen.entries, seen.evictions), (2, 2, 1, 0));
    }

    #[test]
    fn the_least_recently_read_value_makes_room() {
        let cache = Cache::new(2);
        keep(&cache, "a", 1);
        keep(&cache, "b", 1);
        assert!(read(&cache, "a", 1).is_some());
        keep(&cache, "c", 1);
        let kept = ["a", "b", "c"].map(|key| read(&cache, key, 1).is_some());
        assert_eq!((kept, cache.figures().evictions), ([true, false, true], 1));
    }

    #[test]
    fn a_value_of_another_type_is_not_served() {
        let cache = Cache::new(2);
        keep(&cache, "a", 1);
        assert!(cache.get::<String>("a", &Version::from(1)).is_none());
    }

    #[test]
    fn a_cache_of_size_zero_keeps_nothing_and_counts_nothing() {
        let cache = Cache::new(0);
        keep(&cache, "a", 1);
        assert_eq!(read(&cache, "a", 1), None);
        assert_eq!(cache.figures(), CacheFigures::default());
    }

    #[test]
    fn clearing_forgets_everything_and_keeps_the_counts() {
        let cache = Cache::new(4);
        keep(&cache, "a", 1);
        keep(&cache, "b", 1);
        cache.remove("b");
        assert_eq!(cache.clear(), 1);
        assert_eq!(read(&cache, "a", 1), None);
        assert_eq!((cache.figures().entries, cache.figures().misses), (0, 1));
    }

    /// Reads `keys` keys in turn, as a cache's user does, and returns the rates that are told.
    fn told(cache: &Cache, keys: u64, reads: u64) -> Vec<f64> {
        let mut rates = Vec::new();
        for n in 0..reads {
            let key = (n % keys).to_string();
            let mut inner = cache.lock();
            let found = inner.entries.as_mut().unwrap().get(&key).is_some();
            if found {
                inner.figures.hits += 1;
            } else {
                inner.figures.misses += 1;
            }
            rates.extend(inner.low_rate());
            drop(inner);
            keep(cache, &key, 1);
        }
        rates
    }

    #[test]
    fn a_low_rate_is_told_once_after_enough_reads_and_only_when_size_would_help() {
        assert_eq!(told(&Cache::new(4), 8, WINDOW - 1), [] as [f64; 0], "too few reads");
        assert_eq!(told(&Cache::new(4), 8, 10 * WINDOW), [0.0], "once, not on and on");
        assert_eq!(told(&Cache::new(8), 8, 10 * WINDOW), [] as [f64; 0], "a good rate");
        assert_eq!(told(&Cache::new(1000), 1000, 500), [] as [f64; 0], "first reads only");
    }

    #[test]
    fn a_low_rate_is_logged_in_the_form_of_the_manual() {
        let mut log = tempfile::tempfile().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(Arc::new(log.try_clone().unwrap()))
            .with_ansi(false)
            .without_time()
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let cache = Cache::new(2);
            for n in 0..WINDOW {
                // Two of five reads find what the one before kept.
                let key = (n - (n % 5).saturating_sub(2).min(2)).to_string();
                if read(&cache, &key, 1).is_none() {
                    keep(&cache, &key, 1);
                }
            }
        });
        log.rewind().unwrap();
        let text = std::io::read_to_string(log).unwrap();
        let line = "Cache hit rate low rate=0.4 recommendations=\"increase cache size\"\n";
        assert_eq!(text, format!(" WARN oxide_flow::state: {line}"));
    }
}
