//! One ordered map behind a lock.
//!
//! Versions come from one counter that only grows, so none is ever used twice (clause C5).

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, BatchBackend, BatchMode, Call, Capabilities, Change,
    Changed, Description, ErrorKind, Expected, Health, Host, ListSink, Listed, Lookup,
    MIN_MAX_VALUE_BYTES, Package, ValueSink, Version, Write, batch,
};

use crate::config::{MemoryConfig, schema};

/// A store that lives as long as its handle.
pub struct MemoryBackend {
    max_value_bytes: u64,
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    last_version: u64,
    records: BTreeMap<String, Record>,
}

struct Record {
    version: Version,
    modified: SystemTime,
    value: Vec<u8>,
}

impl Inner {
    fn check(&self, key: &str, expected: &Expected) -> Result<(), BackendError> {
        expected.check(self.records.get(key).map(|record| &record.version))
    }

    fn insert(&mut self, key: &str, value: Vec<u8>) -> (Version, Option<Record>) {
        self.last_version += 1;
        let version = Version::from(self.last_version);
        let record = Record { version, modified: SystemTime::now(), value };
        (version, self.records.insert(key.to_owned(), record))
    }
}

impl MemoryBackend {
    fn check_size(&self, value: &[u8]) -> Result<(), BackendError> {
        let (size, limit) = (value.len(), self.max_value_bytes);
        if size as u64 <= limit {
            return Ok(());
        }
        let message = format!("the value has {size} bytes; `max_value_bytes` is {limit}");
        Err(BackendError::new(ErrorKind::TooLarge, message))
    }

    /// Makes a change, and returns what it did and what the key held.
    fn change(
        &self,
        inner: &mut Inner,
        change: &Change<'_>,
    ) -> Result<(Changed, Option<Record>), BackendError> {
        if let Write::Put(value) = change.write {
            self.check_size(value)?;
        }
        inner.check(change.key, &change.expected)?;
        Ok(match change.write {
            Write::Put(value) => {
                let (version, before) = inner.insert(change.key, value.to_vec());
                (Changed::Put(version), before)
            }
            Write::Delete => match inner.records.remove(change.key) {
                Some(before) => (Changed::Deleted, Some(before)),
                None => (Changed::Absent, None),
            },
        })
    }
}

impl Backend for MemoryBackend {
    const CAPABILITIES: Capabilities = Capabilities::NONE;

    fn describe(package: Package) -> Description {
        Description::from(package).with_config_schema(schema())
    }

    fn open(_host: &Host, config: &BackendConfig) -> Result<Self, BackendError> {
        let config: MemoryConfig = config.parse()?;
        if config.max_value_bytes < MIN_MAX_VALUE_BYTES as u64 {
            return Err(BackendError::invalid(format!(
                "option `max_value_bytes`: at least {MIN_MAX_VALUE_BYTES}"
            )));
        }
        Ok(Self { max_value_bytes: config.max_value_bytes, inner: RwLock::default() })
    }

    fn get(&self, call: &Call, key: &str, out: ValueSink<'_>) -> Result<Lookup, BackendError> {
        call.check()?;
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        Ok(match inner.records.get(key) {
            Some(record) => out.found(&record.value, &record.version),
            None => out.absent(),
        })
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.check_size(value)?;
        let value = value.to_vec();
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        call.check()?;
        inner.check(key, expected)?;
        Ok(inner.insert(key, value).0)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        call.check()?;
        inner.check(key, expected)?;
        Ok(inner.records.remove(key).is_some())
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        out: &mut ListSink<'_>,
    ) -> Result<(), BackendError> {
        call.check()?;
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        out.push_range(&inner.records, prefix, after, |key, record| Listed {
            key: key.to_owned(),
            version: record.version,
            size: record.value.len() as u64,
            modified: Some(record.modified),
        });
        Ok(())
    }

    fn health(&self, _call: &Call) -> Result<Health, BackendError> {
        let started = Instant::now();
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let used = inner.records.values().map(|record| record.value.len() as u64).sum();
        Ok(Health { latency: Some(started.elapsed()), used_bytes: Some(used), ..Health::default() })
    }
}

impl BatchBackend for MemoryBackend {
    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        call.check()?;
        let mut results = Vec::with_capacity(changes.len());
        let mut before = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            match self.change(&mut inner, change) {
                Ok((changed, held)) => {
                    results.push(Ok(changed));
                    if mode == BatchMode::Atomic {
                        before.push((change.key, held));
                    }
                }
                Err(error) if mode == BatchMode::Independent => results.push(Err(error)),
                Err(error) => {
                    for (key, held) in before.into_iter().rev() {
                        match held {
                            Some(record) => drop(inner.records.insert(key.to_owned(), record)),
                            None => drop(inner.records.remove(key)),
                        }
                    }
                    return Err(error.of_change(index));
                }
            }
        }
        Ok(results)
    }
}
