//! Sealed records in a storage: what the typed store above reads and writes.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{
    BackendError, Call, Capabilities, Expected, Health, Listed, Storage, Version,
};

use super::seal::{seal, unseal};
use crate::clock::Clock;

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

/// A storage of sealed records.
#[derive(Clone)]
pub struct Records {
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
}

impl Records {
    /// Records in this storage.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, clock: Arc<dyn Clock>) -> Self {
        Self { storage, clock }
    }

    /// What the storage promises.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.storage.capabilities()
    }

    /// Reads and verifies a record; `None` when the key is absent.
    ///
    /// # Errors
    /// `Corrupt` when the record does not verify; otherwise as the storage fails.
    pub fn get(&self, call: &Call, key: &str) -> Result<Option<Record>, BackendError> {
        let Some(entry) = self.storage.get(call, key)? else {
            return Ok(None);
        };
        let (header, body) = unseal(key, &entry.value)?;
        let (schema, saved_at, length) = (header.schema, header.saved_at, body.len());
        let mut body = entry.value;
        body.drain(..body.len() - length);
        Ok(Some(Record { schema, body, saved_at, version: entry.version }))
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
        let version = self.storage.put(call, key, &record, expected)?;
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
        self.storage.delete(call, key, expected)
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
        self.storage.list(call, prefix, after, limit)
    }

    /// Asks the storage for its condition.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn health(&self, call: &Call) -> Result<Health, BackendError> {
        self.storage.health(call)
    }
}
