//! One ordered map behind a lock.
//!
//! Versions come from one counter that only grows, so none is ever used twice (clause C5).

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, Call, Capabilities, Description, ErrorKind, Expected,
    Health, Host, ListSink, Listed, Lookup, MIN_MAX_VALUE_BYTES, Package, ValueSink, Version,
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
        if value.len() as u64 > self.max_value_bytes {
            let (size, limit) = (value.len(), self.max_value_bytes);
            let message = format!("the value has {size} bytes; `max_value_bytes` is {limit}");
            return Err(BackendError::new(ErrorKind::TooLarge, message));
        }
        let value = value.to_vec();
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        call.check()?;
        inner.check(key, expected)?;
        inner.last_version += 1;
        let version = Version::from(inner.last_version);
        let record = Record { version, modified: SystemTime::now(), value };
        inner.records.insert(key.to_owned(), record);
        Ok(version)
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
