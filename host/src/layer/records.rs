//! Sealed records in a storage: what the typed store above reads and writes.

use std::any::Any;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{
    BackendError, Call, Capabilities, Entry, Expected, Health, Listed, Storage, Version,
};

use super::cache::Cache;
use super::metrics::Metrics;
use super::seal::{seal, unseal};
use crate::clock::Clock;
use crate::metrics::Figures;

/// A verified record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Version of the body's schema.
    pub schema: u32,
    /// The body; JSON.
    pub body: Vec<u8>,
    /// When it was written.
    pub saved_at: DateTime<Utc>,
    /// The version to expect in the next compare-and-swap.
    pub version: Version,
}

/// A value that was read through the cache.
#[derive(Clone, Debug)]
pub struct Kept<T> {
    /// The value, shared with the cache.
    pub value: Arc<T>,
    /// Whether it was in the cache already, and nobody had overwritten it.
    pub from_cache: bool,
}

/// A storage of sealed records.
#[derive(Clone)]
pub struct Records {
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
}

impl Records {
    /// Records in this storage, with this cache and these counters.
    #[must_use]
    pub fn new(
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        cache: Arc<Cache>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { storage, clock, cache, metrics }
    }

    /// The counters of this process.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What was measured so far, with the cache.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures { cache: self.cache.figures(), ..self.metrics.figures() }
    }

    /// Forgets all kept values, and says how many that were.
    pub fn clear_cache(&self) -> usize {
        self.cache.clear()
    }

    /// What the storage promises.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.storage.capabilities()
    }

    /// Reads and verifies a record, past the cache; `None` when the key is absent.
    ///
    /// # Errors
    /// `Corrupt` when the record does not verify; otherwise as the storage fails.
    pub fn get(&self, call: &Call, key: &str) -> Result<Option<Record>, BackendError> {
        self.metrics.logical.get.observe(
            || self.storage.get(call, key)?.map(|entry| verify(key, entry)).transpose(),
            |record| record.as_ref().map_or(0, |record| record.body.len()),
        )
    }

    /// Reads a value through the cache; `None` when the key is absent. A kept value is served only
    /// when the storage says that it is at the same version still; otherwise the record is
    /// verified and parsed with `parse`. There is no version to swap against: see [`get`](Self::get).
    ///
    /// # Errors
    /// `Corrupt` when the record does not verify, and as `parse` and the storage fail.
    pub fn read<T, E>(
        &self,
        call: &Call,
        key: &str,
        parse: impl FnOnce(&Record) -> Result<T, E>,
    ) -> Result<Option<Kept<T>>, E>
    where
        T: Any + Send + Sync,
        E: From<BackendError>,
    {
        let found = self.metrics.logical.get.observe(
            || {
                let Some(entry) = self.storage.get(call, key)? else {
                    self.cache.remove(key);
                    return Ok(None);
                };
                match self.cache.get(key, &entry.version) {
                    Some(value) => Ok(Some(Found::Kept(value, entry.value.len()))),
                    None => Ok(Some(Found::Read(verify(key, entry)?))),
                }
            },
            |found| match found {
                Some(Found::Kept(_, bytes)) => *bytes,
                Some(Found::Read(record)) => record.body.len(),
                None => 0,
            },
        )?;
        Ok(match found {
            None => None,
            Some(Found::Kept(value, _)) => Some(Kept { value, from_cache: true }),
            Some(Found::Read(record)) => {
                let value = Arc::new(parse(&record)?);
                self.cache.insert(key, record.version, Arc::clone(&value));
                Some(Kept { value, from_cache: false })
            }
        })
    }

    /// Seals and writes a body, and returns the version and the size of the record in bytes.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn put(
        &self,
        call: &Call,
        key: &str,
        schema: u32,
        body: &[u8],
        expected: &Expected,
    ) -> Result<(Version, usize), BackendError> {
        let record = seal(key, schema, body, self.clock.now())?;
        let put = || self.storage.put(call, key, &record, expected);
        let version = self.metrics.logical.put.observe(put, |_| record.len())?;
        Ok((version, record.len()))
    }

    /// Deletes a record.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn delete(
        &self,
        call: &Call,
        key: &str,
        expected: &Expected,
    ) -> Result<bool, BackendError> {
        self.metrics.logical.delete.observe(|| self.storage.delete(call, key, expected), |_| 0)
    }

    /// Lists up to `limit` keys that start with `prefix` and come after `after`.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        self.metrics.logical.list.observe(|| self.storage.list(call, prefix, after, limit), |_| 0)
    }

    /// Asks the storage for its condition.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn health(&self, call: &Call) -> Result<Health, BackendError> {
        self.storage.health(call)
    }
}

/// What a read through the cache found.
enum Found<T> {
    /// A kept value that still stands, and the size of its record in bytes.
    Kept(Arc<T>, usize),
    /// A record that must be parsed.
    Read(Record),
}

/// Verifies what was stored and takes the header off.
fn verify(key: &str, entry: Entry) -> Result<Record, BackendError> {
    let (header, body) = unseal(key, &entry.value)?;
    let (schema, saved_at, length) = (header.schema, header.saved_at, body.len());
    let mut body = entry.value;
    body.drain(..body.len() - length);
    Ok(Record { schema, body, saved_at, version: entry.version })
}
